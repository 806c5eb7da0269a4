"""What training commands say with ``--dry-run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfast.cli.console import Console

#: What every trained model's folder holds, and what a Geneformer's has beside it.
MODEL = ("config.json", "model.safetensors", "training_log.json")
TABLES = ("token_dictionary.json", "gene_median_dictionary.json")
#: Settings that are told.
TOLD = (
    "steps",
    "batch_tokens",
    "lr",
    "mask",
    "freeze",
    "classes",
    "held_out",
    "patience",
    "precision",
    "seed",
)


def maybe_rehearsal(wanted: bool) -> AbstractContextManager[dict[str, Any]]:
    """:func:`scfast.train.rehearsal.rehearsal`, or nothing."""
    from scfast.train.rehearsal import rehearsal

    return rehearsal() if wanted else nullcontext({})


def show_rehearsal(
    console: Console,
    command: str,
    planned: Mapping[str, Any],
    facts: Mapping[str, Any],
    folder: Path,
    files: Sequence[str] = (),
) -> None:
    """What a training would do: facts of the data, its settings, what its folder holds already, what it writes."""
    told = {name.replace("_", " "): _text(planned[name]) for name in TOLD if name in planned}
    already = planned.get("found")
    there = (
        None if already is None else f"{folder} holds {already}: continued or kept, unless --restart is given"
    )
    console.dry_run(command, {**facts, **told, "folder": there}, [folder / name for name in (*MODEL, *files)])


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
