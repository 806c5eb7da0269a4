"""The laws of accumulators, as one test that every accumulator must pass."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scfast.analyses import Accumulator, Batch

State = dict[str, np.ndarray]


def assert_accumulator_laws(
    empty: Callable[[], Accumulator], cells: Callable[[Sequence[int]], Batch], n_cells: int
) -> None:
    """Check an accumulator on random splits and orders of its cells.

    Parameters
    ----------
    empty
        Makes an accumulator that has seen nothing.
    cells
        Makes a batch of the cells of these rows.
    n_cells
        Rows there are.
    """
    assert isinstance(empty(), Accumulator)
    whole = empty()
    whole.update(cells(range(n_cells)))
    _check_types(whole.state())
    assert whole.nbytes == sum(array.nbytes for array in whole.state().values() if array.ndim)

    before = whole.state()
    additions = whole.additions(cells(range(n_cells)))
    assert_states(whole.state(), before, exact=True)  # nothing is added before all of it can be
    twice = type(whole).from_state(before)
    twice.add(additions)
    assert_states(twice.state(), _merged(whole, whole))

    empty().result()  # defined
    assert_states(_merged(empty(), whole), whole.state())
    assert_states(_merged(whole, empty()), whole.state())
    nothing = empty()
    nothing.update(cells([]))
    assert_states(nothing.state(), empty().state(), exact=True)

    @given(data=st.data())
    def splits(data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(n_cells)))
        cuts = sorted(data.draw(st.lists(st.integers(0, n_cells), max_size=4)))
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, n_cells], strict=True):
            part = empty()
            middle = data.draw(st.integers(start, stop))
            part.update(cells(order[start:middle]))
            part.update(cells(order[middle:stop]))
            parts.append(part)
        left, right = empty(), empty()
        for part in parts:  # ((a b) c) d
            before = part.state()
            left.merge(part)
            assert_states(part.state(), before, exact=True)
        for part in reversed(parts):  # a (b (c d))
            right = type(part).from_state(_merged(part, right))
        assert_states(left.state(), whole.state())
        assert_states(right.state(), whole.state())
        forward, backward = _merged(parts[0], parts[-1]), _merged(parts[-1], parts[0])
        assert_states(forward, backward, exact=True)  # the sum of two is commutative to the bit
        _assert_results(left.result(), whole.result())

    splits()

    file = io.BytesIO()
    np.savez(file, **whole.state())
    file.seek(0)
    with np.load(file) as loaded:
        again = type(whole).from_state(dict(loaded))
    assert_states(again.state(), whole.state(), exact=True)
    _assert_results(again.result(), whole.result())
    again.update(cells(range(n_cells)))  # it goes on where it stopped
    assert_states(again.state(), _merged(whole, whole))
    state = whole.state()
    for array in state.values():
        if array.flags.writeable:
            array[...] = array.dtype.type(1)
    assert_states(whole.state(), _merged(empty(), whole))  # the state is a copy, or read-only


def _merged(a: Accumulator, b: Accumulator) -> State:
    new = type(a).from_state(a.state())
    new.merge(b)
    return new.state()


def _check_types(state: State) -> None:
    for name, array in state.items():
        assert isinstance(array, np.ndarray), name
        # What nobody can write into is no sum: strata are of as few bytes as they need.
        if array.ndim and array.flags.writeable:
            assert array.dtype in (np.int64, np.float64), (
                f"{name} is {array.dtype}: counts are int64, sums float64"
            )


def assert_states(got: State, expected: State, *, exact: bool = False) -> None:
    """Whole numbers equal; sums equal to rounding, or to the bit."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        if exact or array.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], array, err_msg=name)
        else:
            np.testing.assert_allclose(got[name], array, rtol=1e-12, atol=1e-14, err_msg=name)


def _assert_results(got: object, expected: object) -> None:
    parts = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for mine, theirs in parts:
        # a variance is a difference of sums: its error is relative to the squares, not to itself
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
