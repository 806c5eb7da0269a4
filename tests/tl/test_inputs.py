"""Bad input gets an error that names the remedy, and whatever happens AnnData stays as it was."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
from scipy import sparse

import scfast
from scfast.tl._inputs import commit
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata, toy_source


def fails(error, message, change=None, model=None, **options):
    """Run on a changed AnnData: it must fail, and leave no trace."""
    adata = toy_adata()
    adata.uns["rollout"] = {"from": "before"}
    if change is not None:
        change(adata)
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.rollout(adata, toy_source() if model is None else model, backend=BACKEND, **options)
    assert_same(adata, before)


def set_value(value):
    def change(adata):
        adata.X.data[5] = value

    return change


def drop(key, value):
    def change(adata):
        adata.obs[key] = value

    return change


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"adata.X holds negative values \(down to -2\).*counts_layer", set_value(-2)),
        (ValueError, "adata.X holds nan values", set_value(np.nan)),
        (ValueError, "adata.X holds infinite values", set_value(np.inf)),
        (ValueError, "n_counts.*repair the column", drop("n_counts", np.nan)),
        (ValueError, "'donor'.*empty for 22 cells", drop("donor", np.nan)),
        (ValueError, "'type'.*no groups", drop("type", np.nan)),
        (ValueError, "no cell has a gene of toy's vocabulary.*'x0'.*'G39'", lambda adata: rename(adata, "x")),
    ],
)
def test_bad_values(error, message, change):
    fails(error, message, change, groupby="type", replicate_key="donor")


def rename(adata, letter):
    adata.var_names = [f"{letter}{i}" for i in range(adata.n_vars)]


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (KeyError, "groupby='kind' is not in adata.obs", {"groupby": "kind"}),
        (KeyError, "replicate_key='person' is not in adata.obs", {"replicate_key": "person"}),
        (KeyError, "counts_layer='raw' is not in adata.layers", {"counts_layer": "raw"}),
        (KeyError, "readout='gene:NONE'.*adata.var_names", {"readout": "gene:NONE"}),
        (ValueError, "no cell has a token of that gene", {"readout": "gene:G3"}),
        (ValueError, "no cls token; use readout='mean'", {"readout": "cls"}),
        (ValueError, "readout='max' is unknown", {"readout": "max"}),
        (TypeError, "scfast.record", {"readout": np.ones(3)}),
        (ValueError, r"layers=\(0, 3\)", {"layers": (0, 3)}),
        (ValueError, "layers='both'", {"layers": "both"}),
        (ValueError, "heads='median'", {"heads": "median"}),
        (ValueError, "residual must lie in", {"residual": 1.5}),
        (ValueError, "null='shuffled'", {"null": "shuffled"}),
        (ValueError, "memory='2 apples' is not an amount", {"memory": "2 apples"}),
        (
            ValueError,
            "memory=0.009MB is too little: the longest cell has 24 tokens.*pass memory='1MB'",
            {"memory": "9KB"},
        ),
        (ValueError, "key_added='a/b'", {"key_added": "a/b"}),
        (TypeError, "scfast.models.load", {"model": "geneformer"}),
        (ValueError, "there is no model 'bert'", {"model": "bert:folder"}),
        (ValueError, "backend='gpu'", {"backend": "gpu"}),
    ],
)
def test_bad_arguments(error, message, options):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.rollout(adata, **({"model": toy_source(), "backend": BACKEND} | options))
    assert_same(adata, before)


@pytest.mark.parametrize(("scale", "message"), [(1.0, "look log-normalised"), (9.0, "not whole numbers")])
def test_values_that_are_not_counts_warn(scale, message):
    adata = toy_adata()
    adata.X = adata.X.log1p() * scale
    with pytest.warns(UserWarning, match=rf"{message}.*scfast\.pp\.recover_counts") as seen:
        scfast.tl.rollout(adata, toy_source(), backend=BACKEND)
    assert len(seen) == 1
    assert seen[0].filename == __file__


class Interrupted(ToySource):
    """Ctrl-C in the second batch."""

    def forward(self, tokens, recorder):
        if len(tokens.lengths) and max(tokens.lengths) < 20:
            raise KeyboardInterrupt("stop")
        super().forward(tokens, recorder)


def test_ctrl_c_leaves_no_trace():
    fails(KeyboardInterrupt, "stop", model=Interrupted(toy_source().genes), memory="120KB", groupby="type")


def test_failing_write_is_taken_back():
    """AnnData refuses the second thing written: the first is taken back, and what was there before
    returns."""
    adata = toy_adata()
    adata.layers["r"] = adata.X.copy()
    before = adata.copy()
    good, misshapen = adata.X * 2, np.ones((3, 3))
    with pytest.raises(ValueError, match="varm"):
        commit(adata, layers={"r": good, "new": good}, varm={"r": misshapen})
    assert_same(adata, before)


def test_existing_results_are_replaced_and_the_rest_stays():
    adata = toy_adata()
    adata.layers["rollout"] = adata.X.copy()
    adata.uns["rollout"] = "old"
    adata.uns["other"] = "kept"
    counts = adata.X.copy()
    scfast.tl.rollout(adata, toy_source(), backend=BACKEND)
    np.testing.assert_allclose(adata.layers["rollout"].sum(1), 1, atol=1e-5)
    assert set(adata.uns["rollout"]) == {"params", "groups", "table"}
    assert adata.uns["other"] == "kept"
    assert (counts != adata.X).nnz == 0


def test_copy():
    adata = toy_adata()
    before = adata.copy()
    result = scfast.tl.rollout(adata, toy_source(), backend=BACKEND, copy=True)
    assert_same(adata, before)
    assert "rollout" in result.layers
    assert scfast.tl.rollout(adata, toy_source(), backend=BACKEND) is None


def test_cells_are_not_stored_when_not_wanted():
    adata = toy_adata()
    scfast.tl.rollout(adata, toy_source(), backend=BACKEND, store_cells=False, key_added="r")
    assert not adata.layers
    assert "r" in adata.varm
    assert "r" in adata.uns


@pytest.mark.parametrize("kind", ["dense", "csc", "float64", "int64", "layer", "duplicates"])
def test_any_kind_of_matrix(kind):
    adata, other = toy_adata(), toy_adata()
    scfast.tl.rollout(adata, toy_source(), backend=BACKEND)
    options = {}
    if kind == "dense":
        other.X = other.X.toarray()
    elif kind == "csc":
        other.X = other.X.tocsc()
    elif kind == "layer":
        other.layers["counts"] = other.X.copy()
        other.X = other.X * -1
        options = {"counts_layer": "counts"}
    elif kind == "duplicates":
        x = other.X
        indptr = np.arange(0, 2 * x.nnz + 1, 2)[x.indptr]
        other.X = sparse.csr_matrix(
            (np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), indptr), shape=x.shape
        )
        other.X.data[:] = np.tile([1, 0], x.nnz) * np.repeat(x.data, 2)
    else:
        other.X = other.X.astype(kind)
    stored = other.X.copy()
    scfast.tl.rollout(other, toy_source(), backend=BACKEND, **options)
    np.testing.assert_array_equal(other.layers["rollout"].toarray(), adata.layers["rollout"].toarray())
    assert_same(other.X, stored)


def test_views_become_actual():
    adata = toy_adata()
    view = adata[5:15]
    with pytest.warns(anndata.ImplicitModificationWarning):
        scfast.tl.rollout(view, toy_source(), backend=BACKEND)
    assert view.layers["rollout"].shape == (10, 40)
    assert "rollout" not in adata.layers


@pytest.mark.parametrize("layers", [None, "prefix"])
def test_h5ad_round_trip(tmp_path, layers):
    adata = toy_adata()
    scfast.tl.rollout(
        adata,
        toy_source(),
        groupby="type",
        replicate_key="donor",
        layers=layers,
        null="untrained",
        backend=BACKEND,
    )
    scfast.tl.embed(adata, toy_source(), backend=BACKEND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert_same(again, adata)
