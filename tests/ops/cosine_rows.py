"""Rows for the tests of the cosine ops, and the error rule for their similarities."""

from __future__ import annotations

import torch

from scfast.reference._cosine import unit_rows
from tests.ops.helpers import FLOOR, error

#: (rows of x, rows of y or None, columns): odd sizes, partial tiles, several groups of columns and runs of rows.
SHAPES: dict[str, tuple[int, int | None, int]] = {
    "nothing": (0, None, 4),
    "no y": (5, 0, 4),
    "one row": (1, None, 16),
    "two rows": (2, None, 1),
    "7": (7, None, 3),
    "33": (33, None, 65),
    "7 and 33": (7, 33, 129),
    "49 and 1": (49, 1, 512),
    "1023": (1023, None, 24),
    "1500 and 241": (1500, 241, 33),
    "deep": (50, None, 1000),
    "very deep": (60, 70, 30_000),
}


def make_rows(
    n: int, m: int | None, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normal rows of lengths that differ, with something in common, so that similarities are not all near 0."""
    random = torch.Generator().manual_seed(seed)

    def rows(count: int) -> torch.Tensor:
        x = torch.randn(count, dim, generator=random) + torch.randn(dim, generator=random).abs()
        return (x * torch.logspace(-2, 2, count)[:, None]).to(dtype)

    return rows(n), None if m is None else rows(m)


def plain(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """[N, M] by torch in the dtype of the inputs: the yardstick of the error rule."""
    a = torch.nn.functional.normalize(x)
    return (a @ (a if y is None else torch.nn.functional.normalize(y)).T).float()


def sizes(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """[N, M]: the same products of absolute values."""
    a = unit_rows(x).abs()
    return a @ (a if y is None else unit_rows(y).abs()).T


def assert_similar(name: str, got: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """The error rule: twice the error of plain torch and the floor; all similarities [N, M]."""
    a = unit_rows(x)
    exact = (a @ (a if y is None else unit_rows(y)).T).clamp(-1, 1)
    size = sizes(x, y)
    ours, theirs = error(got, exact, size), error(plain(x, y), exact, size)
    limit = 2 * theirs + FLOOR
    assert ours <= limit, f"{name}: error {ours:.3g} exceeds {limit:.3g} for {x.dtype}"
