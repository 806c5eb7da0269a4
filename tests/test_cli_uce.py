"""The command line with a UCE: options of the model, another tokeniser."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from click.testing import CliRunner
from scipy import sparse

from scfast.cli import cli
from tests.models import uce_files


def test_run_takes_a_uce_and_its_options(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.8, size=(12, 40)).astype(np.float32))
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=list(uce_files.MOUSE)))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    written = uce_files.write(tmp_path / "uce")
    options = {**written.options, "species": "mouse", "masking": "published", "seed": 3}
    command = [
        "run",
        str(tmp_path / "cells.h5ad"),
        "--model",
        f"uce:{written.folder}",
        "-o",
        str(tmp_path / "out"),
    ]
    for name, value in options.items():
        command += ["--model-option", f"{name}={value}"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "uce:4layer_model" in result.output
    params = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad").uns["rollout"]["params"]
    noted = {name: options[name] for name in ("species", "masking", "seed", "sample_size")}
    assert params["model_settings"] == noted | {"batch_size": 25}


def test_options_that_do_not_exist_are_named(tmp_path: Path) -> None:
    adata = anndata.AnnData(sparse.csr_matrix((1, 1), dtype=np.float32), var=pd.DataFrame(index=["A"]))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    command = ["run", str(tmp_path / "cells.h5ad"), "--model", f"uce:{tmp_path}", "-o", str(tmp_path / "out")]
    for text, said in (
        ("specie=mouse", "uce has no option 'specie'; it has species, masking, seed"),
        ("species", "--model-option species must be NAME=VALUE, such as species=mouse"),
    ):
        result = CliRunner().invoke(cli, [*command, "--model-option", text])
        assert result.exit_code == 1
        assert said in f"{result.output}{result.exception}"
