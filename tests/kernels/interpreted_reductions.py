"""Products, comparisons, strongest keys and sums by id in Triton's interpreter: see interpreted.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from scfast import Packing, ops
from scfast.ops import _dispatch, _triton
from tests.ops import (
    test_attention_compare,
    test_attention_matmul,
    test_attention_scatter,
    test_attention_topk,
)
from tests.ops.helpers import OPTION_SETS, Case, make_case

# Rows without keys divide by 0 before they are set aside; broken rows have no largest score.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]


def check_matmul(case: Case, *fusion: Any) -> None:
    test_attention_matmul.check(case, test_attention_matmul.matrix(case, 20), *fusion)


def check_compare(case: Case) -> None:
    """Two models with options of their own, in both orders: the kernel begins with the one that sees more."""
    two = test_attention_compare.second_model(case, kv_heads=case.q.shape[1])
    test_attention_compare.check(case, two)
    if case.options.get("causal"):
        test_attention_compare.check(two, case)


def check_topk(case: Case, *fusion: Any) -> None:
    test_attention_topk.check(case, 5, *fusion)


CHECKS: dict[str, Callable[..., None]] = {
    "matmul": check_matmul,
    "compare": check_compare,
    "topk": check_topk,
    "scatter": test_attention_scatter.check,
}
MODULES = (test_attention_compare, test_attention_matmul, test_attention_scatter, test_attention_topk)
DTYPES = (torch.float32, torch.float16)
#: Name -> output of each cell.
Outputs = dict[str, list[torch.Tensor]]

#: (lengths, lengths_k, heads, kv_heads, head dim)
SHAPES: dict[str, tuple[Any, ...]] = {
    "empty batch": ([], None, 2, 2, 16),
    "empty cells": ([0, 0], None, 2, 2, 16),
    "ragged": ([7, 0, 33, 1], None, 2, 2, 16),
    "no keys": ([5, 0, 40], [0, 4, 17], 2, 1, 24),
    "several tiles": ([70], None, 1, 1, 32),
    "dim 65": ([35], None, 1, 1, 65),
    "readout": ([1, 9], [65, 31], 2, 1, 3),
}


@pytest.fixture(autouse=True)
def _triton_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op tests run as they are, on the Triton kernels, and once instead of for each instruction set."""
    assert _triton.INTERPRETED
    backends = {name: _dispatch.BACKENDS[name] for name in ("triton", "reference")}
    monkeypatch.setattr(_dispatch, "BACKENDS", backends)
    for module in MODULES:
        monkeypatch.setattr(module, "every_instruction_set", lambda: iter(["triton"]))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), ("ragged", torch.float16), ("no keys", torch.float16)],
)
@pytest.mark.parametrize("op", CHECKS)
def test_shapes(op: str, shape: str, dtype: torch.dtype) -> None:
    CHECKS[op](make_case(*SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize("n", range(5, len(OPTION_SETS), 14))
@pytest.mark.parametrize("op", CHECKS)
def test_score_options(op: str, n: int) -> None:
    wanted = OPTION_SETS[n][0]
    offsets = [wanted["offset"]] * 3 if isinstance(wanted["offset"], int) else None
    case = make_case(
        [33, 0, 3], [34, 5, 0], 2, 1, 16, dtype=DTYPES[n % 2], causal_offset=offsets, seed=3,
        scale=wanted["scale"], softcap=wanted["softcap"], causal=wanted["offset"] is not None,
    )  # fmt: skip
    if wanted["bias"]:
        shape = (39,) if wanted["bias"] == "keys" else (39, 2)
        case.options["key_bias"] = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    CHECKS[op](case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "heads"),
    [
        ("matmul", "sum"),
        ("matmul", "none"),
        ("topk", "max"),
        ("topk", "min"),
        ("topk", "none"),
        ("scatter", "sum"),
    ],
)
def test_fusions(op: str, heads: str, dtype: torch.dtype) -> None:
    case = make_case([33, 0, 1], heads=2, kv_heads=1, dim=16, dtype=dtype)
    CHECKS[op](case, heads, torch.tensor([1.0, -0.5]))


@pytest.mark.parametrize("width", [1, 65])
def test_widths_of_products(width: int) -> None:
    case = make_case([18], heads=2, dim=16)
    test_attention_matmul.check(case, test_attention_matmul.matrix(case, width))


@pytest.mark.parametrize("n", [1, 40, 70])
def test_few_and_many_strongest_keys(n: int) -> None:
    """More than a visit holds are found in two."""
    test_attention_topk.check(make_case([3, 1], [75, 20], heads=2, dim=8, causal=n == 40), n)


def test_equal_entries_come_in_the_order_of_their_keys() -> None:
    q, k = torch.zeros(2, 40, 2, 8).unbind(0)
    q[3, 1] = torch.nan
    got = ops.attention_topk(q, k, Packing.from_lengths([40]), 5, heads="none", causal=True)
    for row in range(40):
        keys = [key if key <= row else -1 for key in range(5)]
        assert got.keys[row].tolist() == [keys, keys]
    assert got.values[3, 1, :4].isnan().all()
    assert got.values[3, 1, 4] == 0
    assert not got.values.isnan().any(-1)[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sums_of_ids_that_repeat(dtype: torch.dtype) -> None:
    """Within a tile and across tiles, cells and blocks; some are not counted, some rows are elsewhere."""
    case = make_case([40, 0, 3], heads=2, dim=8, causal=dtype == torch.float32)
    ids = torch.tensor([0, 1, 1, -1, 5] * 8 + [5, 1, 6])
    ids[20:38] = 5
    exact = torch.zeros(7, 7, dtype=torch.float64)
    ops.attention_scatter(case.q, case.k, case.packing, ids, exact, backend="reference", **case.options)
    out = torch.full((7, 7), 0.5, dtype=dtype)
    ops.attention_scatter(case.q, case.k, case.packing, ids, out, **case.options)
    torch.testing.assert_close(out.double(), exact + 0.5, rtol=2e-6, atol=0)
    block = torch.zeros(5, 7, dtype=dtype)
    ops.attention_scatter(case.q, case.k, case.packing, ids, block, rows=(1, 6), **case.options)
    torch.testing.assert_close(block.double(), exact[1:6], rtol=2e-6, atol=0)


def test_ids_beyond_the_sums_are_refused() -> None:
    case, out = make_case([3], heads=1, dim=8), torch.zeros(4, 4)
    ids = torch.tensor([0, 1, 2])
    ops.attention_scatter(case.q, case.k, case.packing, ids, out)
    ids[1] = 4  # looked at again: they have changed
    with pytest.raises(ValueError, match="ids holds 4; ids lie in 0 to 3, or are -1"):
        ops.attention_scatter(case.q, case.k, case.packing, ids, out)


def test_a_map_compared_with_itself() -> None:
    case = make_case([35, 1], heads=2, kv_heads=1, dim=12, causal=True)
    got = test_attention_compare.products(case, case)
    assert torch.equal(got.dot, got.square1)
    assert torch.equal(got.dot, got.square2)


def everything(case: Case) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """(name, output of each cell) of every op."""
    split, inputs, options = case.packing.split_q, (case.q, case.k, case.packing), case.options
    x = case.v.flatten(1)
    yield "matmul", split(ops.attention_matmul(*inputs, x, **options))
    yield "matmul by heads", split(ops.attention_matmul(*inputs, x, heads="none", **options))
    for name, x in ops.attention_topk(*inputs, 7, heads="max", **options)._asdict().items():
        yield f"topk {name}", split(x)
    ids = torch.arange(case.q.shape[0])
    out = torch.zeros(len(ids), len(ids), dtype=torch.float64)
    ops.attention_scatter(*inputs, ids, out, **options)
    yield "scatter", [out[own[0] : own[-1] + 1, own[0] : own[-1] + 1] for own in split(ids)]
    other = (case.v, case.k.flip(2))
    for name, products in (
        ops.attention_compare(*inputs[:2], *other, case.packing, **options)._asdict().items()
    ):
        yield f"compare {name}", list(products.unbind(0))


@pytest.fixture(scope="module")
def batch() -> Case:
    return make_case([9, 34, 1], heads=2, dim=12, seed=6, causal=True, softcap=5.0)


@pytest.fixture(scope="module")
def clean(batch: Case) -> Outputs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "BACKENDS", {"triton": _triton.unsupported})
        return dict(everything(batch))


def assert_same(case: Case, clean: Outputs, pairs: tuple[tuple[int, int], ...]) -> Outputs:
    """Cells of this batch are those of the clean one, bit by bit; all that was found."""
    got = dict(everything(case))
    for name, found in got.items():
        for cell, other in pairs:
            assert torch.equal(found[cell], clean[name][other]), name
    return got


def test_two_runs_give_the_same_bits_whatever_memory_outside_the_cells_holds(
    batch: Case, clean: Outputs
) -> None:
    def buried(x: torch.Tensor) -> torch.Tensor:
        """The same values, with NaN before, behind and between the heads."""
        field = torch.full((x.shape[0] + 80, x.shape[1], x.shape[2] + 8), torch.nan)
        field[40:-40, :, : x.shape[2]] = x
        return field[40:-40, :, : x.shape[2]]

    case = replace(batch, q=buried(batch.q), k=buried(batch.k), v=buried(batch.v))
    assert_same(case, clean, ((0, 0), (1, 1), (2, 2)))


@pytest.mark.parametrize("where", ["q", "k"])
def test_a_broken_cell_stays_alone(where: str, batch: Case, clean: Outputs) -> None:
    broken = getattr(batch, where).clone()
    broken[9, 1, 3] = torch.nan  # the first token of the second cell
    case = replace(batch, **{where: broken})
    for name, found in assert_same(case, clean, ((0, 0), (2, 2))).items():
        if name not in ("compare square2", "topk keys"):
            assert found[1].isnan().any(), name


def test_bits_do_not_depend_on_batch_mates(batch: Case, clean: Outputs) -> None:
    split = batch.packing.split_q
    q, k, v = (torch.cat([split(x)[cell] for cell in (2, 1)]) for x in (batch.q, batch.k, batch.v))
    case = replace(batch, q=q, k=k, v=v, packing=Packing.from_lengths([1, 34]))
    assert_same(case, clean, ((0, 2), (1, 1)))
