"""What networks, their scores and trainings refuse: what was got, what to do; and adata as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfast
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

REFERENCE = {"G0": ["G1", "G2", "G9"], "G4": ["G1", "G11"]}


def networks(adata: ad.AnnData, **options: Any) -> None:
    given = {"min_cells": 1, "n_blocks": 3, "backend": BACKEND, "progress": False, **options}
    scfast.tl.grn(adata, given.pop("model", None) or toy_source(), **given)


def scores(adata: ad.AnnData, **options: Any) -> None:
    given = {"reference": REFERENCE, "key": "mine", "n_null": 2, **options}
    scfast.tl.grn_score(adata, given.pop("reference"), **given)


def programs(adata: ad.AnnData, **options: Any) -> None:
    scfast.tl.gene_programs(adata, **options)


def refused(
    call: Callable[..., None], adata: ad.AnnData, error: type[Exception], says: str, **options: Any
) -> None:
    before = adata.copy()
    with pytest.raises(error, match=says):
        call(adata, **options)
    assert_same(adata, before)


def named(**columns: list[str]) -> ad.AnnData:
    adata = toy_adata()
    for name, values in columns.items():
        adata.obs[name] = np.resize(values, adata.n_obs)
    return adata


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sources": ["TP53", "MYC"]}, KeyError, r"sources: none of \['TP53', 'MYC'\].*gene_symbols="),
        ({"sources": "TP53"}, KeyError, r"sources: none of \['TP53'\]"),
        ({"gene_symbols": "name"}, KeyError, "gene_symbols='name' is not in adata.var"),
        ({"min_cells": None}, ValueError, "min_cells=None must be a whole number, 1 or more"),
        ({"n_blocks": 1}, ValueError, "n_blocks=1 must be a whole number, 2 or more"),
        ({"layers": 1.5}, TypeError, "layers=1.5 are no numbers of layers"),
        ({"heads": ["first"]}, TypeError, r"heads=\['first'\] are no numbers of heads"),
        ({"weights": np.full((3, 2), np.nan)}, ValueError, "weights have the shape"),
        ({"groupby": "type", "compare": ("T", "T")}, ValueError, "name two of the groups"),
        ({"groupby": "batch"}, KeyError, "groupby='batch' is not in adata.obs"),
        ({"replicate_key": "batch"}, KeyError, "replicate_key='batch' is not in adata.obs"),
        ({"counts_layer": "raw"}, KeyError, "counts_layer='raw' is not in adata.layers"),
        ({"key_added": "a/b"}, ValueError, "must be a name without"),
        ({"model": "geneformer"}, TypeError, "is not a model"),
    ],
)
def test_arguments_of_networks(options: dict[str, Any], error: type[Exception], says: str) -> None:
    refused(networks, toy_adata(), error, says, **options)


def test_values_of_cells() -> None:
    adata = toy_adata()
    adata.X = sparse.csr_matrix(adata.X.toarray() + 0.25)
    refused(networks, adata, ValueError, "look log-normalised .*pp.recover_counts")
    adata = toy_adata()
    adata.X.data[3] = np.nan
    refused(networks, adata, ValueError, "holds nan values; raw counts are needed")
    adata.X.data[3] = -1
    refused(networks, adata, ValueError, "holds negative values")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_names_of_genes() -> None:
    adata = toy_adata()
    adata.var_names = [f"G{max(i, 1)}" for i in range(adata.n_vars)]
    refused(networks, adata, ValueError, r"not unique \(G1\).*var_names_make_unique")
    adata = toy_adata()
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    says = "no cell has a gene of toy's vocabulary: adata.var_names hold 'ENSG0'.*the vocabulary 'G39'"
    refused(networks, adata, ValueError, says)


def test_names_that_are_left_out_are_said() -> None:
    adata = toy_adata()
    adata.X = adata.X.multiply(np.arange(40) != 5).tocsr()
    with pytest.warns(UserWarning, match="are left out") as seen:
        networks(adata, sources=["G0", "TP53", "G5", "G4"])
    assert [str(warning.message) for warning in seen] == [
        "1 of 4 names in sources= are not among the names of the genes and are left out: TP53",
        "1 of 4 names in sources= have a token in fewer than min_cells=1 cells and are left out: G5",
    ]
    assert list(adata.uns["grn"]["sources"]) == ["G0", "G4"]


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (["all", "T"], "a group is called 'all'"),
        (["se", "T"], "a group is called 'se'"),
        (["T", "T_se"], "a group is called 'T_se'"),
        (["B/a", "B|a"], "differ only by"),
    ],
)
def test_names_of_groups(groups: list[str], says: str) -> None:
    refused(networks, named(kind=groups), ValueError, says, groupby="kind")


def test_a_group_called_as_the_comparison_is_refused_at_once() -> None:
    adata = named(kind=["change", "T"])
    refused(
        networks, adata, ValueError, "a group is called 'change'", groupby="kind", compare=("change", "T")
    )
    networks(adata, groupby="kind")
    assert {"grn_change", "grn_change_se"} < adata.varp.keys()


def test_groups_without_errors() -> None:
    adata = named(kind=["T"], donor=["one", "two"])
    adata.obs.iloc[0, adata.obs.columns.get_loc("kind")] = "rare"
    refused(networks, adata, ValueError, "groupby='kind': rare has a single cell.*remove it", groupby="kind")
    adata.obs.loc[adata.obs["donor"] == "one", "kind"] = "rare"
    says = "T, rare have each a single replicate.*leave replicate_key= out"
    refused(networks, adata, ValueError, says, groupby="kind", replicate_key="donor")
    refused(networks, toy_adata()[:1].copy(), ValueError, "adata has a single cell.*give more cells")


def with_network() -> ad.AnnData:
    adata = toy_adata(60)
    adata.varp["mine"] = sparse.csr_matrix(np.random.default_rng(0).random((40, 40)))
    return adata


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"reference": {"TP53": ["MDM2"]}}, ValueError, "no edge between two of the network's 40 genes"),
        ({"reference": {"G0": ["G0"]}}, ValueError, "no edge between two of the network's 40 genes"),
        (
            {"reference": pd.DataFrame({"TF": ["G0"]})},
            ValueError,
            "has no column 'source' and no column 'target'",
        ),
        ({"reference": pd.DataFrame({"source": ["G0"], "target": [np.nan]})}, ValueError, "holds no edge"),
        ({"key": "other"}, KeyError, "key='other' is not in adata.varp.*run scfast.tl.grn first"),
        ({"gene_symbols": "name"}, KeyError, "gene_symbols='name' is not in adata.var"),
        ({"n_null": 0}, ValueError, "n_null=0 must be"),
    ],
)
def test_arguments_of_scores(options: dict[str, Any], error: type[Exception], says: str) -> None:
    refused(scores, with_network(), error, says, **options)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_networks_that_cannot_be_scored() -> None:
    adata = with_network()
    adata.varp["mine"].data[7] = np.nan
    refused(scores, adata, ValueError, "holds nan")
    adata.varp["mine"] = sparse.csr_matrix((40, 40))
    refused(scores, adata, ValueError, "holds no edge")
    adata = toy_adata(60)
    networks(adata)
    fewer = adata[:, :-2].copy()
    refused(
        scores, fewer, KeyError, "genes of the networks 'grn' are no longer in adata.var_names", key="grn"
    )
    fewer.var_names = ["G0", *fewer.var_names[1:-1], "G0"]
    refused(scores, fewer, ValueError, r"not unique \(G0\)", key="grn")


def states(n: int = 30) -> ad.AnnData:
    adata = ad.AnnData(np.ones((2, n), np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(n)]))
    draws = np.random.default_rng(0).normal(size=(1, n, 4)).astype(np.float32)
    names = adata.var_names.astype(str).to_numpy(dtype=str)
    adata.uns["similarity"] = {"genes": {"names": names, "layers": [2], "states": draws}}
    return adata


def test_programs_of_genes_that_are_gone() -> None:
    adata = states()
    refused(programs, adata, ValueError, "must be above 0, and -0.3 is the least", threshold=-0.3)
    refused(programs, adata, ValueError, "must be above 0.*lower share=", share=0.9)
    refused(
        programs,
        adata[:, :20].copy(),
        KeyError,
        "10 of the 30 genes of the states of 'similarity' are no longer",
    )


def test_agreement_of_programs_looks_at_the_genes_of_the_graphs() -> None:
    """Genes that could be in no program say nothing of whether two clusterings agree."""
    from sklearn.metrics import adjusted_rand_score

    few, many = states(), ad.AnnData(np.ones((2, 400), np.float32))
    many.var_names = [f"G{i}" for i in range(400)]
    many.uns["similarity"] = few.uns["similarity"]
    found = []
    for adata in (few, many):
        adata.varp["one"] = adata.varp["two"] = sparse.csr_matrix(np.eye(adata.n_vars, k=1))
        for name, threshold in (("a", 0.3), ("b", 0.8)):
            programs(adata, threshold=threshold, min_genes=1, key_added=name)
        scfast.tl.grn_agreement(adata, ["one", "two"], programs=["a", "b"])
        found.append(adata.uns["grn_consensus"]["pairs"].loc[0, "programs"])
    codes = [few.var[name].cat.codes for name in "ab"]
    assert found == [pytest.approx(adjusted_rand_score(*codes))] * 2
    assert found[0] < 0.9


@pytest.mark.parametrize("tool", ["train_bioformers", "train_perturbation"])
@pytest.mark.parametrize(
    ("value", "says"), [(0.5, "recover them with scfast.pp.recover_counts"), (np.nan, "nan")]
)
def test_trainings_want_counts(tool: str, value: float, says: str, tmp_path: Any) -> None:
    adata = named(gene=["control", "G1", "G2", "G1+G2"])
    adata.X.data[:2] = value
    options = {"perturbation": "gene"} if tool == "train_perturbation" else {}
    refused(
        lambda cells: getattr(scfast.tl, tool)(cells, tmp_path, genes="all", progress=False, **options),
        adata, ValueError, says,
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
