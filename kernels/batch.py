"""A batch of packed cells on a GPU: what every op's launches share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from scfast.kernels.attention_forward import SOFTMAX, Softmax
from scfast.kernels.scores import Where
from scfast.kernels.tiles import Tile, choose
from scfast.kernels.visit import visit_keys, visit_rows
from triton.language import constexpr


class Batch(NamedTuple):
    """Inputs of a call and how to launch on them. Tensors are known by their pointers, sizes and strides."""

    where: Where  # without tiles
    gpu: str  # "sm_90" and so on, or "interpreter"
    bits: int  # of an input element
    work_list: Callable[[str, int], Any]  # ("queries" or "keys", rows per tile) -> Where.tiles
    heads: int  # H
    visited: str = "fused"  # what visits of fused heads are called in tiles.toml
    widest: int = 0  # padded head dim of what a map multiplies beside q and k

    def tile(self, visit: str, width: int = 0) -> Tile:
        """The tile of a visit; ``width``: padded head dim of v, where it takes part."""
        return choose(self.gpu, visit, self.bits, max(width, self.widest, self.where.width.value))

    def visit_rows(
        self, visit: str, owners: int, args: Any, epilogue: dict[str, Any], width: int = 0, **where: Any
    ) -> None:
        """Launch the query-stationary loop."""
        tile = self.tile(visit, width)
        tiles = self.work_list("queries", tile.queries)
        self._launch(visit_rows, tiles, owners, args, epilogue, tile, where)

    def visit_keys(
        self, visit: str, owners: int, args: Any, epilogue: dict[str, Any], width: int = 0, **where: Any
    ) -> None:
        """Launch the key-stationary loop."""
        tile = self.tile(visit, width)
        tiles = self.work_list("keys", tile.keys)
        self._launch(visit_keys, tiles, owners, args, epilogue, tile, where)

    def _launch(
        self, visit: Any, tiles: Any, owners: int, args: Any, epilogue: dict[str, Any], tile: Tile, where: Any
    ) -> None:
        if not tiles.shape[0]:
            return  # no cells
        visit[(tiles.shape[0], owners)](
            self.where._replace(tiles=tiles, **where), args, **epilogue, QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def scratch(self, like: Any) -> Any:
        """An array of one float32 for each head and row [H, pitch]; ``like``: any float32 tensor of the device."""
        return like.new_empty((self.heads, self.where.pitch))

    def softmax(self, weights: Any = None, **wanted: Any) -> None:
        """What is wanted of every row (see Softmax), by a visit of rows without values.

        Rows of weight zero in all sets [R, Tq] are left out.
        """
        args = Softmax(
            heads=self.heads, pitch=self.where.pitch, weights=weights,
            weights_row=None if weights is None else weights.stride(0),
            sets=None if weights is None else weights.shape[0],
            group=self.where.group, precision=self.where.precision, **wanted,
        )  # fmt: skip
        self.visit_rows("softmax", self.heads, args, SOFTMAX)

    def normalise(self, like: Any, weights: Any = None) -> Batch:
        """The batch with shift and norm of every row; rows of weight zero in all sets are left out."""
        shift, norm = self.scratch(like), self.scratch(like)
        self.softmax(weights, shift=shift, norm=norm)
        return self._replace(where=self.where._replace(shift=shift, norm=norm))

    def fuse(self, fusion: str, span: int, factors: Any) -> Batch:
        """The batch whose heads are fused, ``span`` of them for each output head."""
        return self._replace(
            where=self.where._replace(fusion=constexpr(fusion), span=constexpr(span), factors=factors)
        )
