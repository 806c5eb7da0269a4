"""The examples say what they do, and their rehearsals run from end to end."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[!_]*.py"))


def run(*command: object, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_help_teaches_by_example(example, tmp_path):
    text = run(example, "--help", folder=tmp_path)
    assert "Examples:" in text
    assert f"python examples/{example.name}" in text
    assert not list(tmp_path.iterdir())


def test_rehearsal_of_ifn_beta(shared, tmp_path):
    example = next(path for path in EXAMPLES if path.stem == "ifn_beta")
    text = run(
        example, "--data", shared / "data" / "cells", "--quick", "--threads", "1", "--text", folder=tmp_path
    )
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
