"""attention_scatter against float64: ids that repeat and that do not count, blocks of rows, threads, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import attention_scatter
from scfast.reference import attention_scatter as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    fused,
    make_case,
    plain_maps,
    with_options,
)

GENES = 37


def some_ids(n: int, seed: int = 7, genes: int = GENES) -> torch.Tensor:
    """int64 [n] ids that repeat, a tenth of them -1."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(genes, (n,), generator=random)
    ids[torch.rand(n, generator=random) < 0.1] = -1
    return ids


def plain_sums(
    case: Case,
    ids: torch.Tensor,
    ids_q: torch.Tensor,
    heads: str,
    weights: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Maps that torch computes in the dtype of the inputs, added pair by pair in the dtype of the sums."""
    out = torch.zeros(GENES + 1, GENES + 1, dtype=dtype)  # -1 is the last
    maps, packing = fused(plain_maps(case), heads, weights), case.packing
    for (a,), source, target in zip(maps, packing.split_k(ids), packing.split_q(ids_q), strict=True):
        out.index_put_((source[:, None], target[None]), a.T.to(dtype), accumulate=True)
    return out[:GENES, :GENES]


def check(
    case: Case,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Every instruction set against the float64 reference, by the error rule."""
    ids, ids_q = some_ids(case.packing.total_k), some_ids(case.packing.total_q, 8)
    options = {"heads": heads, "head_weights": head_weights, "ids_q": ids_q, **case.options}
    exact = oracle(case.q, case.k, case.packing, ids, (GENES, GENES), **options)
    absolute = None if head_weights is None else head_weights.abs()
    size = oracle(case.q, case.k, case.packing, ids, (GENES, GENES), **options | {"head_weights": absolute})
    plain = plain_sums(case, ids, ids_q, heads, head_weights, dtype)
    for isa in every_instruction_set():
        out = torch.zeros(GENES, GENES, dtype=dtype)
        assert attention_scatter(case.q, case.k, case.packing, ids, out, **options) is out
        assert_close(f"sums ({isa})", out.float(), exact, size, case, plain)
        assert ((size == 0) <= (out == 0)).all(), "nothing is added where no pair lies"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    case = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(case)
    check(case, "sum", dtype=torch.float32)


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        check(with_options(wanted, dtype, heads=4, kv_heads=2, dim=16))


@pytest.mark.parametrize("heads", ["mean", "sum"])
def test_head_weights(heads: str) -> None:
    for weights in ([1.0, 0.5, 2.0, 0.25], [1.0, -0.5, 0.0, 2.0]):
        check(make_case([49, 0, 1, 130], heads=4, kv_heads=2, dim=16), heads, torch.tensor(weights))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 140)), max_size=5),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
    heads=st.sampled_from(("mean", "sum")),
    weighted=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    n_heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    softcap: float | None,
    offset: int | None,
    heads: str,
    weighted: bool,
    wide: bool,
    seed: int,
) -> None:
    case = make_case(
        [n for n, _ in lengths], [n for _, n in lengths], *n_heads, dim, dtype=dtype, seed=seed,
        causal_offset=None if offset is None else [offset] * len(lengths),
        softcap=softcap, causal=offset is not None,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    head_weights = torch.rand(n_heads[0], generator=random) + 0.1 if weighted else None
    check(case, heads, head_weights, torch.float64 if wide else torch.float32)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_rows_add_up_to_the_whole(seed: int, isa: str) -> None:
    case = make_case([130, 0, 49, 7], heads=3, dim=16, seed=seed)
    ids = some_ids(case.packing.total_k, seed)
    whole = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(GENES, GENES).double())
    blocks = []
    for first, last in ((0, 1), (1, 20), (20, 20), (20, GENES)):
        out = torch.zeros(last - first, GENES, dtype=torch.float64)
        blocks.append(attention_scatter(case.q, case.k, case.packing, ids, out, rows=(first, last)))
    assert torch.equal(torch.cat(blocks), whole)


