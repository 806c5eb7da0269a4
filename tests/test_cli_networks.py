"""scfast grn and scfast grn-score: one after the other, files and words."""

from __future__ import annotations

import json

import networkx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from scfast.cli import cli
from scfast.models.bioformers import create
from tests.toy import toy_adata


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    adata = toy_adata(40)
    create(list(adata.var_names[:20]), seed=1).save(folder / "model")
    adata.write_h5ad(folder / "cells.h5ad")
    (folder / "reference.tsv").write_text(
        "S0\tS1\tActivation\t1\nS0\tS2\tRepression\t2\nS3\tS9\tUnknown\t3\n"
    )
    return folder


def invoke(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_networks_and_their_scores(cells, tmp_path):
    done = invoke(
        "grn", cells / "cells.h5ad", "--model", f"bioformers:{cells / 'model'}", "--groupby", "type", "--compare",
        "T,Mono", "--min-cells", 2, "--gene-symbols", "symbol", "--sources", "S0,S1,S3", "--keep-blocks", "-o",
        tmp_path / "out", "--text",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in ("Largest changes, Mono less T", "was not given (training=)", "grn_change.graphml"):
        assert words in done.output
    table = pd.read_csv(tmp_path / "out" / "grn_networks.csv")
    assert list(table["network"]) == ["all", "B/plasma", "Mono", "T"]
    graph = networkx.read_graphml(tmp_path / "out" / "grn.graphml")
    assert {source for source, _ in graph.edges} == {"S0", "S1", "S3"}
    assert (tmp_path / "out" / "grn.png").stat().st_size > 5000

    done = invoke(
        "grn-score", tmp_path / "out" / "cells.h5ad", "--reference", cells / "reference.tsv", "--gene-symbols",
        "symbol", "--null", 5, "-o", tmp_path / "score", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    last = json.loads(done.output.strip().splitlines()[-1])
    assert any("adds nothing" in sentence or "is better" in sentence for sentence in last["verdict"])
    assert len(pd.read_csv(tmp_path / "score" / "grn_score_table.csv")) == 15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compare", "T"], "names 1 groups"),
        (["--layers", "a"], "are no numbers"),
        (["--layers", "9"], "do not all exist"),
        (["--groupby", "batch"], "groupby='batch' is not in adata.obs"),
    ],
)
def test_what_is_refused(cells, tmp_path, arguments, says):
    done = invoke(
        "grn", cells / "cells.h5ad", "--model", f"bioformers:{cells / 'model'}", "-o", tmp_path, *arguments
    )
    assert done.exit_code != 0
    assert says in (done.output + str(done.exception))


def spoilt(cells, how):
    """The cells with something wrong, in a file."""
    adata = toy_adata(40)
    if how == "nan":
        adata.X.data[5] = np.nan
    elif how == "normalised":
        adata.X = adata.X.log1p()
    elif how == "vocabulary":
        adata.var_names = [f"ENSG{number}" for number in range(adata.n_vars)]
    elif how == "one cell":
        adata.obs["type"] = ["rare", *["common"] * 39]
    elif how == "one replicate":
        adata.obs["donor"] = "d1"
    path = cells / f"{how}.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("how", "arguments", "says"),
    [
        ("nan", [], "holds nan values; raw counts are needed"),
        ("normalised", [], "recover them with scfast.pp.recover_counts"),
        ("vocabulary", [], "no gene of the data is in the model's vocabulary"),
        ("one cell", ["--groupby", "type"], "rare has a single cell"),
        ("one replicate", ["--replicate-key", "donor"], "leave replicate_key= out"),
        ("as they are", ["--sources", "TP53,MYC"], "sources: none of ['TP53', 'MYC']"),
        ("as they are", ["--min-cells", "1000"], "lower min_cells="),
    ],
)
def test_cells_that_are_refused(cells, tmp_path, how, arguments, says):
    out = tmp_path / "out"
    done = invoke(
        "grn", spoilt(cells, how), "--model", f"bioformers:{cells / 'model'}", "-o", out, *arguments
    )
    assert done.exit_code != 0
    assert says in (done.output + str(done.exception))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("TP53\tMDM2\n", [], "no edge between two of the network's"),
        ("a b c\n", [], "cannot be told from the first line"),
        ("G0\tG1\n", ["--key", "other"], "is not in adata.varp"),
        ("G0\tG1\n", ["--gene-symbols", "name"], "gene_symbols='name' is not in adata.var"),
    ],
)
def test_references_that_are_refused(cells, tmp_path, text, arguments, says):
    adata = toy_adata(40)
    adata.varp["grn"] = np.random.default_rng(0).random((40, 40))
    adata.write_h5ad(cells / "scored.h5ad")
    (cells / "wrong.tsv").write_text(text)
    out = tmp_path / "out"
    reference = ["--reference", cells / "wrong.tsv"]
    done = invoke("grn-score", cells / "scored.h5ad", *reference, "-o", out, *arguments)
    assert done.exit_code != 0
    assert says in (done.output + str(done.exception))
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("bioformers", [], "recover them with scfast.pp.recover_counts"),
        (
            "perturbation",
            ["--perturbation", "donor", "--control", "d1"],
            "recover them with scfast.pp.recover_counts",
        ),
    ],
)
def test_trainings_that_are_refused(cells, tmp_path, command, arguments, says):
    done = invoke(
        "train", command, spoilt(cells, "normalised"), "-o", tmp_path / "out", "--genes", "all", *arguments
    )
    assert done.exit_code != 0
    assert says in (done.output + str(done.exception))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("held_out", "says"),
    [("d9", "held_out names 'd9', which no cell has"), ("d2", "'d2' is then never seen in training")],
)
def test_perturbations_that_cannot_be_held_out(cells, tmp_path, held_out, says):
    arguments = ["--perturbation", "donor", "--control", "d1", "--genes", "all", "--held-out", held_out]
    done = invoke("train", "perturbation", cells / "cells.h5ad", "-o", tmp_path / "out", *arguments)
    assert done.exit_code != 0
    assert says in (done.output + str(done.exception))


@pytest.mark.parametrize("name", ["grn", "grn-score"])
def test_help_teaches_by_example(name):
    text = invoke(name, "--help").output
    assert text.count(f"scfast {name} ") >= 3
