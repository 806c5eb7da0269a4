"""What all targets have in common: bytes go into a file, and out comes a value or an error that names it."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """One way to read a file.

    Attributes
    ----------
    name
        What the file is called, perhaps inside folders.
    read
        Takes its path.
    seeds
        Content that it reads.
    errors
        What it may raise for other content.
    """

    name: str
    read: Callable[[Path], object]
    seeds: Sequence[bytes]
    errors: tuple[type[Exception], ...] = (ValueError,)


def ways(target: str) -> list[Way]:
    """Of a target by its name."""
    return importlib.import_module(f"tests.fuzz.{target}").WAYS


def words(target: str) -> list[bytes]:
    """What mutation should put in."""
    return importlib.import_module(f"tests.fuzz.{target}").WORDS


def seeds(target: str) -> list[bytes]:
    """Inputs of all ways: the first byte says which way, the others are the file."""
    return [bytes([number]) + seed for number, way in enumerate(ways(target)) for seed in way.seeds]


def attempt(all_ways: Sequence[Way], data: bytes, folder: Path) -> bool:
    """Read one input inside ``folder``; whether there was a value. All but a clear error is raised."""
    way = all_ways[data[0] % len(all_ways)] if data else all_ways[0]
    path = folder / way.name
    if path.parent != folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way.read(path)
    except way.errors as error:
        if str(folder) not in str(error):
            raise AssertionError(f"an error that does not name its file: {error!r}") from error
        if len(str(error)) > 4 * len(str(folder)) + 20_000:
            raise AssertionError(f"an error of {len(str(error))} characters") from error
        return False
    finally:
        shutil.rmtree(path.parent) if path.parent != folder else path.unlink(missing_ok=True)
    return True
