"""The front door of the command ``scfast``: its help and errors, at once, because it imports nothing of the library.

Commands are modules of :mod:`scfast.cli`, imported when they run.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import click

#: Command -> first line of its help, so that ``scfast --help`` imports nothing else.
COMMANDS = {
    "run": "Analyse cells with a model, and write AnnData, tables and figures.",
    "convert": "Store counts cell by cell, so that they can be read from the disk.",
    "plan": "How long a run would take, and in which memory.",
    "status": "How far an unfinished run has come.",
    "report": "One HTML page from the results of a run.",
    "grn": "Gene networks from attention, group by group, and what changes between groups.",
    "grn-score": "What a gene network is worth: known targets, beside co-expression and chance.",
    "enrich": "Gene sets among the genes that a model attends to most.",
    "prevalence": "Gene programs' share of attention against their share of the cell.",
    "pretrain": "Train a Geneformer on your cells by masked-gene modelling.",
    "train": "Train a BioFormers on your cells by guessing the bins of counts.",
    "finetune": "Train a Geneformer to tell classes of cells apart, and test it.",
    "demo": "Real blood cells, from counts to the genes a transformer attends to.",
    "bench": "Time the attention ops here, or tune the kernels of this GPU.",
    "models": "Which models are supported, the files they need, and what a cell costs.",
    "doctor": "What this machine has, and which backend each op takes.",
}

#: What a user can put right; their message is the whole story.
USER_ERRORS = (ValueError, KeyError, TypeError, OSError, ModuleNotFoundError, MemoryError)


#: How files of cells end: one that is not there is said to be missing before anything is imported to read it.
CELLS = (".h5ad", ".zarr")


class _Commands(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        cells = args[2:3] if args[0] == "train" else args[1:2]
        completes_or_teaches = ctx.resilient_parsing or {"-h", "--help"} & set(args)
        if args[0] in COMMANDS and not completes_or_teaches:
            for path in cells:
                if path.endswith(CELLS) and not os.path.exists(path):
                    raise FileNotFoundError(f"no file {path}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"scfast.cli.{cmd_name.replace('-', '_')}")
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="scfast")
def cli() -> None:
    """What single-cell transformers attend to, computed inside the attention kernel.

    \b
    scfast demo                                     see it work on real cells
    scfast run cells.h5ad --model geneformer:FOLDER --groupby cell_type -o results
    scfast pretrain cells.h5ad -o my_model          train a model on your own cells
    scfast finetune cells.h5ad --model geneformer:my_model --label condition -o tuned
    scfast COMMAND --help                           options and examples of a command
    """  # noqa: D301


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; user errors end in one line and a code, mostly 1 (SCFAST_DEBUG=1: a traceback)."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return cli.main(args=arguments, prog_name="scfast", standalone_mode=True, obj=list(given))
    except USER_ERRORS as error:
        if os.environ.get("SCFAST_DEBUG") == "1":
            raise
        # A KeyError's own text is quoted.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        code = getattr(error, "exit_code", 1)
        if "--json" in given:
            click.echo(json.dumps({"event": "error", "message": str(message), "exit_code": code}))
        click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
        sys.exit(code)
