"""Rows of the cosine ops as the Triton kernels take them, and the lists of tiles that they visit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from scfast.ops import _triton
from scfast.ops._cosine import dense

if TYPE_CHECKING:
    from scfast.kernels.cosine import Parts, Walk

#: Tiles of a launch: their list takes 12 MB, and what they leave for sums 24 MB.
TILES_OF_A_LAUNCH = 2**20
#: Tiles of rows that go over the columns together: the columns come from memory once for all of them.
BAND = 16


class PreparedRows:
    """Counterpart of :class:`scfast.ops._cosine.Rows`: halves of the rows, together as large as they are, and factors.

    ``zeros`` is int64 [B, 2]. With cells, the host waits once for their lengths.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None,
        cu_seqlens_x: torch.Tensor | None,
        cu_seqlens_y: torch.Tensor | None,
        diagonal: bool = False,
    ) -> None:
        from triton.language import constexpr

        from scfast.kernels.cosine import SLICE, Pairs, Walk

        self.x = x
        self.cu_x = _starts(x, cu_seqlens_x)
        self.cu_y = self.cu_x if y is None else _starts(y, cu_seqlens_y)
        if cu_seqlens_x is None:
            self.lengths = [(x.shape[0], x.shape[0] if y is None else y.shape[0])]
        else:
            self.lengths = [(n, m) for n, m in torch.stack([self.cu_x, self.cu_y]).diff().T.tolist()]
        depth = -(-x.shape[1] // SLICE) * SLICE
        with self.device():
            parts = _prepare(x, depth)
            others = parts if y is None else _prepare(y, depth)
        own = _count_zeros(parts, self.cu_x)
        self.zeros = torch.stack(
            [own, torch.zeros_like(own) if y is None else _count_zeros(others, self.cu_y)], 1
        )
        where = Pairs(
            tiles=None, x=parts, y=others, x_starts=self.cu_x, y_starts=self.cu_y, depth=depth,
            itself=constexpr(y is None), diagonal=constexpr(int(diagonal)),
        )  # fmt: skip
        tiles = partial(tiles_of_pairs, self.lengths, itself=y is None, diagonal=diagonal, device=x.device)
        self.walk: Walk = Walk(where, _triton._gpu(x.device), 8 * x.element_size(), tiles)

    def device(self) -> Any:
        """Inside, launches go to the device of the rows."""
        return torch.cuda.device(self.x.device) if self.x.is_cuda else nullcontext()

    def work_list(self, queries: int) -> torch.Tensor:
        """int32 [n, 2]: (cell, first row) of every tile of rows of x, then (-1, 0)."""
        return _triton._work_list(self.cu_x, self.cu_y, self.x.shape[0], queries)

    def kernel(self, op: str) -> Any:
        """The op's module of kernels."""
        return importlib.import_module(f"scfast.kernels.{op}")


def _prepare(rows: torch.Tensor, depth: int) -> Parts:
    from scfast.kernels.cosine import Parts, prepare

    half = torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float16
    n = rows.shape[0]
    parts = Parts(
        high=rows.new_empty(n, depth, dtype=half),
        low=rows.new_empty(n, depth, dtype=half) if rows.dtype == torch.float32 else None,
        factor=rows.new_empty(n, dtype=torch.float32),
        rows=n,
    )
    prepare(dense(rows), parts, depth)
    return parts


def _starts(rows: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    if cu_seqlens is not None:
        return cu_seqlens
    return torch.tensor([0, rows.shape[0]], dtype=torch.int32, device=rows.device)


def _count_zeros(parts: Parts, starts: torch.Tensor) -> torch.Tensor:
    """int64 [B]: rows of each cell that are all 0."""
    before = torch.nn.functional.pad((parts.factor == 0).cumsum(0), (1, 0))
    return before[starts.long()].diff()


def tiles_of_pairs(
    lengths: Sequence[tuple[int, int]],
    queries: int,
    keys: int,
    *,
    itself: bool,
    diagonal: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each launch (int32 [n, 3]: cell, first row, first column of a tile; int32 [B + 1]: first tile of each cell).

    x with itself: tiles without a pair i < j (``diagonal``: i <= j) are left out. Tiles of a cell are in an order of
    their own, and which of them share a launch does not depend on other cells.
    """
    shapes = torch.tensor(
        [(-(-n // queries), -(-m // keys), m) for n, m in lengths], dtype=torch.int64, device=device
    ).reshape(-1, 3)
    counts = [(-(-n // queries)) * (-(-m // keys)) for n, m in lengths]
    for first, last, begin, end in _launches(counts):
        cells = torch.arange(first, last, device=device)
        rows, columns, ends = shapes[first:last].unbind(1)
        taken = rows * columns if last > first + 1 else torch.tensor([end - begin], device=device)
        cell = torch.repeat_interleave(cells, taken, output_size=end - begin)
        index = torch.arange(begin, end, device=device) - (taken.cumsum(0) - taken)[cell - first]
        rows, columns = rows[cell - first], columns[cell - first]
        band = index // (BAND * columns)
        height, index = (rows - band * BAND).clamp(max=BAND), index - band * BAND * columns
        row, column = (band * BAND + index % height) * queries, index // height * keys
        tiles = torch.stack([cell, row, column], 1)
        if itself:
            beyond = torch.minimum(column + keys, ends[cell - first])
            tiles = tiles[beyond > row + (0 if diagonal else 1)]
        all_cells = torch.arange(len(lengths) + 1, device=device)
        yield tiles.to(torch.int32), torch.searchsorted(tiles[:, 0].contiguous(), all_cells).to(torch.int32)


def _launches(counts: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(first cell, end, first tile, end) of each launch: some whole cells, or a part of a cell with very many tiles."""
    first = held = 0
    for cell, n in enumerate(counts):
        if held and held + n > TILES_OF_A_LAUNCH:
            yield first, cell, 0, held
            first, held = cell, 0
        if n > TILES_OF_A_LAUNCH:
            for begin in range(0, n, TILES_OF_A_LAUNCH):
                yield cell, cell + 1, begin, min(begin + TILES_OF_A_LAUNCH, n)
            first = cell + 1
        else:
            held += n
    if held:
        yield first, len(counts), 0, held
