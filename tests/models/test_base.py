"""Tokens: what they hold and how cells are picked."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.models.base import TokenKind, Tokens


def make(lengths: list[int], optional: bool = True) -> Tokens:
    total = sum(lengths)
    return Tokens(
        ids=torch.arange(total) * 3,
        positions=torch.cat([torch.arange(n) for n in [*lengths, 0]]),
        packing=Packing.from_lengths(lengths),
        gene_index=torch.arange(total) - 1,
        kind=(torch.arange(total) % 4).to(torch.uint8),
        lost_vocabulary=torch.arange(len(lengths)),
        lost_truncation=torch.arange(len(lengths)) * 2,
        values=torch.arange(total).float() if optional else None,
        external=torch.arange(total) + 7 if optional else None,
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_select_takes_cells_as_a_loop_would(lengths: list[int], data: Any) -> None:
    tokens = make(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    got = tokens.select(chosen)
    assert got.lengths == tuple(lengths[cell] for cell in chosen)
    assert got.n_cells == len(chosen)
    for name in ("ids", "positions", "gene_index", "kind", "values", "external"):
        cells = tokens.packing.split_q(getattr(tokens, name))
        wanted = [value for cell in chosen for value in cells[cell].tolist()]
        assert getattr(got, name).tolist() == wanted
    assert got.lost_vocabulary.tolist() == chosen
    assert got.lost_truncation.tolist() == [2 * cell for cell in chosen]


def test_select_takes_arrays_and_keeps_none_as_none() -> None:
    tokens = make([2, 3], optional=False)
    for cells in ([1, 0], np.array([1, 0]), torch.tensor([1, 0]), (1, 0)):
        assert tokens.select(cells).lengths == (3, 2)
    assert tokens.select([1]).values is None
    for wrong in ([2], [-1]):
        with pytest.raises(IndexError, match=r"there are 2 \(0 to 1\)"):
            tokens.select(wrong)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_keep_takes_tokens_as_a_loop_would(lengths: list[int], data: Any) -> None:
    tokens = make(lengths)
    which = np.array(
        data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))), dtype=bool
    )
    got = tokens.keep(which)
    cells = tokens.packing.split_q(torch.from_numpy(which))
    assert got.lengths == tuple(int(cell.sum()) for cell in cells)
    for name in ("ids", "gene_index", "kind", "values", "external"):
        assert getattr(got, name).tolist() == getattr(tokens, name)[torch.from_numpy(which)].tolist()
    for cell, length in zip(got.packing.split_q(got.positions), got.lengths, strict=True):
        assert cell.tolist() == list(range(length))
    assert got.lost_vocabulary.tolist() == tokens.lost_vocabulary.tolist()
    assert make(lengths, optional=False).keep(which).values is None


def test_tokens_must_fit_their_packing() -> None:
    tokens = make([2, 3])
    for field in fields(tokens):
        if field.name == "packing":
            continue
        tensor = getattr(tokens, field.name)
        with pytest.raises(ValueError, match=rf"Tokens\.{field.name} must be .*2 cells, 5 tokens"):
            replace(tokens, **{field.name: tensor[:-1]})
        with pytest.raises(ValueError, match=r"got torch\.float64"):
            replace(tokens, **{field.name: tensor.double()})


def test_kinds_are_what_arrays_hold() -> None:
    assert [int(kind) for kind in TokenKind] == [0, 1, 2, 3]
    assert (make([8]).kind == TokenKind.SPECIAL).sum() == 2
