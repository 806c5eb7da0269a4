"""The lists of tiles of pairs: every pair once, none without one, the same for a cell whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast.ops import _cosine_triton
from scfast.ops._cosine_triton import tiles_of_pairs

LENGTHS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=5)


@given(
    lengths=LENGTHS,
    sides=st.sampled_from([(16, 16), (32, 16), (16, 64)]),
    itself=st.booleans(),
    diagonal=st.booleans(),
    most=st.sampled_from([4, 2**20]),
)
def test_every_pair_is_in_one_tile(
    lengths: list[tuple[int, int]], sides: tuple[int, int], itself: bool, diagonal: bool, most: int
) -> None:
    lengths = [(n, n if itself else m) for n, m in lengths]
    queries, keys = sides
    wanted = [torch.ones(n, m, dtype=torch.int64) for n, m in lengths]
    if itself:
        wanted = [part.triu(0 if diagonal else 1) for part in wanted]
    seen = [torch.zeros_like(part) for part in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cosine_triton, "TILES_OF_A_LAUNCH", most)
        for tiles, starts in tiles_of_pairs(lengths, queries, keys, itself=itself, diagonal=diagonal):
            assert tiles.dtype == starts.dtype == torch.int32
            assert len(tiles) <= most
            assert torch.equal(starts.diff(), tiles[:, 0].bincount(minlength=len(lengths)))
            assert (tiles[:, 0].diff() >= 0).all()
            for cell, row, column in tiles.tolist():
                block = (slice(row, row + queries), slice(column, column + keys))
                assert wanted[cell][block].any()
                seen[cell][block] += wanted[cell][block]
    for mine, same in zip(seen, wanted, strict=True):
        assert torch.equal(mine, same)


@pytest.mark.parametrize("most", [20, 2**20])
def test_tiles_of_a_cell_do_not_depend_on_others(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their order nor which of them share a launch: sums of them are added in that order."""
    monkeypatch.setattr(_cosine_triton, "TILES_OF_A_LAUNCH", most)

    def of_cell(lengths: list[int], cell: int) -> list[list[list[int]]]:
        launches = tiles_of_pairs([(n, n) for n in lengths], 16, 16, itself=True)
        parts = [tiles[tiles[:, 0] == cell][:, 1:].tolist() for tiles, _ in launches]
        return [part for part in parts if part]

    assert of_cell([300], 0) == of_cell([50, 300, 7], 1) == of_cell([300, 300], 1)
    assert of_cell([40], 0) == of_cell([300, 5, 40], 2)
