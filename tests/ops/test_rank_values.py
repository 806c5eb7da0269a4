from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scfast import ops
from scfast.ops import RankedCells, rank_values
from scfast.reference.rank_values import collapse, scaled_values
from tests.ops.helpers import every_instruction_set

GOLDEN = ("v1", "v1old", "v1n64", "v1dense", "v2", "v2n64")
#: How upstream stored n_counts or divided: its values are rounded otherwise there, and its tokens the same.
OTHER_ROUNDING = ("v1n64", "v1dense", "v2n64")
COUNT_DTYPES = (
    "float32",
    "float64",
    "int32",
    "int64",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "float16",
    "uint32",
    "uint64",
)


@pytest.fixture(autouse=True)
def _poisoned_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as the smallest integer, so that a place nobody wrote is seen."""
    empty = np.empty

    def poisoned(*args: Any, **options: Any) -> np.ndarray:
        array = empty(*args, **options)
        if array.dtype in (np.int32, np.int64):
            array.fill(np.iinfo(array.dtype).min)
        return array

    monkeypatch.setattr(np, "empty", poisoned)


def same(a: RankedCells, b: RankedCells) -> None:
    for name, x, y in zip(RankedCells._fields, a, b, strict=True):
        assert x.dtype == y.dtype == (np.int32 if name in ("token_ids", "columns") else np.int64)
        np.testing.assert_array_equal(x, y, err_msg=name)


def csr(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.indptr, matrix.indices, matrix.data


def vocabulary(shared: Path, name: str, genes: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens, medians and groups of the columns; '' is a column of no gene."""
    table = pd.read_csv(
        shared / "data" / "geneformer" / f"{name}.csv.gz", float_precision="round_trip"
    ).dropna()
    table = table.set_index("token")
    first: dict[str, int] = {}
    return {
        "token_ids": table.token_id.reindex(genes).fillna(-1).to_numpy().astype(np.int64),
        "factors": table.nonzero_median.reindex(genes).to_numpy(),
        "groups": np.array([first.setdefault(gene, i) if gene else i for i, gene in enumerate(genes)]),
    }


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "geneformer_tokens_a.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def cells(shared: Path) -> anndata.AnnData:
    return anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")


def golden_input(
    shared: Path, golden: dict[str, np.ndarray], cells: anndata.AnnData, prefix: str
) -> dict[str, Any]:
    old = prefix.startswith("v1")
    genes = cells.var_names.to_numpy() if old else golden["v2/collapsed_id"]
    n_counts = golden["n_counts"]
    columns = vocabulary(shared, "v1_gc30M_tokens" if old else "v2_gc104M_tokens", genes)
    return {"n_counts": n_counts if prefix.endswith("n64") else n_counts.astype(np.float32), **columns}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("prefix", GOLDEN)
def test_tokens_of_the_authors_code(
    shared: Path, golden: dict[str, np.ndarray], cells: anndata.AnnData, prefix: str, backend: str
) -> None:
    options = golden_input(shared, golden, cells, prefix)
    matrix = cells.X[golden["cell_index"]]
    ranked = rank_values(*csr(matrix), **options, backend=backend)
    np.testing.assert_array_equal(ranked.offsets, golden[f"{prefix}/offsets"])
    np.testing.assert_array_equal(ranked.token_ids, golden[f"{prefix}/tokens"])
    np.testing.assert_array_equal(options["token_ids"][ranked.columns], ranked.token_ids)
    np.testing.assert_array_equal(options["groups"][ranked.columns], ranked.columns)
    if prefix == "v2":
        assert (options["groups"] != np.arange(matrix.shape[1])).any()  # the data exercise the sums
        np.testing.assert_array_equal(ranked.n_in_vocabulary, golden["v2/n_detected_in_vocab"])


