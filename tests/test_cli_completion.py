"""Completion of the command line by a shell, through click."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from scfast.cli import COMMANDS, cli


def completions(words: list[str], incomplete: str) -> list[str]:
    complete = BashComplete(cli, {}, "scfast", "_SCFAST_COMPLETE")
    return [item.value for item in complete.get_completions(words, incomplete)]


def test_commands_options_and_choices_are_completed():
    assert completions([], "") == list(COMMANDS)
    assert completions([], "pl") == ["plan"]
    assert completions(["run"], "--mem") == ["--memory"]
    assert completions(["plan", "cells.h5ad", "--analysis"], "rollout") == ["rollout", "rollout_matrix"]
    assert "--worker" not in completions(["run"], "--work")  # not for people


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_that_the_shell_reads(shell):
    done = CliRunner().invoke(cli, [], prog_name="scfast", env={"_SCFAST_COMPLETE": f"{shell}_source"})
    assert done.exit_code == 0
    assert f"_SCFAST_COMPLETE={shell}_complete" in done.output
