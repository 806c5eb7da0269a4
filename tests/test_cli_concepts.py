"""``scfast enrich`` and ``scfast prevalence`` on what ``scfast run`` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import scfast
from tests import test_cli
from tests.test_cli import failure, invoke
from tests.toy import BACKEND, toy_adata, toy_source

data, model = test_cli.data, test_cli.model  # a small model, and cells for it


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    adata = toy_adata(30)
    for key, seed in (("rollout", 0), ("other", 7)):
        scfast.tl.rollout(adata, toy_source(seed=seed), groupby="type", key_added=key, backend=BACKEND)
    return scfast.io.write_h5ad(adata, tmp_path_factory.mktemp("scored") / "cells.h5ad")


def test_enrich(cells, tmp_path):
    (tmp_path / "sets.gmt").write_text("ONE\tx\tS1\tS2\tS4\nTWO\tx\tS5\tS6\n")
    out = tmp_path / "out"
    options = ["--gene-sets", tmp_path / "sets.gmt", "--gene-symbols", "symbol", "--top", 8, "-o", out]
    events = [json.loads(line) for line in invoke("enrich", cells, *options, "--json").splitlines()]
    assert {event["gene_set"] for event in events if event["event"] == "set"} == {"ONE", "TWO"}
    table = pd.read_csv(out / "enrich_table.csv")
    assert len(table) == 6
    assert (out / "enrich.png").stat().st_size > 5000
    assert "enrich" in scfast.io.read(out / "cells.h5ad").uns
    text = invoke("enrich", cells, *options, "--text")
    assert "Gene sets among the top 8 genes" in text
    assert "B/plasma" in text


def test_prevalence(cells, tmp_path):
    lines = ["gene,cluster", *(f"G{i},program {i % 3}" for i in range(30))]
    (tmp_path / "programs.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    few = ["--n-bootstrap", 20, "--n-permutations", 20]
    options = ["--clusters", tmp_path / "programs.csv", "--key", "rollout", "--key", "other", "-o", out, *few]
    text = invoke("prevalence", cells, *options, "--text")
    assert "Share of attention less share of genes" in text
    table = pd.read_csv(out / "prevalence_table.csv")
    assert len(table) == 2 * 3 * 4
    assert (out / "prevalence.png").stat().st_size > 5000


@pytest.mark.filterwarnings("ignore:.*probes have cells of fewer than two classes")
def test_probe(data, model, tmp_path):
    options = ["--model", f"geneformer:{model}", "--analysis", "probe", "-o", tmp_path / "out"]
    more = ["--labels", "cell_type,donor", "--positions", "1,3", "--folds", 3]
    events = [json.loads(line) for line in invoke("run", data, *options, *more, "--json").splitlines()]
    assert {event["label"] for event in events if event["event"] == "probe"} == {"cell_type", "donor"}
    assert "probes of cell_type,donor" in events[0]["analysis"]
    table = pd.read_csv(tmp_path / "out" / "probes.csv")
    assert set(table["readout"]) >= {"mean", "position 1", "position 3"}
    assert (tmp_path / "out" / "probe.png").stat().st_size > 5000
    assert "Macro-F1 of held-out cells" in invoke("run", data, *options, *more, "--text")


def test_probe_needs_labels_and_places(data, model, tmp_path, capsys):
    options = ["--model", f"geneformer:{model}", "--analysis", "probe", "-o", tmp_path / "out"]
    assert "--analysis probe needs --labels" in failure(capsys, "run", data, *options)
    line = failure(capsys, "run", data, *options, "--labels", "donor", "--positions", "first")
    assert "--positions first must be places" in line
    line = failure(capsys, "run", data, *options[:2], "--folds", 3, "-o", tmp_path / "out")
    assert "--folds means nothing to --analysis rollout" in line


def test_similarity(data, model, tmp_path):
    out = tmp_path / "out"
    options = [
        "--model",
        f"geneformer:{model}",
        "--analysis",
        "similarity",
        "-o",
        out,
        "--groupby",
        "cell_type",
    ]
    more = ["--genes", "0,1,2,3,4,5", "--cell", "7"]
    events = [json.loads(line) for line in invoke("run", data, *options, *more, "--json").splitlines()]
    assert [event["layer"] for event in events if event["event"] == "tokens"] == [0, 1, 2]
    assert {event["group"] for event in events if event["event"] == "group"} == {"B", "T/NK"}
    tokens = pd.read_csv(out / "tokens.csv")
    assert set(tokens["group"]) == {"B", "T/NK", "all"}
    assert len(pd.read_csv(out / "layers.csv")) == 6
    assert len(pd.read_csv(out / "nearest_genes.csv")) == 3 * 6 * 5
    for name in ("layers", "token_similarity", "gene_similarity", "cell_similarity"):
        assert (out / f"{name}.png").stat().st_size > 5000
    text = invoke("run", data, *options, "--genes", "all", "--text")
    assert "Blocks of layers" in text
    assert "Mean cosine of two tokens of a cell" in text
    assert "Most similar genes" in text


def test_layers_report(data, model, tmp_path, capsys):
    out, again = tmp_path / "out", ["--against", f"geneformer:{model}"]
    options = ["--model", f"geneformer:{model}", "--analysis", "layers_report", "-o", out]
    more = ["--labels", "cell_type", "--folds", 3, *again]
    events = [json.loads(line) for line in invoke("run", data, *options, *more, "--json").splitlines()]
    assert [event["layer"] for event in events if event["event"] == "layer"] == [1, 2]
    table = pd.read_csv(out / "layers_report.csv")
    assert {"change", "gain_cell_type", "shift", "candidate"} <= set(table)
    assert (table["shift"].abs() < 1e-5).all()  # a model and itself
    assert pd.read_csv(out / "gain_stops.csv")["label"].tolist() == ["cell_type"]
    assert (out / "layers.png").stat().st_size > 5000
    text = invoke("run", data, *options, "--text")
    assert "What each layer adds" in text
    line = failure(capsys, "run", data, *options, *again, *again)
    assert "takes one --against" in line
    line = failure(capsys, "run", data, *options, "--cell", "7")
    assert "--cell means nothing to --analysis layers_report; it belongs to similarity" in line


def test_errors_are_one_line(cells, tmp_path, capsys):
    (tmp_path / "sets.gmt").write_text("no tab\n")
    line = failure(capsys, "enrich", cells, "--gene-sets", tmp_path / "sets.gmt", "-o", tmp_path)
    assert "line 1 has no tab" in line
    (tmp_path / "a.csv").write_text("a,b,c\n")
    line = failure(capsys, "prevalence", cells, "--clusters", tmp_path / "a.csv", "-o", tmp_path)
    assert "has 3 columns" in line
