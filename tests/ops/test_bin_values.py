from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast.ops import bin_values

MODES: dict[str, dict[str, Any]] = {
    "segment": {"n_bins": 11},
    "value": {"n_bins": 30, "cutoff": 8.0, "per_doubling": 3},
    "quantile": {"n_bins": 51, "seed": 5},
}
COUNT_DTYPES = (
    "float32", "float64", "int32", "int64", "uint8", "int8", "uint16", "int16", "float16", "uint32", "uint64",
)  # fmt: skip
#: A cell of signed values, which are not counts.
SIGNED = 8


@pytest.fixture(autouse=True)
def _poisoned_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as the smallest integer, so that a place nobody wrote is seen."""
    empty = np.empty

    def poisoned(*args: Any, **options: Any) -> np.ndarray:
        array = empty(*args, **options)
        if array.dtype == np.int32:
            array.fill(np.iinfo(np.int32).min)
        return array

    monkeypatch.setattr(np, "empty", poisoned)


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype == np.int32
    np.testing.assert_array_equal(a, b)


def one_cell(values: Any, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = np.asarray(values, dtype=dtype)
    return np.array([0, len(data)]), np.arange(len(data)), data


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "scgpt_binning_a.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("n_bins", [51, 11])
@pytest.mark.parametrize("row", [row for row in range(9) if row != SIGNED])
def test_bins_of_the_authors_code(golden: dict[str, np.ndarray], row: int, n_bins: int, backend: str) -> None:
    values = golden[f"row_{row}"]
    found = np.flatnonzero(values)
    for seed, expected in zip(golden["seeds"], golden[f"binned{n_bins}_row_{row}"], strict=True):
        u = np.random.RandomState(seed).rand(len(found))
        cell = np.array([0, len(found)]), found, values[found]
        bins = np.zeros(len(values), np.int32)
        bins[found] = bin_values(*cell, mode="quantile", n_bins=n_bins, uniforms=u, backend=backend)
        np.testing.assert_array_equal(bins, expected)


def test_stored_zeros_and_whole_rows_are_binned_as_the_authors_bin_them(
    golden: dict[str, np.ndarray],
) -> None:
    for row, values in ((0, golden["row_0"]), (1, golden["row_1"])):  # with zeros, and with none
        u = np.zeros(len(values))
        u[values > 0] = np.random.RandomState(42).rand((values > 0).sum())
        bins = bin_values(*one_cell(values, np.float32), mode="quantile", n_bins=51, uniforms=u)
        expected = golden[f"binned51_row_{row}"][golden["seeds"].tolist().index(42)]
        np.testing.assert_array_equal(bins, expected)


def test_signed_values_are_refused(golden: dict[str, np.ndarray]) -> None:
    cell = one_cell(golden[f"row_{SIGNED}"], np.float32)
    with pytest.raises(ValueError, match=r"cell 0 in column 1 is -0\.178.*not centred or scaled"):
        bin_values(*cell, mode="quantile", n_bins=51)


@pytest.mark.parametrize("mode", MODES)
def test_real_cells(shared: Path, mode: str) -> None:
    x = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad").X[:40]
    totals = np.asarray(x.sum(1)).ravel()
    for data in (x.data, np.log1p(x.data * np.repeat(1e4 / totals, np.diff(x.indptr))).astype(np.float32)):
        options = MODES[mode] | ({"totals": totals, "target": totals.mean()} if mode == "value" else {})
        bins = bin_values(x.indptr, x.indices, data, mode=mode, **options)
        same(bins, bin_values(x.indptr, x.indices, data, mode=mode, **options, backend="reference"))
        assert bins.min() >= 1
        assert bins.max() <= options["n_bins"] - 1


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Cells from empty to beyond the radix sort's smallest, whole and broken counts, many ties and none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_columns = draw(st.sampled_from([1, 2, 40, 63, 64, 65, 200, 900]))
    n_cells = draw(st.integers(0, 20))
    dtype = draw(st.sampled_from(COUNT_DTYPES))
    density = random.choice([0.0, 0.02, 0.5, 1.0], size=(n_cells, 1))
    counts = random.integers(1, draw(st.sampled_from([2, 4, 120])), size=(n_cells, n_columns)).astype(float)
    if dtype.startswith("float"):
        kind = draw(st.sampled_from(["whole", "broken", "continuous", "last bits"]))
        if kind == "broken":
            counts *= random.choice([1.0, 0.37, 1e-3, 250.0], size=counts.shape)
        elif kind == "continuous":
            counts = random.lognormal(0, 2, size=counts.shape)
        elif kind == "last bits":
            counts = 1 + random.integers(0, 4, counts.shape) * 2.0**-51
    elif np.dtype(dtype).itemsize >= 4:
        counts *= draw(st.sampled_from([1, 11, 1023, 100_003]))
    counts = (counts * (random.random(counts.shape) < density)).astype(dtype)
    rows, columns = np.nonzero(random.random(counts.shape) < np.maximum(density, counts != 0))
    order = random.permutation(len(rows)) if draw(st.booleans()) else np.arange(len(rows))
    order = order[np.argsort(rows[order], kind="stable")]
    rows, columns = rows[order], columns[order]
    index = draw(st.sampled_from(["int32", "int64", "uint32", "int16"]))
    return {
        "indptr": np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))]).astype(index),
        "indices": columns.astype(index),
        "data": counts[rows, columns],
        **draw(st.sampled_from(["segment", "value", "quantile"]).flatmap(lambda mode: options(mode, counts))),
    }


def options(mode: str, counts: np.ndarray) -> st.SearchStrategy[dict[str, Any]]:
    n_cells = len(counts)
    more = {
        "segment": st.just({}),
        "value": st.sampled_from(
            [
                {},
                {"cutoff": 2.5, "per_doubling": 1},
                {"totals": counts.sum(1, dtype=float), "target": 77.7, "cutoff": 1.0},
            ]
        ),
        "quantile": st.sampled_from(
            [{}, {"seed": 2**64 - 1}, {"seed": 7, "row_ids": np.arange(n_cells) * 2**40 - 3}]
        ),
    }[mode]
    n_bins = st.sampled_from([12, 51] if mode == "value" else [2, 3, 12, 51, 1000])
    return st.builds(lambda n, rest: {"mode": mode, "n_bins": n, **rest}, n_bins, more)


@given(problems(), st.sampled_from([1, 2, 3, 7]))
def test_any_cells_are_those_of_the_reference(problem: dict[str, Any], n_threads: int) -> None:
    exact = bin_values(**problem, backend="reference")
    same(bin_values(**problem, threads=n_threads), exact)
    same(bin_values(**problem), exact)


@pytest.mark.parametrize("n_bins", [2, 8, 51])
def test_segments_of_distinct_values_hold_equal_counts(n_bins: int) -> None:
    for n in (1, 7, 33, 1023, 1500):
        values = np.random.default_rng(n).permutation(n) + 0.5
        bins = bin_values(*one_cell(values), mode="segment", n_bins=n_bins)
        assert np.ptp(np.bincount(bins, minlength=n_bins)[1:]) <= 1
        assert (np.diff(bins[np.argsort(values)]) >= 0).all()


def test_segments_do_not_see_the_scale_of_a_cell() -> None:
    counts = np.random.default_rng(0).integers(0, 9, 300)
    whole = bin_values(*one_cell(counts), mode="segment", n_bins=8)
    same(bin_values(*one_cell(np.log1p(counts * 0.37)), mode="segment", n_bins=8), whole)


def test_value_bins_are_those_of_the_formula() -> None:
    x = np.array([0, 0.2, 1, 1.4, 2.5, 3.5, 7.4, 8, 8.1, 10.07, 10.08, 12.69, 12.7, 16, 16.1, 32, 1e9])
    bins = bin_values(*one_cell(x), mode="value", n_bins=16)
    assert bins.tolist() == [0, 1, 1, 1, 2, 4, 7, 8, 9, 9, 10, 10, 11, 11, 12, 14, 15]
    halved = bin_values(*one_cell(x * 2), mode="value", n_bins=16, totals=np.array([10.0]), target=5.0)
    same(halved, bins)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_and_empty_cells_take_bin_0(mode: str) -> None:
    bins = bin_values(np.array([0, 0, 3, 3]), np.arange(3), np.array([0, 4, 0]), mode=mode, **MODES[mode])
    assert (bins > 0).tolist() == [False, True, False]
    nothing = np.zeros(0, int), np.zeros(0)
    assert bin_values(np.zeros(1, int), *nothing, mode=mode, **MODES[mode]).shape == (0,)


def test_random_ties_depend_on_seed_cell_and_column_alone() -> None:
    counts = np.random.default_rng(1).integers(0, 4, (30, 400))
    rows, columns = np.nonzero(counts)
    indptr, data = np.concatenate([[0], np.cumsum((counts > 0).sum(1))]), counts[rows, columns]
    whole = bin_values(indptr, columns, data, mode="quantile", n_bins=51, seed=3)
    for first, last in ((0, 7), (7, 30)):  # a block of rows needs no copy
        block = bin_values(
            indptr[first : last + 1], columns, data, mode="quantile", n_bins=51, seed=3,
            row_ids=np.arange(first, last),
        )  # fmt: skip
        same(block, whole[indptr[first] : indptr[last]])
    backwards = np.concatenate([np.arange(a, b)[::-1] for a, b in pairwise(indptr)])
    turned = bin_values(indptr, columns[backwards], data[backwards], mode="quantile", n_bins=51, seed=3)
    same(turned, whole[backwards])
    assert (bin_values(indptr, columns, data, mode="quantile", n_bins=51, seed=4) != whole).mean() > 0.5


def test_ties_are_spread_evenly() -> None:
    n = 50 * 4000
    bins = bin_values(*one_cell(np.ones(n)), mode="quantile", n_bins=51)
    drawn = np.bincount(bins, minlength=51)
    assert drawn[0] == 0
    chi2 = ((drawn[1:] - 4000.0) ** 2 / 4000).sum()
    assert 21 < chi2 < 95  # 49 degrees of freedom: within 1e-4 on either side


@pytest.fixture
def cells() -> dict[str, Any]:
    return {
        "indptr": np.array([0, 2, 4]), "indices": np.array([0, 1, 1, 2]),
        "data": np.array([1.0, 2.0, 3.0, 4.0]), "mode": "value", "n_bins": 20,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": np.array([1, 2, -3, 4])}, ValueError, "cell 1 in column 1 is -3; it must be"),
        ({"data": np.array([1, np.nan, 3, 4])}, ValueError, "cell 0 in column 1 is nan"),
        ({"data": np.array([1, 2, 3, np.inf])}, ValueError, "cell 1 in column 2 is inf"),
        ({"data": np.ones(4, complex)}, TypeError, "data must be a 1-D array of counts, got complex128"),
        ({"data": np.ones(3)}, ValueError, "indices has 4 entries and data has 3"),
        ({"indices": np.array([0, -1, 1, 2])}, ValueError, "cell 0 has a count in column -1"),
        ({"indices": np.array([-1, 1, 1, 2])}, ValueError, "cell 0 has a count in column -1"),
        ({"indices": np.array([1, 1, 1, 2])}, ValueError, r"cell 0 holds column 1 twice.*sum_duplicates"),
        ({"indptr": np.array([0, 2, 5])}, ValueError, "at most 4"),
        ({"mode": "log"}, ValueError, "mode='log' is unknown; use one of 'segment', 'value', 'quantile'"),
        ({"n_bins": 1}, ValueError, "zeros take a bin"),
        ({"n_bins": 0}, ValueError, "n_bins must be an integer of at least 1, got 0"),
        ({"cutoff": 0.5}, ValueError, r"between 1 and n_bins - 1 = 19.*got 0.5"),
        ({"cutoff": 20}, ValueError, "got 20.0"),
        ({"cutoff": np.nan}, ValueError, "got nan"),
        ({"per_doubling": 0}, ValueError, "per_doubling must be an integer of at least 1"),
        ({"totals": np.array([3.0, 7.0])}, ValueError, "totals and target belong together"),
        ({"target": 5.0}, ValueError, "totals and target belong together"),
        ({"totals": np.ones(3), "target": 5.0}, ValueError, "totals must be 2 numbers"),
        ({"totals": np.array([3.0, 0.0]), "target": 5.0}, ValueError, "totals of cell 1 is 0.0"),
        ({"totals": np.array([3.0, 7.0]), "target": 0.0}, ValueError, "target must be a finite number"),
        ({"seed": 1}, ValueError, "seed means nothing to mode='value', only to 'quantile'"),
        ({"mode": "segment", "cutoff": 8.0}, ValueError, "cutoff means nothing to mode='segment'"),
        ({"mode": "quantile", "seed": -1}, ValueError, "seed must be an integer from 0 to 2"),
        ({"mode": "quantile", "row_ids": np.ones(2)}, TypeError, "row_ids must be integers"),
        ({"mode": "quantile", "row_ids": np.arange(3)}, ValueError, "row_ids must be 2 numbers"),
        ({"mode": "quantile", "uniforms": np.ones(4)}, ValueError, r"uniforms must lie in \[0, 1\)"),
        ({"mode": "quantile", "uniforms": np.zeros(3)}, ValueError, "uniforms must be 4 numbers"),
        ({"mode": "quantile", "uniforms": np.zeros(4), "seed": 1}, ValueError, "leave seed and row_ids out"),
        ({"threads": 0}, ValueError, "threads must be"),
        ({"backend": "gpu"}, ValueError, "backend='gpu' is unknown"),
        ({"backend": "triton"}, RuntimeError, "bin_values has no Triton kernel"),
    ],
)
def test_bad_input_is_named(
    cells: dict[str, Any], change: dict, error: type[Exception], message: str
) -> None:
    bin_values(**cells)
    with pytest.raises(error, match=message):
        bin_values(**{**cells, **change})


def test_cells_without_counts_need_no_total(cells: dict[str, Any]) -> None:
    bins = bin_values(**{**cells, "data": np.array([1, 2, 0, 0])}, totals=np.array([3, 0]), target=3.0)
    assert bins.tolist() == [1, 2, 0, 0]


def test_threads_follow_torch(cells: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    one = bin_values(**cells)
    torch.set_num_threads(2)
    same(bin_values(**cells), one)