@pytest.mark.parametrize("prefix", GOLDEN)
def test_values_are_rounded_as_the_authors_code_rounds(
    shared: Path, golden: dict[str, np.ndarray], cells: anndata.AnnData, prefix: str
) -> None:
    options = golden_input(shared, golden, cells, prefix)
    matrix = cells.X[golden["cell_index"]]
    ranked = rank_values(*csr(matrix), **options)
    for cell in range(matrix.shape[0]):
        genes, counts = collapse(matrix[cell].indices, matrix[cell].data, options["groups"])
        place = slice(*ranked.offsets[cell : cell + 2])
        at = np.searchsorted(genes, ranked.columns[place])
        factors = options["factors"][ranked.columns[place]]
        values = scaled_values(counts[at], options["n_counts"][cell], factors, 1e4)
        assert (np.diff(values) < 0).all()
        expected = golden[f"{prefix}/value"][place]
        if prefix in OTHER_ROUNDING:
            np.testing.assert_allclose(values, expected, rtol=3e-7)
        else:
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(("prefix", "limit", "special"), [("v1", 300, 0), ("v2", 256, 2)])
def test_truncation_of_the_authors_code(
    shared: Path, golden: dict[str, np.ndarray], cells: anndata.AnnData, prefix: str, limit: int, special: int
) -> None:
    options = golden_input(shared, golden, cells, prefix)
    ranked = rank_values(*csr(cells.X[golden["cell_index"]]), **options, max_tokens=limit - special)
    expected = golden[f"{prefix}/trunc{limit}_tokens"]
    if special:  # <cls> is 2, <eos> is 3
        expected = expected[expected > 3]
    np.testing.assert_array_equal(ranked.token_ids, expected)
    np.testing.assert_array_equal(np.diff(ranked.offsets) + special, golden[f"{prefix}/trunc{limit}_length"])


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
def test_real_cells_are_those_of_the_reference(
    shared: Path, golden: dict[str, np.ndarray], cells: anndata.AnnData, n_threads: int, isa: str
) -> None:
    options = {**golden_input(shared, golden, cells, "v2"), "n_counts": cells.obs["n_counts"].to_numpy()}
    exact = rank_values(*csr(cells.X), **options, max_tokens=500, backend="reference")
    assert np.diff(exact.offsets).max() == 500
    same(rank_values(*csr(cells.X), **options, max_tokens=500, threads=n_threads), exact)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Cells from empty to wider than the radix sort's smallest; few distinct values, so ties galore."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_columns = draw(st.sampled_from([1, 2, 40, 47, 48, 49, 200, 900]))
    n_cells = draw(st.integers(0, 20))
    dtype = draw(st.sampled_from(COUNT_DTYPES))
    density = random.choice([0.0, 0.02, 0.5, 1.0], size=(n_cells, 1))
    counts = random.integers(1, draw(st.sampled_from([2, 4, 120])), size=(n_cells, n_columns))
    if dtype.startswith("float") and draw(st.booleans()):
        counts = (counts * random.choice([1.0, 0.37, 1e-3, 250.0], size=counts.shape)).astype(dtype)
    counts = (counts * (random.random(counts.shape) < density)).astype(dtype)
    rows, columns = np.nonzero(
        random.random(counts.shape) < np.maximum(density, counts != 0)
    )  # and stored zeros
    order = (
        random.permutation(len(rows)) if draw(st.booleans()) else np.arange(len(rows))
    )  # columns in any order
    order = order[np.argsort(rows[order], kind="stable")]
    rows, columns = rows[order], columns[order]
    index = draw(st.sampled_from(["int32", "int64", "uint32", "int16"]))
    factors = random.choice(
        draw(st.sampled_from([[1.0], [1.0, 2.0, 4.0], [0.3, 1.1, 7.9, 1e-4, 3e5]])), n_columns
    )
    groups = np.arange(n_columns)
    if draw(st.booleans()):
        standing = random.permutation(n_columns)[: max(1, n_columns // 2)]
        members = np.setdiff1d(groups, standing)[:: draw(st.integers(1, 3))]
        groups[members] = random.choice(standing, len(members))
    totals = counts.sum(1, dtype=np.float64)
    return {
        "indptr": np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))]).astype(index),
        "indices": columns.astype(index),
        "data": counts[rows, columns],
        "n_counts": np.where(totals > 0, totals, 0).astype(draw(st.sampled_from(["float32", "float64"]))),
        "token_ids": np.where(random.random(n_columns) < 0.8, random.permutation(n_columns) + 2, -1),
        "factors": factors * random.choice([1.0, 1 + 1e-9], n_columns),  # equal but for the last bits
        "groups": groups if draw(st.booleans()) else None,
        "max_tokens": draw(st.sampled_from([None, 1, 3, 50, 10_000])),
    }


