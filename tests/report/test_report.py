"""The report: what it holds, that hostile names stay text, and that nothing else is lost when it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scfast
import scfast.report
from scfast.cli.analyses import ANALYSES
from scfast.report import collect, content
from scfast.report.chapters import CHAPTERS, chapter_of
from scfast.report.page import render
from scfast.train.scores import classification_scores
from tests.toy import BACKEND, toy_adata, toy_source

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def cells():
    """Cells with the results of every tool that the toy model can run."""
    adata, model, other = toy_adata(40), toy_source(cls=True), toy_source(cls=True, seed=5)
    grouped = {"groupby": "type", "backend": BACKEND}
    scfast.tl.rollout(adata, model, null="untrained", **grouped)
    scfast.tl.received(adata, model, **grouped)
    scfast.tl.rollout_matrix(adata, model, genes=["G1", "G2"], **grouped)
    scfast.tl.rank_profile(adata, {"one": model, "other": other}, **grouped)
    scfast.tl.attention_shift(adata, model, other, **grouped)
    scfast.tl.key_genes(adata, model, **grouped)
    scfast.tl.similarity(adata, model, **grouped)
    scfast.tl.probe(adata, model, ["donor"], folds=3, backend=BACKEND)
    scfast.tl.layers_report(adata, group="T")
    scfast.tl.embed(adata, model, backend=BACKEND)
    scfast.tl.strongest_edges(adata, model, 3, backend=BACKEND)
    clusters = {f"G{i}": f"program {i % 3}" for i in range(30)}
    scfast.tl.prevalence(adata, clusters, n_bootstrap=20, n_permutations=20)
    scfast.tl.enrich(adata, {"ONE": ["G1", "G2", "G4"], "TWO": ["G5", "G6"]}, top=8)
    scfast.tl.grn(adata, model, backend=BACKEND)
    scfast.tl.regulator(adata, "G1")
    pairs = [(f"G{i}", f"G{j}") for i in range(12) for j in range(20) if i != j and (i + j) % 3 == 0]
    reference = pd.DataFrame(pairs, columns=["source", "target"])
    scfast.tl.grn_score(adata, reference, n_null=5)
    scfast.tl.compare_de(adata, key="rollout", top=[5])
    return adata


@pytest.fixture
def scored(cells):
    """The same cells with the results of one tool alone."""
    adata = cells.copy()
    adata.uns = {"rollout": cells.uns["rollout"]}
    return adata


@pytest.fixture(scope="module")
def made(cells):
    return scfast.report.make(cells, title="Toy")


def test_every_analysis_has_its_chapter(made):
    report, failures = made
    assert failures == []
    found = {"embed" if section.key == "X_toy" else section.key for section in report.sections}
    assert set(ANALYSES) <= set(CHAPTERS)
    assert found == set(CHAPTERS) - {
        "attention_norms",
        "relevance",
        "gene_programs",
    }  # which take other models: in test_cli.py
    for section in report.sections:
        assert section.meaning
        assert len(section.figures) == len(chapter_of(section.key).pictures), section.key
        assert section.asked, section.key


def test_chapters_speak_of_tables_and_columns_that_there_are(cells):
    optional = {"key_genes/highlight", "rank_profile/genes", "probe/tokens", "similarity/genes/neighbors"}
    optional |= {"attention_norms/norms", "grn/changes", "regulator/enrichment"}
    for key in set(cells.uns) & set(CHAPTERS):
        tables = dict(collect.tables_of(cells.uns[key]))
        for path, listing in CHAPTERS[key].tables.items():
            if f"{key}/{path}" in optional:
                continue
            assert path in tables, f"{key}/{path}"
            if listing.top is not None:
                named = {*listing.top.names, listing.top.value, *filter(None, [listing.top.error])}
                assert named <= set(tables[path]), f"{key}/{path}"
        titled = set(CHAPTERS[key].tables)
        assert set(tables) <= titled, f"{key}: {set(tables) - titled} have no words"


def test_every_group_has_its_digests(made, cells):
    report, _ = made
    assert set(report.groups) == set(cells.uns["rollout"]["groups"].index)
    titles = [digest.title for digest in report.groups["B/plasma"]]
    assert {
        "Attention rollout",
        "Attention received",
        "What genes read from",
        "Gene sets among the top genes",
    } <= set(titles)
    top = report.groups["B/plasma"][titles.index("Attention rollout")]
    table = cells.uns["rollout"]["table"]
    expected = table[table["group"] == "B/plasma"].head(collect.TOP)
    assert [bar.name for bar in top.bars] == list(expected["gene"])
    assert [bar.value for bar in top.bars] == list(expected["mean"])
    assert [bar.error for bar in top.bars] == list(expected["se"])
    assert max(bar.width for bar in top.bars) == 100
    assert list(top.columns) == ["expression", "detection", "untrained"]


def test_tables_hold_the_results_to_four_digits(made, cells):
    report, _ = made
    tables = {table.name: table for section in report.sections for table in section.tables}
    table, frame = tables["rollout-table"], cells.uns["rollout"]["table"]
    assert table.n_rows == table.n_shown == len(frame)
    column = table.columns.index("mean")
    np.testing.assert_allclose(table.values[column], frame["mean"], rtol=5e-4)
    assert table.values[table.columns.index("gene")] == list(frame["gene"].astype(str))


def test_large_tables_keep_the_first_rows_of_every_group(monkeypatch):
    monkeypatch.setattr(content, "MAX_VALUES", 12)
    frame = pd.DataFrame({"group": list("aaaaabbbbb"), "x": range(10)})
    table = content.Table.of("t", "", "", frame, "group")
    assert table.values == [["a"] * 3 + ["b"] * 3, [0, 1, 2, 5, 6, 7]]
    assert table.n_rows == 10
    assert content.Table.of("t", "", "", frame.drop(columns="group"), "group").n_shown == 10


def test_warnings_are_what_the_numbers_say():
    groups = pd.DataFrame(
        {
            "cells": [4, 400],
            "replicates": [0, 0],
            "lost_truncation": [0.0, 1203.4],
            "spearman_null": [0.95, 0.2],
        },
        index=pd.Index(["rare", "common"], name="group"),
    )
    found = " ".join(collect.warnings_of({"groups": groups}))
    assert "In 1 of 2 groups the ranking of all genes correlates with that of the untrained model" in found
    assert "Fewer than 10 cells: rare." in found
    assert "not between donors" in found
    assert "Up to 1,203 genes of a cell, in the mean over its group, are cut off" in found
    fine = pd.DataFrame({"cells": [50], "replicates": [3], "spearman_null": [0.1]}, index=["all"])
    assert collect.warnings_of({"groups": fine}) == []


def test_what_tools_say_of_their_results_comes_first(made, cells):
    report, _ = made
    notes = {section.key: section.warnings for section in report.sections}
    said = cells.uns["grn_score"]["verdict"].tolist()
    assert notes["grn_score"][: len(said)] == said
    assert notes["grn"][0] == cells.uns["grn"]["params"]["model_verdict"]
    several = pd.DataFrame({"group": ["NK", "NK", "B"], "cells": [3, 3, 40]})
    assert collect.warnings_of({"groups": several}) == ["Fewer than 10 cells: NK."]


def test_small_values_are_written_in_powers_of_ten(made):
    report, _ = made
    digests = [digest for group in report.groups.values() for digest in group]
    shares = next(digest for digest in digests if digest.title == "Attention rollout")
    assert shares.unit == "× 10⁻²"
    assert list(shares.scaled) == ["untrained"]
    assert all(0.01 * float(bar.text[0]) == pytest.approx(bar.value, rel=0.05) for bar in shares.bars)


def test_chapters_keep_their_order(made):
    report, _ = made
    titles = [chapter.title for chapter in CHAPTERS.values()]
    places = [titles.index(section.title.partition(":")[0]) for section in report.sections]
    assert places == sorted(places)


def test_hostile_names_stay_text(scored):
    adata = scored.copy()
    adata.uns = {
        HOSTILE: {
            "params": {HOSTILE: HOSTILE},
            "table": pd.DataFrame({HOSTILE: [HOSTILE], "group": [HOSTILE]}),
        }
    }
    report, failures = scfast.report.make(
        adata, title=HOSTILE, about={"command": HOSTILE, "warnings": [HOSTILE]}
    )
    assert failures == []
    page = render(report)
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page
    assert page.count("<script") == page.count("</script>") == 2
    payload = re.search(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert payload is not None
    assert json.loads(payload[1])["values"] == [[HOSTILE], [HOSTILE]]


def test_names_of_other_results_find_their_chapter():
    assert chapter_of("received by layer").title == "Attention received"
    assert chapter_of("attention_shift_2").title == CHAPTERS["attention_shift"].title
    assert chapter_of("rolloutish").meaning == ""


def test_from_a_folder_without_reading_counts(scored, tmp_path):
    scfast.io.write_h5ad(scored, tmp_path / "cells.h5ad")
    scfast.report.record(
        tmp_path, ["run", "my cells.h5ad"], 12.34, facts={"model": "toy"}, warnings=["3 cells lost"]
    )
    path, failures = scfast.report.write(tmp_path)
    assert failures == []
    assert path == tmp_path / "report.html"
    page = path.read_text()
    for text in (
        "scfast run &#39;my cells.h5ad&#39;",
        "12.3 s",
        "3 cells lost",
        "toy",
        f"{tmp_path.name}: 40 cells",
    ):
        assert text in page, text
    results = scfast.report.read_results(tmp_path / "cells.h5ad")
    assert results.X is None
    assert not results.layers


def test_a_figure_that_fails_is_named_and_the_rest_is_there(scored, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr(scfast.pl, "rollout", broken)
    path, failures = scfast.report.write(scored, tmp_path / "report.html")
    assert failures == ["rollout: pl.rollout could not be drawn: no ink"]
    page = path.read_text()
    assert "no ink" in page
    assert "Attention rollout" in page


def test_a_page_that_cannot_be_written_leaves_the_old_one(scored, monkeypatch, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        scfast.report.write(scored, path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: folder / "none.h5ad", FileNotFoundError, "no file or folder"),
        (lambda folder: folder, FileNotFoundError, "holds no .h5ad"),
        (lambda folder: [(folder / f"{n}.h5ad").touch() for n in "ab"] and folder, ValueError, "a.h5ad, b.h5ad"),
        (lambda folder: (folder / "a.h5ad").write_bytes(b"no HDF5") and folder, ValueError, "cannot be read as .h5ad"),
    ],
)  # fmt: skip
def test_what_is_no_result_is_named(prepare, error, message, tmp_path):
    with pytest.raises(error, match=message):
        scfast.report.write(prepare(tmp_path))


def test_results_of_others_are_no_results(tmp_path):
    adata = toy_adata(5)
    adata.uns["pca"] = {"params": {"zero_center": True}, "variance": np.ones(3)}
    with pytest.raises(ValueError, match="there are no results of scfast to report: uns holds pca"):
        scfast.report.write(adata, tmp_path / "report.html")
    with pytest.raises(ValueError, match="path is not given"):
        scfast.report.write(adata)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": 3}', "\udcff"])
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / "about.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"about\.json"):
        scfast.report.provenance.read(tmp_path)


def history(**last):
    return [
        {"step": step, "train_loss": 3.0 / step, "held_out_loss": 3.2 / step, **last} for step in (1, 2, 3)
    ]


TRAININGS = {
    "Learning to guess hidden genes": {"unigram_loss": 2.0, "gain": 0.5, "gain_se": 0.1, "history": history()},
    "Learning to guess the bins of counts": {"baseline": {"loss": 2.0}, "history": history()},
    "Telling classes apart": {
        "history": [{"epoch": 1, "train_loss": 1.0}], "cells": {"train": {"a": 9, "b": 9}, "test": {"a": 5, "b": 4}},
        "groups": None, "test": classification_scores(np.array([[4, 1], [2, 2]]), ("a", "b"), 0), "label": "type",
    },
    "Predicting perturbations": {
        "history": [{"epoch": 1, "train_loss": 1.0}],
        "scores": [
            {"perturbation": name, "context": "c", "method": method, "seed": 0, "pearson": 0.5, "pearson_change": 0.4,
             "pearson_top": 0.3, "pearson_change_top": 0.2}
            for name in ("A", "B") for method in ("model", "no change")
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("title", TRAININGS)
def test_a_training_has_its_page(title, tmp_path):
    settings = {"classes": ["a", "b"], "seed": 0, "lr": 0.001}
    log = {"settings": settings, "seconds": 12.0, "finished": True, **TRAININGS[title]}
    (tmp_path / "training_log.json").write_text(json.dumps(log))
    path, failures = scfast.report.write(tmp_path)
    assert failures == []
    page = path.read_text()
    assert title in page
    assert page.count("<figure>") == 1
    assert "has not finished" not in page
    assert 'data-table="training-history"' in page
    for table in {"gain", "test", "classes", "methods"} & {
        "Learning to guess hidden genes": {"gain"}, "Telling classes apart": {"test", "classes"},
        "Predicting perturbations": {"methods"},
    }.get(title, set()):  # fmt: skip
        assert f'data-table="training-{table}"' in page


def test_a_training_beside_cells_is_a_section_of_their_page(scored, tmp_path):
    scfast.io.write_h5ad(scored, tmp_path / "cells.h5ad")
    (tmp_path / "model").mkdir()
    log = {"settings": {}, "seconds": 1.0, "finished": False, "baseline": {"loss": 2.0}, "history": history()}
    (tmp_path / "model" / "training_log.json").write_text(json.dumps(log))
    page = scfast.report.write(tmp_path)[0].read_text()
    assert "Attention rollout" in page
    assert "Learning to guess the bins of counts" in page
    assert "This training has not finished" in page
