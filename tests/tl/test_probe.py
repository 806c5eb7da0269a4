"""tl.probe: against scikit-learn on states that are held in memory."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

import scfast
from scfast.tl._folds import make_folds, take_sample
from scfast.tl._probe_design import make_design
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

QUICK = {"confirm": None, "backend": BACKEND}


@pytest.fixture(scope="module")
def adata():
    """Cells of three kinds, each with genes of its own; a second label that some cells lack."""
    adata = toy_adata(150, seed=4)
    rng = np.random.default_rng(0)
    kinds = rng.choice(["B", "Mono", "T"], 150, p=[0.5, 0.3, 0.2])
    counts = adata.X.toarray()
    for number, kind in enumerate(["B", "Mono", "T"]):
        counts[np.ix_(kinds == kind, np.arange(8) + 9 * number)] += rng.poisson(4, ((kinds == kind).sum(), 8))
    adata = anndata.AnnData(adata.X.__class__(counts.astype(np.float32)), obs=adata.obs, var=adata.var)
    adata.obs["kind"] = kinds
    adata.obs["sex"] = np.where(counts[:, 5] + rng.normal(size=150) > 1, "f", "m")
    adata.obs.loc[adata.obs_names[::7], "sex"] = None
    adata.obs["donor"] = [f"d{i % 6}" for i in range(150)]
    return adata


def quiet(adata, source, labels, **options):
    """Without the warnings about labels that are missing and tokens that few cells have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scfast.tl.probe(adata, source, labels, **{**QUICK, **options})
    return adata.uns[options.get("key_added", "probe")]


def embedded(adata, source, pool, layer):
    scfast.tl.embed(adata, source, pool=pool, layer=layer, key_added="X_here", backend=BACKEND)
    return adata.obsm["X_here"].astype(np.float64)


