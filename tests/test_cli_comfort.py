"""What every command owes a person and a program: help with examples, JSON, a dry run, errors with a remedy."""

from __future__ import annotations

import json
import shlex

import click
import pandas as pd
import pytest
from click.testing import CliRunner

import scfast
from scfast.cli import COMMANDS, cli
from scfast.models import bioformers
from tests.test_cli import data, failure, invoke, model
from tests.toy import toy_adata

__all__ = ["data", "model"]  # fixtures

#: Commands that answer at once, and change nothing.
QUICK = {"plan", "status", "models", "doctor", "report", "bench"}


def every_command() -> dict[str, click.Command]:
    """Words -> command, those within groups too."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": command.commands[inner] for inner in command.commands}
        else:
            found[name] = command
    return found


EVERY = every_command()


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder with cells and a model, a run's results, networks, gene sets, clusters and a reference."""
    folder = tmp_path_factory.mktemp("cells")
    adata = toy_adata(40)
    bioformers.create(list(adata.var_names[:20]), seed=1).save(folder / "model")
    adata.obs["perturbation"] = ["control", "G1", "G2", "G1+G2"] * 10
    adata.write_h5ad(folder / "cells.h5ad")
    scfast.tl.rollout(adata, scfast.models.load("bioformers", folder / "model"), groupby="type")
    scfast.tl.grn(adata, f"bioformers:{folder / 'model'}", min_cells=2)
    scfast.io.write_h5ad(adata, folder / "results.h5ad")
    (folder / "sets.gmt").write_text("ONE\tx\tG1\tG2\tG4\nTWO\tx\tG5\tG6\tG9\n")
    pd.DataFrame({"gene": adata.var_names, "program": ["a", "b"] * 20}).to_csv(
        folder / "programs.csv", index=False
    )
    (folder / "reference.tsv").write_text("G0\tG1\nG0\tG2\nG3\tG9\n")
    return folder


#: Command -> its words in that folder, the output being OUT.
WORDS = {
    "run": "cells.h5ad --model bioformers:model --groupby type -o OUT",
    "convert": "cells.h5ad OUT.zarr",
    "grn": "cells.h5ad --model bioformers:model --groupby type --compare T,Mono --min-cells 2 -o OUT",
    "grn-score": "results.h5ad --reference reference.tsv --null 5 -o OUT",
    "enrich": "results.h5ad --gene-sets sets.gmt --top 8 -o OUT",
    "prevalence": "results.h5ad --clusters programs.csv --n-bootstrap 9 --n-permutations 9 -o OUT",
    "pretrain": "cells.h5ad --steps 2 --batch-tokens 400 -o OUT",
    "train bioformers": "cells.h5ad --preset tiny --genes all --steps 2 --batch-tokens 400 -o OUT",
    "train perturbation": "cells.h5ad --perturbation perturbation --genes all --epochs 1 --held-out G1+G2 -o OUT",
    "finetune": "DATA --model geneformer:MODEL --label cell_type --epochs 1 -o OUT",
    "demo": "--steps 2 -o OUT",
}


def words(command, out, data="", model=""):
    places = {"OUT": str(out), "DATA": str(data), "MODEL": str(model)}
    text = WORDS[command]
    for name, place in places.items():
        text = text.replace(name, place)
    return [*command.split(), *shlex.split(text)]


@pytest.mark.parametrize("name", list(EVERY))
def test_help_teaches(name):
    text = invoke(*name.split(), "--help")
    examples = text.partition("Examples:")[2].partition("Options:")[0]
    assert f"scfast {name}" in examples
    assert "--json" in text
    assert ("--dry-run" in text) == (name not in QUICK or name == "bench")  # whose --tune takes long
    undocumented = [
        option.opts[-1] for option in EVERY[name].params
        if isinstance(option, click.Option) and not option.hidden and not (option.help or option.opts == ["--seed"])
        and not isinstance(option.type, click.Choice) and option.name != "heads"
    ]  # fmt: skip
    assert undocumented == []


def test_dry_runs_are_all_tried():
    assert set(WORDS) == set(EVERY) - QUICK


@pytest.mark.parametrize("name", list(WORDS))
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    name, cells, data, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(cells)
    before = sorted(cells.iterdir())
    out = tmp_path / "out"
    done = CliRunner().invoke(
        cli, [*words(name, out, data, model), "--dry-run", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.output.splitlines()]
    assert events[-1]["event"] == "plan"
    assert list(tmp_path.iterdir()) == []
    assert sorted(cells.iterdir()) == before
    if name != "run":
        assert events[-1]["command"] == name
        assert len(events[-1]["files"]) > 0
        told = CliRunner().invoke(cli, [*words(name, out, data, model), "--dry-run", "--text"]).output
        assert "Dry run" in told
        assert "Would be written" in told


@pytest.mark.parametrize("name", ["enrich", "prevalence", "grn", "grn-score", "convert", "pretrain"])
def test_what_was_planned_is_what_is_written(name, cells, tmp_path, monkeypatch):
    monkeypatch.chdir(cells)
    given = words(name, tmp_path / "out")
    planned = json.loads(invoke(*given, "--dry-run", "--json").splitlines()[-1])["files"]
    reported = name in ("enrich", "prevalence", "grn", "grn-score")
    text = invoke(*given, "--json", *["--report"] * reported)
    read = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}
    events = [json.loads(line, **read) for line in text.splitlines()]
    assert all(isinstance(event["event"], str) and event["seconds"] >= 0 for event in events)
    assert events[-1]["event"] == "done"
    assert set(planned) <= set(events[-1]["files"])
    extra = {path.rpartition("/")[2] for path in set(events[-1]["files"]) - set(planned)}
    assert extra <= {"about.json", "report.html"}
    assert ("report.html" in extra) == reported


@pytest.mark.parametrize("name", [name for name in WORDS if name not in ("demo", "finetune")])
def test_cells_that_are_not_there_are_one_line_with_a_remedy(name, cells, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(cells)
    given = [word.replace(".h5ad", "_gone.h5ad") for word in words(name, tmp_path / "out")]
    assert "gone.h5ad" in failure(capsys, *given)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_an_event_for_programs(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        scfast.cli.main(["report", str(tmp_path / "none.h5ad"), "--json"])
    assert stop.value.code == 1
    shown = capsys.readouterr()
    event = json.loads(shown.out)
    assert event["event"] == "error"
    assert event["exit_code"] == 1
    assert event["message"] in shown.err
