"""Conditions on cells: what they select is what pandas selects, and what is more than a condition is refused."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from scipy import sparse

import scfast
from scfast.cli import cli
from scfast.cli.data import load
from scfast.io.columns import Condition, column_names, read_columns
from scfast.run import Counts, StoredCounts, survey
from scfast.run.fingerprint import fingerprint
from tests.toy import toy_adata, toy_source

ADATA = toy_adata()
ADATA.obs["n_genes"] = np.asarray((ADATA.X > 0).sum(1)).ravel()
ADATA.obs["cell type"] = pd.Categorical(["B", "T", None] * 7 + ["NK"] * (ADATA.n_obs - 21))
ADATA.obs["donor"] = [f"D{i % 4}" for i in range(ADATA.n_obs)]
ADATA.obs["kept"] = np.arange(ADATA.n_obs) % 2 == 0
ADATA.obs["score"] = np.where(np.arange(ADATA.n_obs) % 5, 0.5, np.nan)

CONDITIONS = [
    "n_genes > 5",
    "`cell type` == 'B'",
    "`cell type` != 'B' and not donor == 'D1'",
    "donor in ['D0', 'D3'] or (kept and score < 1)",
    "donor not in ('D0',) & (n_genes >= 3)",
    "~kept",
    "2 * n_genes - 1 > 3 and 0 <= score < 0.75",
    'donor == "D`2`" or donor == "D2"',
]
HOSTILE = {
    "__import__('os').system('true')": "a call",
    "n_genes.sum() > 1": "a call",
    "n_genes.values": "an attribute",
    "@pd.eval('1')": "'@'",
    "donor[0] == 'D1'": "an index",
    "(lambda: 1)": "a function",
    "9 ** 9 ** 9 > n_genes": "a power",
    "n_genes == 9999999999999999999999": "9999999999",
    "donor == 'x' * 10": "a sum or product of texts or lists",
    "(x := 3)": "an assignment",
    "f'{n_genes}' == 'a'": "a formatted text",
    "[x for x in donor]": "ListComp",
    "n_genes == None": "None",
    "n_genes if kept else 3": "IfExp",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("columns")
    ADATA.write_h5ad(path / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ADATA.write_zarr(path / "cells.zarr")
    return path


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_selects_what_pandas_selects(text):
    expected = ADATA.obs.query(text, engine="python").index
    rows = Condition(text, list(ADATA.obs)).rows(ADATA.obs)
    assert ADATA.obs_names[rows].equals(expected)


@pytest.mark.parametrize(("text", "said"), HOSTILE.items())
def test_what_is_more_than_a_condition_is_refused(text, said):
    with pytest.raises(ValueError, match="only comparisons of columns") as error:
        Condition(text, list(ADATA.obs))
    assert said in str(error.value)


def test_other_errors_name_the_remedy():
    columns = list(ADATA.obs)
    for text in ("n_genes >", "a b", "", "(" * 5000, "x" * 20_000):
        with pytest.raises(ValueError, match="where"):
            Condition(text, columns)
    with pytest.raises(KeyError, match="no column age; there are"):
        Condition("age > 3", columns)
    with pytest.raises(ValueError, match="holds for none of"):
        Condition("donor == 'D9'", columns).rows(ADATA.obs)
    for text in ("n_genes", "1 == 1", "donor > 3"):
        with pytest.raises(ValueError, match=r"neither yes nor no|cannot be evaluated"):
            Condition(text, columns).rows(ADATA.obs)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_columns_are_read_alone(kind, folder, monkeypatch):
    monkeypatch.setattr("scfast.io.columns.ROWS_AT_ONCE", 5)
    path = folder / f"cells.{kind}"
    obs = h5py.File(path)["obs"] if kind == "h5ad" else zarr.open_group(str(path), mode="r")["obs"]
    assert column_names(obs) == list(ADATA.obs)
    frame = read_columns(obs, ["donor", "n_genes", "cell type"])
    expected = ADATA.obs[["donor", "n_genes", "cell type"]].astype({"donor": "category"})
    assert isinstance(frame["donor"].dtype, pd.CategoricalDtype)
    for name in expected:
        codes = (x.cat.codes if hasattr(x, "cat") else x for x in (frame[name], expected[name]))
        np.testing.assert_array_equal(*codes)
    opened = scfast.io.open(path, obs=["cell type"], where="donor == 'D1'")
    assert list(opened.obs) == ["cell type"]
    assert opened.obs.index.equals(pd.RangeIndex(opened.n_obs))
    with pytest.raises(KeyError, match="no column age; there are"):
        scfast.io.open(path, obs=["age"])


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("obs", [None, ["type"]])
def test_selected_cells_on_disk_give_what_they_give_in_memory(kind, obs, folder):
    where = "n_genes > 5 and donor != 'D2'"
    alone = ADATA[ADATA.obs.query(where).index].copy()
    opened = scfast.io.open(folder / f"cells.{kind}", obs=obs, where=where)
    assert opened.shape == alone.shape
    assert (opened.X[:] != alone.X).nnz == (opened.X[2:5, :3] != alone.X[2:5, :3]).nnz == 0
    rows = np.random.default_rng(0).permutation(alone.n_obs)
    counts = StoredCounts(opened.X, opened.var, block_cells=4)
    np.testing.assert_array_equal(counts.take(rows)[0].toarray(), alone.X[rows].toarray())
    kept = sparse.csr_matrix(alone.X)
    assert (
        survey(toy_source(), counts).fingerprint == survey(toy_source(), Counts(kept, alone.var)).fingerprint
    )
    other = scfast.io.open(folder / f"cells.{kind}", obs=obs, where="donor == 'D2'")
    assert fingerprint(counts) != fingerprint(StoredCounts(other.X, other.var, block_cells=4))
    for adata in (opened, alone):
        scfast.tl.rollout(adata, toy_source(), groupby="type", progress=False)
    pd.testing.assert_frame_equal(opened.varm["rollout"], alone.varm["rollout"])


def test_blocks_without_a_selected_cell_are_not_read(folder, monkeypatch):
    opened = scfast.io.open(folder / "cells.h5ad", where="donor == 'D3' and n_genes > 0")
    counts, read = StoredCounts(opened.X, opened.var, block_cells=1), []
    inner = StoredCounts._read_block
    monkeypatch.setattr(StoredCounts, "_read_block", lambda self, n: read.append(n) or inner(self, n))
    counts.take(np.arange(counts.n_cells))
    assert sorted(read) == opened.X.rows.tolist()


def test_the_file_of_results_holds_the_selected_cells(folder, tmp_path):
    opened = scfast.io.open(folder / "cells.h5ad", where="donor == 'D3'")
    opened.X = opened.X.to_memory()
    opened.write_h5ad(tmp_path / "x.h5ad")
    written = ad.read_h5ad(tmp_path / "x.h5ad")
    assert written.obs_names.equals(ADATA.obs.query("donor == 'D3'").index)
    assert (written.X != ADATA[written.obs_names].X).nnz == 0


def test_the_command_line_takes_a_condition(folder):
    for stream in (False, True):
        adata = load(folder / "cells.h5ad", stream=stream, where="`cell type` == 'T'")
        assert (adata.obs["cell type"] == "T").all()
    few = load(folder / "cells.h5ad", stream=True, where="`cell type` == 'T'", obs=["donor"])
    assert list(few.obs) == ["donor"]
    assert few.n_obs == adata.n_obs
    with pytest.raises(ValueError, match="holds a call"):
        load(folder / "cells.h5ad", where="donor.str.len() > 0")
    help_text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "--where" in help_text