def out_of_fold(states, codes, folds, model):
    predicted = np.full(len(codes), -1)
    for fold in range(folds.max() + 1):
        train, test = (codes >= 0) & (folds != fold), (codes >= 0) & (folds == fold)
        predicted[test] = model().fit(states[train], codes[train]).predict(states[test])
    return predicted[codes >= 0]


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
@pytest.mark.parametrize("replicates", [None, "donor"])
def test_equals_scikit_learn_on_states_in_memory(adata, shrinkage, replicates):
    source = toy_source(cls=True)
    options = {"shrinkage": shrinkage, "replicate_key": replicates, "memory": "700KB"}
    results = quiet(adata, source, ["kind", "sex"], **options)
    assert results["params"]["plan"]["batches"] > 1
    labels = {name: scfast.tl._labels.label_cells(adata.obs, name) for name in ("kind",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        labels["sex"] = scfast.tl._labels.label_cells(adata.obs, "sex")
    design = make_design(adata, labels, np.arange(150), replicates, 5, 2000, 0)
    table = results["table"].set_index(["label", "layer", "readout"])
    for number, name in enumerate(("kind", "sex")):
        codes = design.codes[number]
        for layer in range(4):
            for pool in ("cls", "mean"):
                row = table.loc[name, layer, pool]
                states = embedded(adata, source, pool, layer)
                if pool == "cls" and layer == 0:  # the embedding of one token: all cells are alike
                    assert row["accuracy"] == np.bincount(codes[codes >= 0]).max() / (codes >= 0).sum()
                    continue
                predicted = out_of_fold(
                    states, codes, design.folds,
                    lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage),
                )  # fmt: skip
                truth = codes[codes >= 0]
                np.testing.assert_allclose(row["f1"], f1_score(truth, predicted, average="macro"), atol=1e-9)
                np.testing.assert_allclose(row["accuracy"], accuracy_score(truth, predicted), atol=1e-9)
                assert row["test"] == len(truth)
    assert table.loc["kind"]["f1"].max() > 0.6 > 0.5 > table.loc["kind"]["control"].max()


def test_confirmed_by_logistic_regression(adata):
    source = toy_source(cls=True)
    results = quiet(adata, source, "kind", confirm="all")
    table = results["table"].set_index(["layer", "readout"])
    labels = {"kind": scfast.tl._labels.label_cells(adata.obs, "kind")}
    design = make_design(adata, labels, np.arange(150), None, 5, 2000, 0)
    states = embedded(adata, source, "mean", 3)
    predicted = np.zeros(150, dtype=int)
    for fold in range(5):
        train, test = design.folds != fold, design.folds == fold
        centre, scale = states[train].mean(0), states[train].std(0)
        fitted = LogisticRegression(C=1.0, max_iter=5000).fit(
            (states[train] - centre) / scale, design.codes[0, train]
        )
        predicted[test] = fitted.predict((states[test] - centre) / scale)
    expected = f1_score(design.codes[0], predicted, average="macro")
    np.testing.assert_allclose(table.loc[(3, "mean"), "logistic"], expected, atol=0.01)
    assert table["logistic"].notna().all()
    best = quiet(adata, source, "kind", confirm="best")["table"]
    for readout in ("cls", "mean"):
        part = best[best["readout"] == readout]
        assert part["logistic"].notna().sum() == 1
        assert part.loc[part["logistic"].notna(), "f1"].item() == part["f1"].max()


def test_single_tokens_and_genes(adata):
    source = toy_source(cls=True)
    results = quiet(adata, source, "kind", positions=[1, 4, 24], genes=["S0", "S12"], gene_symbols="symbol")
    table = results["table"].set_index(["layer", "readout"])
    names = ["cls", "mean", "position 1", "position 4", "position 24", "gene S0", "gene S12"]
    assert list(table.loc[0].index) == names
    tokens = source.tokenize(adata.X, adata.var)
    held = np.zeros((150, 40), dtype=bool)
    cell = np.repeat(np.arange(150), tokens.lengths)
    genes = tokens.gene_index.numpy()
    held[cell[genes >= 0], genes[genes >= 0]] = True
    assert table.loc[(1, "gene S12"), "test"] == held[:, 12].sum()
    assert table.loc[(1, "gene S0"), "test"] == 150
    # the embedding of a gene's token differs by its position only; after a layer it has seen its context
    assert table.loc[(3, "gene S0"), "f1"] > 0.5
    singles = table.loc[3].loc[names[2:], "f1"]
    mean = results["tokens"].set_index("layer").loc[3]
    np.testing.assert_allclose(mean["tokens"], singles.mean())
    np.testing.assert_allclose(mean["cls"], table.loc[(3, "cls"), "f1"])


def test_transfer_between_tokens(adata):
    """On its own readout a probe is itself; on another it is tested with that readout's states."""
    source = toy_source(cls=True)
    results = quiet(adata, source, "kind", positions=[2], shrinkage=0.1)
    transfer = results["transfer"].set_index(["layer", "trained_on", "tested_on"])["f1"]
    table = results["table"].set_index(["layer", "readout"])["f1"]
    for (layer, readout), f1 in table.items():
        assert transfer.loc[layer, readout, readout] == f1
    labels = {"kind": scfast.tl._labels.label_cells(adata.obs, "kind")}
    design = make_design(adata, labels, np.arange(150), None, 5, 2000, 0)
    cls, mean = (embedded(adata, source, pool, 2) for pool in ("cls", "mean"))
    predicted = np.zeros(150, dtype=int)
    for fold in range(5):
        train, test = design.folds != fold, design.folds == fold
        fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(
            cls[train], design.codes[0, train]
        )
        predicted[test] = fitted.predict(mean[test])
    expected = f1_score(design.codes[0], predicted, average="macro")
    np.testing.assert_allclose(transfer.loc[2, "cls", "mean"], expected, atol=1e-9)


def test_several_labels_at_once_are_each_alone(adata):
    """Labels share the second moments of cells that have both; results are those of one label at a time."""
    source = toy_source(cls=True)
    both = quiet(adata, source, ["kind", "sex"], replicate_key="donor")["table"]
    alone = quiet(adata, source, "kind", replicate_key="donor")["table"]
    mine = both[both["label"] == "kind"].reset_index(drop=True)
    np.testing.assert_allclose(mine["f1"], alone["f1"], atol=1e-12)


def test_batches_and_blocks_do_not_matter(adata):
    source = toy_source(cls=True)
    large = quiet(adata, source, "kind")
    small = quiet(adata, source, "kind", memory="700KB", key_added="small")
    assert small["params"]["plan"]["batches"] > large["params"]["plan"]["batches"]
    np.testing.assert_allclose(large["table"]["f1"], small["table"]["f1"], atol=1e-9)


def test_what_is_kept_does_not_grow_with_the_cells():
    sizes = []
    for n in (200, 2000):
        codes = np.arange(n)[None] % 3
        folds = make_folds(codes, None, 5, np.random.default_rng(0))
        sample = take_sample(codes, folds, 100, np.random.default_rng(0))
        design = scfast.tl._probes.Design({"a": ("x", "y", "z")}, codes, codes, folds, sample, 5)
        analyses = design.analyses(4, 16)
        sizes.append(sum(sum(array.nbytes for array in x.sums.values()) for x in analyses.values()))
        assert len(sample) == 100
    assert sizes[0] == sizes[1]


def test_folds_and_sample():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.choice(3, 600, p=[0.9, 0.08, 0.02]), rng.choice(2, 600)])
    codes[:, :20] = -1
    folds = make_folds(codes, None, 5, rng)
    assert (folds[:20] == -1).all()
    for of_label in codes:
        for code in range(of_label.max() + 1):
            sizes = np.bincount(folds[of_label == code], minlength=5)
            assert sizes.max() - sizes.min() <= 2 * len(np.unique(codes, axis=1).T)
    donors = rng.choice(11, 600)
    folds = make_folds(codes, donors, 5, rng)
    for donor in range(11):
        assert len(set(folds[(donors == donor) & (folds >= 0)])) == 1
    sample = take_sample(codes, folds, 100, rng)
    assert len(np.unique(sample)) == len(sample)
    assert 100 <= len(sample) <= 140
    assert (folds[sample] >= 0).all()
    rare = (codes[0] == 2).sum()
    assert (codes[0, sample] == 2).sum() >= min(rare, 20)


