"""Packing: the layout of a batch, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast.packing import ROWS_PER_UNIT, Packing

LENGTHS = st.lists(st.integers(0, 3 * ROWS_PER_UNIT), max_size=6)


@given(LENGTHS, st.randoms())
def test_every_query_row_belongs_to_one_unit_of_work(lengths: list[int], random: object) -> None:
    keys = [n // 2 for n in lengths]
    packing = Packing.from_lengths(lengths, keys)
    rows = [
        (cell, row)
        for cell, start in packing.work.tolist()
        for row in range(start, min(start + ROWS_PER_UNIT, lengths[cell]))
    ]
    assert sorted(rows) == [(cell, row) for cell, n in enumerate(lengths) for row in range(n)]
    cost = [lengths[cell] * max(keys[cell], 1) for cell, _ in packing.work.tolist()]
    assert cost == sorted(cost, reverse=True), "longest first"


@given(LENGTHS)
def test_units_of_a_cell_do_not_depend_on_the_others(lengths: list[int]) -> None:
    together = Packing.from_lengths(lengths).work.tolist()
    for cell, n in enumerate(lengths):
        alone = [row for _, row in Packing.from_lengths([n]).work.tolist()]
        assert [row for other, row in together if other == cell] == alone


@given(LENGTHS)
def test_offsets_and_totals(lengths: list[int]) -> None:
    packing = Packing.from_lengths(lengths)
    assert packing.n_cells == len(lengths)
    assert packing.total_q == packing.total_k == sum(lengths) == packing.cu_seqlens_q[-1]
    assert packing.cu_seqlens_q.diff().tolist() == lengths
    assert list(packing.starts_q) == packing.cu_seqlens_q[:-1].tolist()
    cells = [cell for cell, n in enumerate(lengths) for _ in range(n)]
    assert packing.cell_of_query().tolist() == cells
    for rows, n in zip(packing.split_q(torch.arange(sum(lengths))), lengths, strict=True):
        assert len(rows) == n


def test_types_and_defaults() -> None:
    packing = Packing.from_lengths([3, 0, 2], [5, 1, 2])
    for name in ("cu_seqlens_q", "cu_seqlens_k", "work", "causal_offset"):
        index = getattr(packing, name)
        assert index.dtype == torch.int32, name
        assert index.is_contiguous(), name
    assert packing.work.shape == (2, 2)
    assert packing.cu_seqlens_k.tolist() == [0, 5, 6, 8]
    assert packing.starts_k == (0, 5, 6)
    assert packing.causal_offset.tolist() == [2, 1, 0], "last query aligned with last key"
    assert Packing.from_lengths([3], causal_offset=[-1]).causal_offset.tolist() == [-1]
    assert [len(x) for x in packing.split_k(torch.arange(8))] == [5, 1, 2]


def test_lengths_may_come_as_a_tensor() -> None:
    assert Packing.from_lengths(torch.tensor([3, 0])).lengths_q == (3, 0)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_empty(lengths: list[int]) -> None:
    packing = Packing.from_lengths(lengths)
    assert packing.work.shape == (0, 2)
    assert packing.total_q == 0
    assert packing.uniform_row_weights().shape == (0,)


def test_uniform_row_weights_sum_to_one_in_each_cell() -> None:
    packing = Packing.from_lengths([3, 0, 1500, 1])
    weights = packing.uniform_row_weights()
    assert weights.dtype == torch.float32
    sums = [x.double().sum().item() for x in packing.split_q(weights)]
    assert sums == pytest.approx([1, 0, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("lengths", "options", "text"),
    [
        ([3, -1], {}, "lengths must not be negative; got -1 for cell 1"),
        ([3], {"lengths_k": [-2]}, "lengths_k must not be negative; got -2 for cell 0"),
        ([3, 4], {"lengths_k": [3]}, "lengths_k has 1 cells and lengths has 2: give one of each per cell"),
        ([3, 4], {"causal_offset": [0]}, "causal_offset has 1 entries for 2 cells"),
        (
            [2**30, 2**30],
            {"lengths_k": [1, 1]},
            r"add up to 2147483648 tokens; .* fewer than 2\*\*31: split it",
        ),
    ],
)
def test_refused_by_name(lengths: list[int], options: dict[str, list[int]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Packing.from_lengths(lengths, **options)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        Packing.from_lengths([3]).lengths_q = (4,)  # type: ignore[misc]
