"""The examples say what they do, and their rehearsals run from end to end."""

import importlib.util
import runpy
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest

from tests.scripts import run_scripts

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[!_]*.py"))


@pytest.fixture
def rehearse(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder, in this process, which has imported most of it: what it printed."""

    def run(name: str, data: Path) -> str:
        example = EXAMPLES[0].with_name(f"{name}.py")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(example.parent)
        words = [example, "--data", data, "--quick", "--threads", "1", "--text"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with warnings.catch_warnings(action="default"), pytest.raises(SystemExit) as end:
            runpy.run_path(str(example), run_name="__main__")
        assert not end.value.code
        return capsys.readouterr().out

    return run


def test_help_teaches_by_example(tmp_path):
    helps = run_scripts([(example, "--help") for example in EXAMPLES], tmp_path)
    for example, done in zip(EXAMPLES, helps, strict=True):
        assert done.returncode == 0, done.stderr
        assert "Examples:" in done.stdout, example
        assert f"python examples/{example.name}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_rehearsal_of_ifn_beta(shared, tmp_path, rehearse):
    text = rehearse("ifn_beta", shared / "data" / "cells")
    for words in (
        "1,231 of 1,267 genes kept",
        "Better than gene frequencies by",
        "101 -> 107",
        "logistic regression",
    ):
        assert words in text
    out = tmp_path / "ifn_beta"
    accuracy = pd.read_csv(out / "accuracy.csv")
    assert len(accuracy) == 2 * (3 + 3)
    assert accuracy["accuracy"].between(0.3, 1).all()
    genes = pd.read_csv(out / "genes.csv")
    assert len(genes) == 2 * 4 * 5
    frozen = genes["setting"] == "encoder frozen"
    columns = ["attention", "attention_difference", "expression", "wilcoxon"]
    before = genes[genes["setting"] == "pretrained"]
    assert genes.loc[frozen, columns].to_numpy().tolist() == before[columns].to_numpy().tolist()
    shift = pd.read_csv(out / "shift.csv")
    assert len(shift) == 2 * 3 * 2 * 4
    assert (shift.loc[shift["setting"] == "encoder frozen", "cosine"] > 1 - 1e-6).all()
    assert (shift.loc[shift["setting"] == "all free", "cosine"] < 1 - 1e-6).all()
    assert {file.name for file in out.glob("*.png")} >= {
        "confusion_tested_on_101.png",
        "confusion_tested_on_107.png",
    }


def test_rehearsal_of_biological_priors(shared, tmp_path, rehearse):
    text = rehearse("biological_priors", shared)
    for words in (
        "0 of 1 models guess hidden genes of held-out cells better",
        "one seed says nothing",
        "expression: all genes, logistic regression",
        "Shuffled labels: macro-F1",
        "279 genes of 29 tissues have tokens",
        "pairs of population and hallmark set are over-represented",
    ):
        assert words in text
    out = tmp_path / "biological_priors"
    probes = pd.read_csv(out / "probes.csv")
    assert len(probes) == 2 * 3
    assert (probes["f1"] > probes["control"]).all()
    assert probes["logistic"].notna().all()
    similarity = pd.read_csv(out / "similarity.csv")
    assert len(similarity) == 2 * 3
    assert similarity["gene_cosine"].between(-1, 1).all()
    kinds = {"trained", "untrained", "expression"}
    prevalence = pd.read_csv(out / "prevalence.csv")
    assert set(prevalence["kind"]) == kinds
    assert len(prevalence) == 3 * 10 * (29 + 1)
    sums = prevalence.groupby(["kind", "group"])[["attention", "frequency"]].sum()
    assert ((sums - 1).abs() < 1e-5).all(axis=None)
    assert set(pd.read_csv(out / "enrichment.csv")["kind"]) == kinds
    assert "**A rehearsal: too little was trained" in (out / "summary.md").read_text()
    assert {file.stem for file in out.glob("*.png")} == {
        "probes",
        "layers",
        "tokens",
        "prevalence",
        "enrichment",
    }


def test_rehearsal_of_perturbation(shared, tmp_path, rehearse):
    rehearse("perturbation", shared / "data" / "cells")
    out = tmp_path / "perturbation"
    doubles = pd.read_csv(out / "norman_scores.csv")
    assert set(doubles["perturbation"]) == {
        "KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2",
    }  # fmt: skip
    assert doubles.loc[doubles["method"] == "sum of single effects", "pearson"].min() > 0.9
    assert set(pd.read_csv(out / "jurkat_scores.csv")["perturbation"]) == {"EGR1", "JUN"}
    assert pd.read_csv(out / "mcfaline.csv").groupby("line").size().tolist() == [9, 9, 9]
    page = (out / "summary.md").read_text()
    assert "**A rehearsal: too little was trained" in page
    assert "Pearson of change over all input genes, model minus sum of single effects" in page


def test_rehearsal_of_expression_modelling(shared, tmp_path, rehearse):
    text = rehearse("expression_modelling", shared)
    for words in (
        "Table 2: mask ratio m",
        "Table 3: share p of hidden genes above 0",
        "Table 4: cells trained on",
        "BioFormers, expected bin minus linear regression under masks",
        "one seed says nothing",
        "AvgBIO, <cls>, trained minus untrained",
    ):
        assert words in text
    out = tmp_path / "expression_modelling"
    trained = pd.read_csv(out / "training.csv")
    assert len(trained) == 12 + 1
    embedded = pd.read_csv(out / "avg_bio.csv")
    assert len(embedded) == 2 + 3
    assert embedded["avg_bio"].between(0.2, 1).all()
    scored = pd.read_csv(
        out / "models" / "raw_m0.1_p0.5_n1" / "seed_0" / "expression_modelling.csv", index_col="guess"
    )
    assert len(scored) == 6
    assert scored[["accuracy", "npv"]].stack().between(0, 1).all()
    assert "**A rehearsal: too little was trained" in (out / "summary.md").read_text()
    assert {file.stem for file in out.glob("*.png")} == {"training", "umap"}


def test_a_finding_says_what_its_interval_says():
    path = EXAMPLES[0].parent / "_findings.py"
    spec = importlib.util.spec_from_file_location("_findings", path)
    findings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(findings)
    assert (
        findings.told([0.1, 0.2, 0.3], ".2f") == "0.20 [-0.05, 0.45]"
    )  # t of 2 degrees: 4.303 x 0.1 / sqrt(3)
    assert findings.told([0.1]) == "+0.100 [one seed]"
    for values, said in (
        ([0.10, 0.11, 0.12], "more"),
        ([-0.10, -0.11, -0.12], "less"),
        ([-0.10, 0.11, 0.12], "the interval holds 0: nothing can be said"),
        ([0.10], "one seed says nothing"),
    ):
        assert findings.verdict(values, "more", "less") == said
    table = pd.DataFrame({"a": [1, 2], "b": [0.123456, float("nan")]})
    page = findings.as_markdown("Title", ["About."], {"Part": (table, ["Found."])})
    assert (
        page
        == "# Title\n\nAbout.\n\n## Part\n\n| a | b |\n| --- | --- |\n| 1 | 0.1235 |\n| 2 | – |\n\n- Found.\n"
    )
