"""Which tile a launch takes: rows of tiles.toml, data with a date."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple


class Tile(NamedTuple):
    """What a launch takes from a row: the tile, Triton's options, and what they rest on."""

    queries: int
    keys: int
    warps: int
    stages: int
    basis: str


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """Every row of tiles.toml."""
    return tuple(tomllib.loads(files("scfast.kernels").joinpath("tiles.toml").read_text())["row"])


def fits(row: dict[str, Any], gpu: str, visit: str, bits: int, width: int) -> bool:
    """Whether a row may serve a launch."""
    known = gpu in row["gpus"] or ("any" in row["gpus"] and gpu != "interpreter")
    return known and visit in row["visits"] and bits <= row["bits"] and width <= row["width"]


@cache
def choose(gpu: str, visit: str, bits: int, width: int) -> Tile:
    """The first row that fits.

    Parameters
    ----------
    gpu
        ``"sm_90"`` and so on, or ``"interpreter"``.
    visit
        What is launched, as named in tiles.toml.
    bits, width
        Of an input element; head dim padded to a power of two, the larger one of q and v.
    """
    row = next(row for row in rows() if fits(row, gpu, visit, bits, width))
    return Tile(**{name: row[name] for name in Tile._fields})
