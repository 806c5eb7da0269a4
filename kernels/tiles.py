"""Which tile a launch takes: rows of tiles.toml, data with a date, and before them rows of one's own."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

#: Files of rows, beside this one.
SHIPPED = ("tiles.toml", "tiles_reductions.toml", "tiles_cosine.toml")
#: Environment variable with the path of rows of one's own: what ``scfast bench --tune -o`` writes.
OWN_ROWS = "SCFAST_TILES"


class Tile(NamedTuple):
    """What a launch takes from a row: the tile, Triton's options, and what they rest on."""

    queries: int
    keys: int
    warps: int
    stages: int
    basis: str


#: What a row holds.
FIELDS = {
    "gpus": list, "visits": list, "bits": int, "width": int,
    "queries": int, "keys": int, "warps": int, "stages": int, "basis": str,
}  # fmt: skip
#: (visit, tile): what is tried in the place of its row.
_trial: ContextVar[tuple[str, Tile] | None] = ContextVar("scfast_tile_on_trial", default=None)


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """Rows of one's own, if there are any, and every row that is shipped."""
    tables = (files("scfast.kernels").joinpath(name).read_text() for name in SHIPPED)
    shipped = [row for table in tables for row in tomllib.loads(table)["row"]]
    path = os.environ.get(OWN_ROWS)
    return (*(_own_rows(path) if path else []), *shipped)


def _own_rows(path: str) -> list[dict[str, Any]]:
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("row", [])
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{OWN_ROWS}={path} cannot be read ({error}): name a file of rows, or unset it"
        ) from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path} must hold rows ([[row]]); `scfast bench --tune -o FILE` writes such a file")
    for number, row in enumerate(found, 1):
        for name, kind in FIELDS.items():
            if not isinstance(row.get(name), kind):
                raise ValueError(
                    f"{path}, row {number}: {name} must be of type {kind.__name__}, got {row.get(name)!r:.80};"
                    " `scfast bench --tune -o FILE` writes such rows"
                )
    return found


def fits(row: dict[str, Any], gpu: str, visit: str, bits: int, width: int) -> bool:
    """Whether a row may serve a launch.

    One that was measured speaks for its own bits and width alone, and for heads narrower than 64, which nobody times;
    any other one for all that is smaller too.
    """
    known = gpu in row["gpus"] or ("any" in row["gpus"] and gpu != "interpreter")
    if not known or visit not in row["visits"]:
        return False
    if row["basis"] == "measured":
        return bits == row["bits"] and (width == row["width"] or width < row["width"] <= 64)
    return bits <= row["bits"] and width <= row["width"]


@contextmanager
def on_trial(visit: str, tile: Tile) -> Iterator[None]:
    """Inside, launches of a visit take this tile, whatever the rows say."""
    token = _trial.set((visit, tile))
    try:
        yield
    finally:
        _trial.reset(token)


def choose(gpu: str, visit: str, bits: int, width: int) -> Tile:
    """The first row that fits, or the tile that is on trial.

    Parameters
    ----------
    gpu
        ``"sm_90"`` and so on, or ``"interpreter"``.
    visit
        What is launched, as named in tiles.toml.
    bits, width
        Of an input element; head dim padded to a power of two, the larger one of q and v.
    """
    trial = _trial.get()
    return trial[1] if trial is not None and trial[0] == visit else _first_fit(gpu, visit, bits, width)


@cache
def _first_fit(gpu: str, visit: str, bits: int, width: int) -> Tile:
    row = next(row for row in rows() if fits(row, gpu, visit, bits, width))
    return Tile(**{name: row[name] for name in Tile._fields})
