import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfast

QUICK = {"epochs": 1, "batch_tokens": 400, "progress": False, "lr": 1e-3}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    rates = np.full((60, 25), 0.8)
    rates[::3, :8] = 4
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(25)]
    adata.obs_names = [f"cell{i}" for i in range(60)]
    adata.obs["kind"] = pd.Categorical(["x", "y", "y"] * 20)
    adata.obs["dose"] = np.tile([0.0, 1.25, 2.5, 12.5, 25.0], 12)
    adata.obs["drug"] = ["Nutlin", "DMSO"] * 30
    adata.obs["donor"] = np.repeat([f"d{i}" for i in range(6)], 10)
    adata.obs["holes"] = pd.Series(["a", "b", None] * 20, index=adata.obs_names, dtype=object)
    return adata


@pytest.fixture(scope="module")
def model(adata, tmp_path_factory) -> scfast.models.AttentionSource:
    folder = tmp_path_factory.mktemp("base")
    scfast.tl.pretrain(adata, folder, steps=2, batch_tokens=400, progress=False)
    return scfast.models.load("geneformer", folder)


def parts_of(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", index_col="cell")


def test_the_split_is_stratified_and_counted(adata, model, tmp_path):
    log = scfast.tl.finetune(adata, tmp_path, model=model, label="kind", **QUICK)
    assert log["cells"] == {
        "train": {"x": 14, "y": 29},
        "validation": {"x": 2, "y": 3},
        "test": {"x": 4, "y": 8},
    }
    written = parts_of(tmp_path)
    counted = written.groupby("part")["label"].value_counts().unstack().loc[list(log["cells"])]
    assert counted.to_dict("index") == log["cells"]
    assert set(written.index) == set(adata.obs_names)
    assert log["settings"]["class_weights"] == pytest.approx([43 / 28, 43 / 58])
    assert log["vocabulary"]["data_genes_known"] == 25
    assert log["left_out"] == {"where": 0, "label missing": 0, "no gene of the vocabulary": 0}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("options", "disjoint"),
    [
        ({}, ("train", "validation", "test")),
        ({"test_groups": ["d1", "d4"]}, ("train", "validation", "test")),
        ({"test_groups": ["d1"], "validate_within": True}, ("train", "test")),
        ({"validate_within": True, "test": 0.4}, ("train", "test")),
    ],
)
def test_no_group_is_on_both_sides(adata, model, tmp_path, options, disjoint, seed):
    log = scfast.tl.finetune(
        adata, tmp_path, model=model, label="kind", group="donor", seed=seed, freeze="all", **options, **QUICK
    )
    written = parts_of(tmp_path).assign(donor=adata.obs["donor"])
    donors = {part: set(cells["donor"]) for part, cells in written.groupby("part")}
    for part in donors:
        assert donors[part] == set(log["groups"][part])
    for one in disjoint:
        assert all(one == other or not donors[one] & donors[other] for other in disjoint)
    assert donors["test"] == set(options.get("test_groups", donors["test"]))


def test_where_and_recode_choose_the_cells_and_their_classes(adata, model, tmp_path):
    log = scfast.tl.finetune(
        adata, tmp_path, model=model, label="dose", where="drug == 'Nutlin'",
        recode={"low": ["0", "1.25"], "high": [25]}, class_weights={"low": 1, "high": 2}, **QUICK,
    )  # fmt: skip
    written = parts_of(tmp_path).join(adata.obs)
    assert set(written["drug"]) == {"Nutlin"}
    assert set(written["dose"][written["label"] == "low"]) == {0.0, 1.25}
    assert set(written["dose"][written["label"] == "high"]) == {25.0}
    assert log["settings"]["classes"] == ["low", "high"]
    assert log["settings"]["class_weights"] == [1.0, 2.0]
    assert log["left_out"]["where"] == 30
    assert log["left_out"]["not recoded"] == 12


def test_cells_without_a_label_are_left_out_and_told(adata, model, tmp_path):
    with pytest.warns(UserWarning, match="'holes'.* is empty for 20 of 60 cells; they are left out"):
        log = scfast.tl.finetune(adata, tmp_path, model=model, label="holes", **QUICK)
    assert log["left_out"]["label missing"] == 20
    assert len(parts_of(tmp_path)) == 40


def test_cells_without_a_known_gene_are_left_out_and_told(adata, model, tmp_path):
    emptied = adata.copy()
    emptied.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(60) >= 3)[:, None])
    with pytest.warns(UserWarning, match="3 of 60 cells express no gene"):
        log = scfast.tl.finetune(emptied, tmp_path, model=model, label="kind", **QUICK)
    assert log["left_out"]["no gene of the vocabulary"] == 3
    assert "cell0" not in parts_of(tmp_path).index


def test_the_model_that_was_given_is_left_as_it_is(adata, model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.encoder.tensors.items()}
    scfast.tl.finetune(adata, tmp_path / "a", model=model, label="kind", **QUICK)
    assert all((model.encoder.tensors[name] == tensor).all() for name, tensor in before.items())
    tuned = scfast.models.load("geneformer", tmp_path / "a")
    assert tuned.tokenize(adata.X, adata.var).ids.equal(model.tokenize(adata.X, adata.var).ids)


