"""scfast grn and scfast grn-score: one after the other, files and words."""

from __future__ import annotations

import json

import networkx
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


@pytest.mark.parametrize("name", ["grn", "grn-score"])
def test_help_teaches_by_example(name):
    text = invoke(name, "--help").output
    assert text.count(f"scfast {name} ") >= 3
