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


def test_errors_are_one_line(cells, tmp_path, capsys):
    (tmp_path / "sets.gmt").write_text("no tab\n")
    line = failure(capsys, "enrich", cells, "--gene-sets", tmp_path / "sets.gmt", "-o", tmp_path)
    assert "line 1 has no tab" in line
    (tmp_path / "a.csv").write_text("a,b,c\n")
    line = failure(capsys, "prevalence", cells, "--clusters", tmp_path / "a.csv", "-o", tmp_path)
    assert "has 3 columns" in line