def test_round_trip(adata, tmp_path):
    mine = adata.copy()
    mine.obs["sex"] = mine.obs["sex"].astype("category")
    results = quiet(mine, toy_source(), ["kind", "sex"], positions=[1], confirm="best")
    path = scfast.io.write_h5ad(mine, tmp_path / "cells.h5ad")
    read = scfast.io.read(path).uns["probe"]
    for name in ("table", "classes", "transfer", "tokens", "labels"):
        assert_same(read[name], results[name])


def damaged():
    source = toy_source(cls=True)
    source.weights = source.weights.clone()
    source.weights[1] = torch.nan
    return source


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        ("nowhere", {}, KeyError, "label='nowhere'"),
        ("same", {}, ValueError, "has one class, 'x'"),
        ([], {}, ValueError, "at least one column"),
        (["kind", "kind"], {}, ValueError, "none twice"),
        ("rare", {}, ValueError, r"fewer cells than folds=5 in 'b' \(3\)"),
        ("kind", {"folds": 1}, ValueError, "folds=1 must be"),
        ("kind", {"shrinkage": 0}, ValueError, "shrinkage=0 must lie above 0"),
        ("kind", {"shrinkage": "lw"}, ValueError, "shrinkage='lw'"),
        ("kind", {"n_sample": 2}, ValueError, "n_sample=2"),
        ("kind", {"confirm": "some"}, ValueError, "confirm='some'"),
        ("kind", {"layers": [9]}, ValueError, r"layers=\[9\]: toy has states 0 \(embeddings\) to 3"),
        ("kind", {"layers": [0, -4]}, ValueError, "none twice"),
        ("kind", {"readouts": ["max"]}, ValueError, "toy has cls and mean"),
        ("kind", {"readouts": []}, ValueError, "at least one place"),
        ("kind", {"positions": [0]}, ValueError, r"positions=\[0\]"),
        ("kind", {"positions": [1, 1]}, ValueError, "none twice"),
        ("kind", {"genes": ["X"]}, KeyError, "genes"),
        ("kind", {"replicate_key": "nowhere"}, KeyError, "replicate_key='nowhere'"),
        ("kind", {"replicate_key": "two"}, ValueError, "has 2 replicates and folds=5"),
        ("by_donor", {"replicate_key": "donor"}, ValueError, "in one fold of replicates only"),
        (
            "kind",
            {"memory": "100KB"},
            ValueError,
            r"Gram matrices of 16 x 16.* holds 4 pairs of layer and readout",
        ),
    ],
)
def test_errors(adata, labels, options, error, message):
    adata = adata.copy()
    adata.obs["same"] = "x"
    adata.obs["rare"] = ["b"] * 3 + ["a"] * 147
    adata.obs["two"] = ["a", "b"] * 75
    adata.obs["by_donor"] = np.where(adata.obs["donor"] == "d0", "first", "other")
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.probe(adata, toy_source(cls=True), labels, **{**QUICK, **options})
    assert_same(adata, before)


def test_states_that_are_nan(adata):
    with pytest.raises(ValueError, match=r"after layers \[2, 3\] are nan or infinite"):
        scfast.tl.probe(adata, damaged(), "kind", **QUICK)


def test_warnings_count(adata):
    adata = adata.copy()
    with pytest.warns(UserWarning, match=r"'sex'\] is empty for 22 of 150 cells"):
        scfast.tl.probe(adata, toy_source(cls=True), "sex", **QUICK)
    with pytest.warns(UserWarning, match="4 of 12 probes have cells of fewer than two classes"):
        scfast.tl.probe(adata, toy_source(cls=True), "kind", genes=["G3"], **QUICK)
    assert adata.uns["probe"]["table"].query("readout == 'gene G3'")["f1"].isna().all()


def test_without_cls(adata):
    results = quiet(adata, toy_source(), "kind")
    assert results["table"]["readout"].unique().tolist() == ["mean"]
    with pytest.raises(ValueError, match="toy has mean"):
        scfast.tl.probe(adata, toy_source(), "kind", readouts=["cls"], **QUICK)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_geneformer_of_random_weights(cells, folders, name):
    """Twelve cells by four of three kinds, all layers and both readouts."""
    cells = anndata.concat([cells, cells], index_unique="-")
    cells.var["symbol"] = cells.var_names
    scfast.tl.probe(cells, f"geneformer:{folders[name]}", "celltype", folds=2, **QUICK)
    results = cells.uns["probe"]
    assert (results["table"]["test"] == 18).all()
    assert results["table"]["f1"].max() > 0.3