@given(problems(), st.sampled_from([1, 2, 3, 7]))
def test_any_cells_are_those_of_the_reference(problem: dict[str, Any], n_threads: int) -> None:
    exact = rank_values(**problem, backend="reference")
    for _ in every_instruction_set():
        same(rank_values(**problem, threads=n_threads), exact)
        same(rank_values(**problem), exact)


@pytest.mark.parametrize("spread", ["one value", "last bits", "all exponents", "two ends"])
def test_cells_either_side_of_each_sort(spread: str) -> None:
    for n in (47, 48, 1023, 1025, 4095, 4096, 4097, 65_535, 65_536, 65_537, 70_000):
        random = np.random.default_rng(n)
        factors = {
            "one value": np.ones(n),
            "last bits": 1 + random.integers(0, 4, n) * 2.0**-51,
            "all exponents": np.exp2(random.integers(-900, 900, n).astype(float)),
            "two ends": np.where(random.random(n) < 0.5, 1e-300, 1e300) * (1 + random.integers(0, 99, n)),
        }[spread]
        problem = {
            "indptr": np.array([0, n]), "indices": np.arange(n), "data": random.integers(1, 9, n),
            "n_counts": np.array([5.0 * n]), "token_ids": random.permutation(n) - 1, "factors": factors,
        }  # fmt: skip
        exact = rank_values(**problem, backend="reference")
        for _ in every_instruction_set():
            same(rank_values(**problem), exact)


def test_ties_are_ordered_by_column_and_sums_stand_in_their_column() -> None:
    ranked = rank_values(
        np.array([0, 5, 5]), np.array([4, 2, 0, 1, 3]), np.array([2, 2, 1, 1, 0]), n_counts=np.array([7, 0]),
        token_ids=np.array([5, 6, 7, 8, 9]), factors=np.ones(5), groups=np.array([1, 1, 2, 3, 4]),
    )  # fmt: skip
    assert ranked.columns.tolist() == [1, 2, 4]
    assert ranked.token_ids.tolist() == [6, 7, 9]
    assert ranked.offsets.tolist() == [0, 3, 3]
    assert ranked.n_expressed.tolist() == ranked.n_in_vocabulary.tolist() == [3, 0]


def test_a_block_of_rows_needs_no_copy(cells_of: dict[str, Any]) -> None:
    whole = rank_values(**cells_of)
    block = rank_values(
        **{**cells_of, "indptr": cells_of["indptr"][1:3], "n_counts": cells_of["n_counts"][1:2]}
    )
    np.testing.assert_array_equal(block.columns, whole.columns[whole.offsets[1] : whole.offsets[2]])


def test_no_cells_and_no_columns() -> None:
    nothing = {
        "indices": np.zeros(0, int),
        "data": np.zeros(0),
        "token_ids": np.zeros(0, int),
        "factors": np.zeros(0),
    }
    ranked = rank_values(np.zeros(1, int), n_counts=np.zeros(0), **nothing)
    assert [len(field) for field in ranked] == [0, 0, 1, 0, 0]
    assert rank_values(np.zeros(3, int), n_counts=np.zeros(2), **nothing).offsets.tolist() == [0, 0, 0]


def test_values_too_large_or_small_for_their_type_keep_an_order(isa: str) -> None:
    ranked = rank_values(
        np.array([0, 4]), np.arange(4), np.array([1e-44, 3e38, 1.0, 2e38]), n_counts=np.array([1e-3]),
        token_ids=np.arange(4), factors=np.array([1e300, 1.0, 1.0, 1.0]),
    )  # fmt: skip
    assert ranked.columns.tolist() == [1, 3, 2, 0]  # two infinite values tie
    for n in (2, 100):  # counts so small that their values are 0, of genes with and without a token
        vanish = rank_values(
            np.array([0, n]), np.arange(n), np.full(n, 1e-45, np.float32), n_counts=np.array([1e10]),
            token_ids=np.arange(n) % 2 - 1, factors=np.ones(n),
        )  # fmt: skip
        assert vanish.columns.tolist() == list(range(1, n, 2))


