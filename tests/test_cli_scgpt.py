"""The command line with an scGPT: the same commands, another tokeniser."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from click.testing import CliRunner
from scipy import sparse

from scfast import models, tl
from scfast.cli import cli
from tests import materialised
from tests.models import scgpt_files


def cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.8, size=(30, 60)).astype(np.float32))
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=list(scgpt_files.GENES)))
    adata.obs["cell_type"] = pd.Categorical(["B", "T"] * 15)
    return adata


def test_run_writes_cells_and_tables(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "cells.h5ad")
    folder = scgpt_files.write(tmp_path / "tiny")
    for analysis in ("rollout", "embed"):
        out = tmp_path / analysis
        command = ["run", str(tmp_path / "cells.h5ad"), "--model", f"scgpt:{folder}", "--analysis", analysis]
        command += ["-o", str(out), "--text", *(["--groupby", "cell_type"] if analysis == "rollout" else [])]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "scgpt:tiny" in result.output
        assert (out / "cells.h5ad").is_file()


def test_rollout_of_groups_is_that_of_the_maps(tmp_path: Path) -> None:
    """Cells with more genes than the context, in batches of any size."""
    source = models.load("scgpt", scgpt_files.write(tmp_path), seed=3, max_tokens=20)
    adata = cells()
    tl.rollout(adata, source, groupby="cell_type", null=None, memory="64MB")
    tokens = source.tokenize(adata.X, adata.var)
    assert int(tokens.lost_truncation.sum()) > 0
    scores = materialised.per_gene(materialised.rollout(source, tokens, "cls"), tokens, adata.n_vars)
    found = adata.varm["rollout"]
    for group in ("B", "T"):
        own = scores[(adata.obs["cell_type"] == group).to_numpy()]
        np.testing.assert_allclose(found[group].to_numpy(), own.mean(axis=0), atol=1e-6)
