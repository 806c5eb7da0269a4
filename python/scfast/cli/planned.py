"""What ``scfast plan`` and ``scfast run --dry-run`` say of a run before there is one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfast.cli.console import Console
    from scfast.run import Planned, PlannedRun


def show_plan(console: Console, planned: Planned, workers: int = 1) -> None:
    """Print what :func:`scfast.run.planning` found, or give it to a program as the event ``plan``."""
    first = planned.runs[0]
    _show_cells(console, first)
    console.title("Runs")
    console.table(
        ("run", "model", "cells", "batches", "tokens a batch", "shards", "finished", "to run", "time"),
        [
            (
                run.name,
                run.model,
                f"{run.plan.n_cells:,}",
                f"{run.plan.n_batches:,}",
                f"{run.plan.token_budget:,}",
                run.plan.n_shards,
                len(run.finished),
                len(run.mine),
                "not timed" if run.seconds is None else say_seconds(run.seconds / workers),
            )
            for run in planned.runs
        ],
        left=2,
    )
    _show_memory(console, max(planned.runs, key=lambda run: run.weights))
    if first.plan.block_tokens:
        console.note(
            f"the longest cell does not fit as a whole: the model runs in blocks of {first.plan.block_tokens} tokens"
        )
    seconds, error = planned.seconds, planned.error
    if seconds is not None:
        total = planned.preparation + (seconds - planned.preparation) / workers
        console.title("Time")
        console.fields(
            {
                "in all": f"about {say_seconds(total)}"
                + (f" ({workers} workers, if none waits for another)" if workers > 1 else ""),
                "of it": f"{say_seconds(planned.preparation)} to read and tokenise every cell once",
                "how good": how_good(planned),
            }
        )
    for run in planned.runs:
        if run.differs:
            console.note(f"{run.name} is there already, and would be refused: {'; '.join(run.differs)}")
    if planned.ended_by is not None:
        console.note(
            f"what follows the last of these runs needs results, and is not planned ({planned.ended_by})"
        )
    console.event(
        "plan",
        runs=[run.as_dict() for run in planned.runs],
        preparation_seconds=planned.preparation,
        total_seconds=seconds,
        error=None if math.isnan(error) else error,
        workers=workers,
    )


def _show_cells(console: Console, run: PlannedRun) -> None:
    told: dict[str, Any] = run.as_dict()
    console.title("Cells")
    console.fields({"cells": f"{run.plan.n_cells:,}", "tokens": f"{told['tokens']:,}"})
    spread = told["tokens_of_a_cell"]
    if spread:
        console.table(
            ("share of the cells with at most", *spread), [("tokens", *map("{:,}".format, spread.values()))]
        )


def _show_memory(console: Console, run: PlannedRun) -> None:
    granted = sum(run.parts.values())
    console.title(f"Memory: {say_bytes(granted)} on {run.plan.device}")
    rows = [(name, say_bytes(size), f"{size / granted:.1%}") for name, size in run.parts.items()]
    console.table(("part", "size", "share"), [*rows, ("beside it: weights", say_bytes(run.weights), "")])


def how_good(planned: Planned) -> str:
    """In words, how far the estimate can be trusted."""
    costs = [run.cost for run in planned.runs if run.cost is not None]
    samples = {sample for cost in costs for sample in cost.samples}
    if not samples:
        return "nothing was timed"
    if math.isnan(planned.error):
        return f"only {len(samples)} pieces could be timed"
    largest = max(sample.tokens for sample in samples)
    told = f"each is told by the others to {planned.error:.0%}"
    return f"{len(samples)} pieces of up to {largest:,} tokens were timed; {told}"


def say_seconds(seconds: float) -> str:
    """A time as people say it.

    Examples
    --------
    >>> [say_seconds(x) for x in (0.4, 42, 200, 5000, 200_000)]
    ['0.4 s', '42 s', '3 min', '1 h 23 min', '2 d 7 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def say_bytes(size: int) -> str:
    """An amount of memory as people say it.

    Examples
    --------
    >>> say_bytes(2 * 10**9), say_bytes(34_560_000), say_bytes(1200)
    ('2.00 GB', '34.6 MB', '1.20 kB')
    """
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if abs(amount) < 1000:
            return f"{amount:.3g} {unit}" if unit == "B" else f"{amount:#.3g} {unit}".replace(". ", " ")
        amount /= 1000
    return f"{amount:,.2f} GB"