@pytest.fixture
def cells_of() -> dict[str, Any]:
    return {
        "indptr": np.array([0, 2, 4]), "indices": np.array([0, 1, 1, 2]),
        "data": np.array([1.0, 2.0, 3.0, 4.0]), "n_counts": np.array([3.0, 7.0]),
        "token_ids": np.array([2, 3, 4]), "factors": np.ones(3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": np.array([1, 2, -3, 4])}, ValueError, r"cell 1 in column 1 is -3.*raw counts"),
        ({"data": np.array([1, np.nan, 3, 4])}, ValueError, r"cell 0 in column 1 is nan"),
        ({"data": np.array([1, 2, 3, np.inf])}, ValueError, r"cell 1 in column 2 is inf"),
        ({"data": np.array([1, 2, 3, 1e300])}, ValueError, r"cell 1 in column 2 is 1e\+300"),
        ({"data": np.ones(4, complex)}, TypeError, "data must be a 1-D array of counts, got complex128"),
        ({"data": np.ones(3)}, ValueError, "indices has 4 entries and data has 3"),
        (
            {"indices": np.array([0, 1, 1, 3])},
            ValueError,
            "cell 1 has a count in column 3, but token_ids names 3",
        ),
        ({"indices": np.array([0, -1, 1, 2])}, ValueError, "cell 0 has a count in column -1"),
        ({"indices": np.array([1, 1, 1, 2])}, ValueError, r"cell 0 holds column 1 twice.*sum_duplicates"),
        ({"indices": np.zeros((2, 2), int)}, TypeError, "indices must be a 1-D array of integers"),
        ({"indptr": np.array([0, 2, 5])}, ValueError, "at most 4"),
        ({"indptr": np.array([0, 3, 2])}, ValueError, "indptr must rise"),
        (
            {"indptr": np.array([0.0, 2.0, 4.0])},
            TypeError,
            "indptr must be a 1-D array of integers, got float64",
        ),
        ({"n_counts": np.array([3.0, 0.0])}, ValueError, "n_counts of cell 1 is 0.0"),
        ({"n_counts": np.array([np.nan, 1.0])}, ValueError, "n_counts of cell 0 is nan"),
        ({"n_counts": np.array([-3.0, 1.0])}, ValueError, "n_counts of cell 0 is -3.0"),
        ({"n_counts": np.array([1e-42, 1.0])}, ValueError, "n_counts of cell 0"),
        ({"n_counts": np.ones(3)}, ValueError, "n_counts must be 2 numbers"),
        ({"token_ids": np.array([2, 3, -2])}, ValueError, r"between -1 \(no token\)"),
        ({"token_ids": np.array([2, 3, 2**31])}, ValueError, "between -1"),
        ({"token_ids": np.ones(3)}, TypeError, "token_ids must be a 1-D array of integers"),
        ({"factors": np.array([1.0, 0.0, 1.0])}, ValueError, r"factors\[1\] is 0.0"),
        ({"factors": np.array([1.0, np.nan, 1.0])}, ValueError, r"factors\[1\] is nan"),
        ({"factors": np.array([1e-310, 1.0, 1.0])}, ValueError, r"factors\[0\] is 1e-310"),
        ({"factors": np.ones(2)}, ValueError, "factors must be 3 numbers"),
        ({"groups": np.array([1, 2, 2])}, ValueError, r"groups\[0\] is 1.*stands for itself"),
        ({"groups": np.array([0, 1, 3])}, ValueError, r"groups\[2\] is 3"),
        ({"groups": np.array([0, -1, 2])}, ValueError, r"groups\[1\] is -1"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be an integer of at least 1, got 0"),
        ({"threads": 0}, ValueError, "threads must be"),
        ({"target": 0.0}, ValueError, "target must be a finite number above 0, got 0.0"),
        ({"target": np.nan}, ValueError, "target must be"),
        ({"backend": "gpu"}, ValueError, "backend='gpu' is unknown"),
    ],
)
def test_bad_input_is_named(
    cells_of: dict[str, Any], change: dict, error: type[Exception], message: str
) -> None:
    rank_values(**cells_of)
    with pytest.raises(error, match=message):
        rank_values(**{**cells_of, **change})


def test_columns_without_a_token_need_no_factor(cells_of: dict[str, Any]) -> None:
    known = {**cells_of, "token_ids": np.array([2, -1, 4])}
    same(rank_values(**known), rank_values(**{**known, "factors": np.array([1.0, np.nan, 1.0])}))


def test_threads_follow_torch(cells_of: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    one = rank_values(**cells_of)
    torch.set_num_threads(2)
    same(rank_values(**cells_of), one)
    assert "rank_values" in ops.__all__
