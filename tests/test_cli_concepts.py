"""``scfast enrich`` and ``scfast prevalence`` on what ``scfast run`` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import scfast
from tests.test_cli import failure, invoke
from tests.toy import BACKEND, toy_adata, toy_source


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


def test_errors_are_one_line(cells, tmp_path, capsys):
    (tmp_path / "sets.gmt").write_text("no tab\n")
    line = failure(capsys, "enrich", cells, "--gene-sets", tmp_path / "sets.gmt", "-o", tmp_path)
    assert "line 1 has no tab" in line
    (tmp_path / "a.csv").write_text("a,b,c\n")
    line = failure(capsys, "prevalence", cells, "--clusters", tmp_path / "a.csv", "-o", tmp_path)
    assert "has 3 columns" in line
