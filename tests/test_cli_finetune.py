import json
import subprocess
import sys

import pandas as pd
import pytest

from tests.test_cli import data, failure, invoke, model  # noqa: F401  # fixtures

QUICK = ["--epochs", "2", "--batch-tokens", "400", "--lr", "1e-3"]


def test_in_an_empty_directory(data, model, tmp_path, monkeypatch):  # noqa: F811
    command = [
        "finetune", str(data), "--model", f"geneformer:{model}", "--label", "cell_type", "-o", "tuned",
        *QUICK, "--text",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "scfast", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "validation loss",
        "as T/NK",
        "95 % interval",
        "always the commonest class",
        "geneformer:tuned",
    ):
        assert words in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"tuned"}
    assert {file.name for file in (tmp_path / "tuned").iterdir()} == {
        "config.json", "model.safetensors", "token_dictionary.json", "gene_median_dictionary.json",
        "training_log.json", "predictions.csv", "confusion.png",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    again = invoke(*command)
    assert "validation loss" not in again  # finished: shown, not trained anew
    assert "95 % interval" in again


def test_options_reach_the_split_and_the_log(data, model, tmp_path):  # noqa: F811
    text = invoke(
        "finetune", data, "--model", f"geneformer:{model}", "--label", "cell_type", "-o", tmp_path / "tuned",
        "--where", "donor in ['a', 'b']", "--recode", "one=B", "--recode", "other=T/NK", "--group", "donor",
        "--test-group", "b", "--validate-within", "--freeze", "1", "--class-weights", "none", *QUICK, "--json",
    )  # fmt: skip
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "progress", "done"]
    assert events[-1]["test"]["cells"] == 20
    log = json.loads((tmp_path / "tuned" / "training_log.json").read_text())
    assert log["groups"] == {"train": ["a"], "validation": ["a"], "test": ["b"]}
    assert log["settings"]["freeze"] == 1
    assert log["settings"]["class_weights"] == [1.0, 1.0]
    assert set(pd.read_csv(tmp_path / "tuned" / "predictions.csv")["label"]) == {"one", "other"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--label", "nowhere"], "label='nowhere' is not in adata.obs"),
        (["--recode", "B"], "--recode B must be CLASS=VALUE,..."),
        (["--recode", "x=B", "--recode", "x=T/NK"], "--recode names the class 'x' twice"),
        (["--freeze", "some"], "--freeze some must be all, none or a number of layers"),
        (["--where", "donor.values"], "is refused: it holds an attribute"),
        (
            ["--group", "donor"],
            "take the validation cells from it with validate_within=True (--validate-within)",
        ),
    ],
)
def test_user_errors_are_one_line(data, model, tmp_path, capsys, changes, message):  # noqa: F811
    options = ["--model", f"geneformer:{model}", "--label", "cell_type", "-o", tmp_path / "out"]
    assert message in failure(capsys, "finetune", data, *options, *changes)
    assert not (tmp_path / "out").exists()


def test_a_pretrained_model_is_not_overwritten(data, model, capsys):  # noqa: F811
    options = ["--model", f"geneformer:{model}", "--label", "cell_type", "-o", model, "--restart"]
    assert "of another kind, which would be overwritten" in failure(capsys, "finetune", data, *options)