def test_a_published_v2_checkpoint_keeps_its_dictionaries(tmp_path):
    from tests.models import fixtures

    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, size=(30, 40)).astype(np.float32)))
    adata.var_names = list(fixtures.SYMBOLS)
    adata.obs["kind"] = ["a", "b"] * 15
    fixtures.write_v2(tmp_path / "base")
    log = scfast.tl.finetune(
        adata, tmp_path / "tuned", model=f"geneformer:{tmp_path / 'base'}", label="kind", **QUICK
    )
    base, tuned = (scfast.models.load("geneformer", tmp_path / name) for name in ("base", "tuned"))
    assert tuned.version == "V2"
    assert tuned.dictionaries.gene_names == base.dictionaries.gene_names
    assert tuned.dictionaries.ensembl_mapping == base.dictionaries.ensembl_mapping
    assert tuned.tokenize(adata.X, adata.var).ids.equal(base.tokenize(adata.X, adata.var).ids)
    assert log["vocabulary"]["data_genes_known"] == 40
    assert tuned.hf().config.attention_probs_dropout_prob == 0.0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"label": "colour"}, KeyError, "label='colour' is not in adata.obs, which has ['kind'"),
        (
            {"label": "drug", "where": "drug == 'DMSO'"},
            ValueError,
            "label='drug' has one class, 'DMSO', among the 30",
        ),
        ({"where": "drug == 'x'"}, ValueError, "holds for none of the 60 cells"),
        ({"where": "__import__('os')"}, ValueError, "is refused: it holds a function call"),
        (
            {"label": "dose", "recode": {"low": [0, 1.25], "high": [1.25, 25]}},
            ValueError,
            "1.25 of 'dose' in 'low' and in",
        ),
        (
            {"label": "dose", "recode": {"low": [0, 0], "high": [25]}},
            ValueError,
            "names the value 0 of 'dose' twice",
        ),
        (
            {"label": "dose", "recode": {"low": [0], "high": [26]}},
            ValueError,
            "no chosen cell has 'dose' = 26 (class 'high'); there are 0.0, 1.25",
        ),
        (
            {"label": "dose", "recode": {"low": [0], "high": ["much"]}},
            ValueError,
            "holds numbers, and 'much' is none",
        ),
        ({"label": "dose", "recode": {"low": [0], "high": []}}, ValueError, "class 'high' no value"),
        ({"label": "dose", "recode": {"low": [0]}}, ValueError, "has one class, 'low'"),
        (
            {"label": "donor", "where": "donor == 'd1' or dose == 25", "group": "drug"},
            ValueError,
            "take the validation cells from it with validate_within",
        ),
        ({"group": "donor", "where": "donor == 'd1'"}, ValueError, "there is one group, 'd1'"),
        ({"group": "nowhere"}, KeyError, "group='nowhere' is not in adata.obs"),
        ({"group": "holes"}, ValueError, "adata.obs['holes'] is empty for 20 cells"),
        (
            {"group": "donor", "test_groups": ["d9"]},
            KeyError,
            "test_groups=['d9']: there are groups ['d0', 'd1'",
        ),
        ({"group": "donor", "test_groups": [f"d{i}" for i in range(6)]}, ValueError, "are all groups"),
        ({"test_groups": ["d1"]}, ValueError, "needs group="),
        ({"group": "kind", "test_groups": ["x"], "validate_within": True}, ValueError, "of class 'x' (0)"),
        (
            {"label": "donor", "where": "donor == 'd1' or (donor == 'd2' and dose == 0)"},
            ValueError,
            "fewer than 3 cells of class 'd2' (2)",
        ),
        ({"class_weights": "heavy"}, ValueError, "class_weights='heavy': use 'balanced', None"),
        ({"class_weights": {"x": 1.0}}, ValueError, "name ['x']; the classes are ['x', 'y']"),
        ({"class_weights": {"x": 1.0, "y": 0.0}}, ValueError, "must be positive and finite; got {'y': 0.0}"),
        ({"freeze": 3}, ValueError, "0 to 2 in this model"),
        ({"test": 1.0}, ValueError, "test must lie between 0 and 1"),
        ({"epochs": 0}, ValueError, "epochs must be positive; got 0"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"counts_layer": "nowhere"}, KeyError, "counts_layer='nowhere'"),
        ({"model": "geneformer"}, TypeError, "is not a model"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(adata, model, tmp_path, arguments, kind, message):
    with pytest.raises(kind) as mistake:
        scfast.tl.finetune(adata, tmp_path / "out", **{"model": model, "label": "kind", **QUICK, **arguments})
    assert message in mistake.value.args[0]
    assert not (tmp_path / "out").exists()


def test_half_precision_is_refused(adata, model, tmp_path):
    import torch

    folder = tmp_path / "base"
    scfast.tl.pretrain(adata, folder, steps=1, batch_tokens=400, progress=False)
    half = scfast.models.load("geneformer", folder, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="load it in float32"):
        scfast.tl.finetune(adata, tmp_path / "out", model=half, label="kind", **QUICK)


def test_progress_is_reported(adata, model, tmp_path, capsys):
    seen: list[dict[str, float]] = []
    options = {**QUICK, "epochs": 2, "model": model, "label": "kind"}
    scfast.tl.finetune(adata, tmp_path / "a", **{**options, "progress": seen.append})
    assert [entry["epoch"] for entry in seen] == [1, 2]
    scfast.tl.finetune(adata, tmp_path / "b", **{**options, "progress": True})
    assert capsys.readouterr().out.count("validation loss") == 2