def test_sums_are_added_to_what_is_there(isa: str) -> None:
    case = make_case([49, 130], heads=2, dim=16)
    ids = some_ids(179)
    once = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(GENES, GENES).double())
    twice = attention_scatter(case.q, case.k, case.packing, ids, once.clone())
    torch.testing.assert_close(twice, 2 * once, rtol=1e-14, atol=0)


def test_a_cell_after_another_gives_the_bits_of_both_together(isa: str) -> None:
    case = make_case([49, 130, 7], heads=2, dim=16)
    ids = some_ids(186)
    together = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(GENES, GENES).double())
    out = torch.zeros(GENES, GENES, dtype=torch.float64)
    for q, k, i in zip(*(case.packing.split_q(x) for x in (case.q, case.k, ids)), strict=True):
        attention_scatter(q, k, Packing.from_lengths([len(q)]), i, out)
    assert torch.equal(out, together)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("genes", [1, 2, 500])
def test_bits_do_not_depend_on_threads(genes: int, dtype: torch.dtype, isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)
    ids = some_ids(case.packing.total_k, genes=genes)

    def run() -> torch.Tensor:
        return attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(genes, genes, dtype=dtype))

    torch.set_num_threads(1)
    expected = run()
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        assert torch.equal(run(), expected), f"{n} threads"


def test_bands_of_many_strips() -> None:
    case = make_case([1500, 1400, *[60] * 40], heads=1, dim=8)
    ids = some_ids(case.packing.total_k)
    got = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(GENES, GENES).double())
    exact = oracle(case.q, case.k, case.packing, ids, (GENES, GENES))
    torch.testing.assert_close(got, exact, rtol=2e-6, atol=0)


def test_ids_of_either_width_and_rows_of_a_wider_matrix(isa: str) -> None:
    case = make_case([49, 70], heads=2, dim=16)
    ids = some_ids(119)
    expected = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(GENES, GENES).double())
    wide = torch.full((GENES, GENES + 9), 3.0, dtype=torch.float64)
    attention_scatter(case.q, case.k, case.packing, ids.int(), wide[:, 4 : GENES + 4].zero_())
    assert torch.equal(wide[:, 4 : GENES + 4], expected)
    assert (wide[:, :4] == 3).all()
    assert (wide[:, GENES + 4 :] == 3).all()


def test_uncounted_tokens_are_not_added_but_take_their_share(isa: str) -> None:
    case = make_case([60], heads=2, dim=16)
    ids = torch.arange(60)
    whole = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(60, 60).double())
    ids[[0, 17, 59]] = -1
    got = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(60, 60).double())
    kept = ids >= 0
    torch.testing.assert_close(got[kept][:, kept], whole[kept][:, kept], rtol=1e-6, atol=0)
    assert (got[~kept] == 0).all()
    assert (got[:, ~kept] == 0).all()


@pytest.mark.parametrize("where", ["q", "k"])
def test_a_broken_cell_reaches_its_own_genes_only(where: str, isa: str) -> None:
    case = make_case([60, 50, 60], heads=3, dim=16)
    ids = torch.cat([torch.arange(60), torch.arange(60, 110), torch.arange(60)])
    clean = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(110, 110).double())
    getattr(case, where)[65, 1, 3] = torch.nan
    got = attention_scatter(case.q, case.k, case.packing, ids, torch.zeros(110, 110).double())
    own = slice(60, 110), slice(60, 110)
    broken = torch.zeros(110, 110, dtype=torch.bool)
    broken[own if where == "k" else (own[0], 65)] = True
    assert torch.equal(got.isnan(), broken)
    others = torch.ones(110, 110, dtype=torch.bool)
    others[own] = False
    assert torch.equal(got[others], clean[others])


def test_nothing_to_add_leaves_out_alone(isa: str) -> None:
    out = torch.full((5, 5), torch.nan, dtype=torch.float64)
    case = make_case([3, 0, 2], heads=2, dim=8)
    attention_scatter(case.q, case.k, case.packing, torch.full((5,), -1), out)
    empty = make_case([], heads=2, dim=8)
    attention_scatter(empty.q, empty.k, empty.packing, torch.zeros(0, dtype=torch.int64), out)
    assert out.isnan().all()
