"""Trainings that stop when all is read, checked and prepared: what ``--dry-run`` says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FOUND: ContextVar[dict[str, Any] | None] = ContextVar("rehearsal", default=None)


class _Prepared(Exception):  # noqa: N818  # no error: the way out of a training
    pass


@contextmanager
def rehearsal() -> Iterator[dict[str, Any]]:
    """A training within stops before its first step, and writes nothing.

    Yields
    ------
    dict
        Afterwards the settings that it would run with, and ``found``: what its folder holds of a run, or None.
    """
    found: dict[str, Any] = {}
    token = _FOUND.set(found)
    try:
        yield found
    except _Prepared:
        pass
    finally:
        _FOUND.reset(token)


def announce(settings: Mapping[str, Any], found: str | None) -> None:
    """A training is about to begin; in a rehearsal it ends here."""
    if (noted := _FOUND.get()) is not None:
        noted.update(settings, found=found)
        raise _Prepared
