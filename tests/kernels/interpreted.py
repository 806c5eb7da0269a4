"""The Triton kernels against float64, element by element in Triton's interpreter: run by test_interpreter.py.

The checks are those of the op tests, on small cells. bfloat16 is left out: the interpreter multiplies it wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from scfast import Packing, ops
from scfast.bench import tune
from scfast.bench.timing import host_clock
from scfast.ops import _dispatch, _triton
from tests.ops import (
    test_attention_backward,
    test_attention_colsum,
    test_attention_forward,
    test_attention_rowstats,
)
from tests.ops.helpers import OPTION_SETS, Case, make_case, row_weights

# Rows without keys divide by 0 before they are set aside; broken rows have no largest score.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

CHECKS: dict[str, Callable[..., None]] = {
    "forward": test_attention_forward.check,
    "backward": test_attention_backward.check,
    "colsum": test_attention_colsum.check,
    "rowstats": test_attention_rowstats.check,
}
HEADS = ("mean", "sum", "max", "min", "none")
DTYPES = (torch.float32, torch.float16)

#: (lengths, lengths_k, heads, kv_heads, head dim, value dim)
SHAPES: dict[str, tuple[Any, ...]] = {
    "empty batch": ([], None, 2, 2, 16, 16),
    "empty cells": ([0, 0], None, 2, 2, 16, 16),
    "one token": ([1], None, 1, 1, 64, 64),
    "ragged": ([7, 0, 33, 1], None, 2, 2, 16, 16),
    "no keys": ([5, 0, 40], [0, 4, 17], 2, 1, 24, 24),
    "several tiles": ([70], None, 1, 1, 32, 32),
    "dim 1": ([33], None, 1, 1, 1, 1),
    "dim 65": ([35], None, 1, 1, 65, 33),
    "dim 256": ([17], None, 1, 1, 256, 256),
    "readout": ([1, 9], [65, 31], 2, 1, 3, 5),
}


@pytest.fixture(autouse=True)
def _triton_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op tests run as they are, on the Triton kernels, and once instead of for each instruction set."""
    backends = {name: _dispatch.BACKENDS[name] for name in ("triton", "reference")}
    monkeypatch.setattr(_dispatch, "BACKENDS", backends)
    for check in CHECKS.values():
        monkeypatch.setitem(check.__globals__, "every_instruction_set", lambda: iter(["triton"]))


def test_the_interpreter_is_on() -> None:
    case = make_case([3], heads=1, dim=8)
    assert _triton.INTERPRETED
    assert _dispatch.choose("attention_colsum", "auto", q=case.q, k=case.k) == "triton"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), ("ragged", torch.float16), ("no keys", torch.float16)],
)
@pytest.mark.parametrize("op", CHECKS)
def test_shapes(op: str, shape: str, dtype: torch.dtype) -> None:
    CHECKS[op](make_case(*SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize("n", range(0, len(OPTION_SETS), 7))
@pytest.mark.parametrize("op", CHECKS)
def test_score_options(op: str, n: int) -> None:
    wanted = OPTION_SETS[n][0]
    lengths, lengths_k = [33, 0, 3], [34, 5, 0]
    offsets = [wanted["offset"]] * 3 if isinstance(wanted["offset"], int) else None
    case = make_case(
        lengths, lengths_k, 2, 1, 16, dtype=DTYPES[n // 7 % 2], causal_offset=offsets, seed=3,
        scale=wanted["scale"], softcap=wanted["softcap"], causal=wanted["offset"] is not None,
    )  # fmt: skip
    if wanted["bias"]:
        shape = (39,) if wanted["bias"] == "keys" else (39, 2)
        case.options["key_bias"] = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    CHECKS[op](case)


SIGNS = {"none": None, "positive": [0.5, 2.0], "mixed": [1.0, -0.5]}


@pytest.mark.parametrize(
    ("n", "residual", "signs"),
    [(1, None, "none"), (1, 0.5, "positive"), (3, 0.5, "none"), (3, None, "mixed")],
)
@pytest.mark.parametrize("heads", HEADS)
def test_column_sums(heads: str, n: int, residual: float | None, signs: str) -> None:
    case = make_case([33, 0, 1], heads=2, kv_heads=1, dim=16, dtype=DTYPES[n // 2])
    factors = None if SIGNS[signs] is None else torch.tensor(SIGNS[signs])
    weights = row_weights(case.packing, n, signed=n == 3)
    CHECKS["colsum"](case, weights, heads=heads, head_weights=factors, residual=residual)


@pytest.mark.parametrize(("heads", "residual"), [("mean", 0.5), ("none", None), ("max", None)])
def test_more_sets_of_weights_than_a_visit_takes(heads: str, residual: float | None) -> None:
    from scfast.kernels.attention_colsum import SETS

    case = make_case([17, 1], heads=2, dim=8)
    CHECKS["colsum"](case, row_weights(case.packing, SETS + 1), heads=heads, residual=residual)


@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_statistics_of_fused_rows(heads: str, options: dict[str, Any]) -> None:
    case = make_case([33, 0, 1], heads=2, kv_heads=1, dim=16, **options)
    CHECKS["rowstats"](case, heads, torch.tensor(SIGNS["positive"]) if options else None)


def test_a_negative_head_weight_leaves_zero_as_the_largest_entry_where_keys_are_hidden() -> None:
    case = make_case([5], heads=2, dim=8, causal=True)
    weights = torch.tensor([-1.0, 1.0])
    got = ops.attention_rowstats(case.q, case.k, case.packing, head_weights=weights, causal=True)
    exact = ops.attention_rowstats(
        case.q, case.k, case.packing, head_weights=weights, causal=True, backend="reference"
    )
    torch.testing.assert_close(got.max, exact.max)


@pytest.mark.parametrize("op", CHECKS)
def test_large_scores(op: str) -> None:
    CHECKS[op](make_case([33], heads=1, dim=32, spread=100.0, seed=5))


def everything(case: Case, weights: torch.Tensor, d_out: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every output of every op: name -> tensor whose last dimension runs over tokens."""
    inputs, options = (case.q, case.k, case.packing), case.options
    full = ops.attention_forward(
        *inputs[:2], case.v, case.packing, received=True, entropy=True, max=True, **options
    )
    back = ops.attention_backward(
        d_out, *inputs[:2], case.v, full.out.contiguous(), full.lse, case.packing, **options
    )
    results = {name: x if name == "received" else x.movedim(0, -1) for name, x in full._asdict().items()}
    results |= {name: x.movedim(0, -1) for name, x in back._asdict().items()}
    rows = ops.attention_rowstats(*inputs, heads="mean", **options)._asdict()
    results |= {f"row {name}": x.movedim(0, -1) for name, x in rows.items() if name != "total"}
    for heads, n in (("mean", 1), ("none", 2), ("max", 1)):
        sums = ops.attention_colsum(*inputs, weights[:n], heads=heads, residual=0.5, **options)
        results[f"colsum {heads}"] = sums
    return results


@pytest.fixture(scope="module")
def batch() -> tuple[Case, torch.Tensor, torch.Tensor]:
    case = make_case([9, 34, 1], heads=2, dim=12, seed=6, causal=True, softcap=5.0)
    return case, torch.rand(2, 44) + 0.1, torch.randn(44, 2, 12)


@pytest.fixture(scope="module")
def clean(batch: tuple[Case, torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "BACKENDS", {"triton": _triton.unsupported})
        return everything(*batch)


def assert_same(
    got: dict[str, torch.Tensor], clean: dict[str, torch.Tensor], tokens: Any = slice(None)
) -> None:
    for name, x in got.items():
        assert torch.equal(x[..., tokens], clean[name][..., tokens]), name


def test_two_runs_give_the_same_bits(batch: Any, clean: dict[str, torch.Tensor]) -> None:
    assert_same(everything(*batch), clean)


def test_memory_outside_the_cells_does_not_matter(batch: Any, clean: dict[str, torch.Tensor]) -> None:
    def buried(x: torch.Tensor) -> torch.Tensor:
        """The same values, with NaN before, behind and between the heads."""
        field = torch.full((x.shape[0] + 80, x.shape[1], x.shape[2] + 8), torch.nan)
        field[40:-40, :, : x.shape[2]] = x
        return field[40:-40, :, : x.shape[2]]

    case, weights, d_out = batch
    case = replace(case, q=buried(case.q), k=buried(case.k), v=buried(case.v))
    around = torch.full((4, 44), torch.nan)
    around[1:3] = weights
    assert_same(everything(case, around[1:3], d_out), clean)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_a_broken_cell_stays_alone(where: str, batch: Any, clean: dict[str, torch.Tensor]) -> None:
    case, weights, d_out = batch
    broken = getattr(case, where).clone()
    broken[9, 1, 3] = torch.nan  # the first token of the second cell
    got = everything(replace(case, **{where: broken}), weights, d_out)
    for tokens in (slice(0, 9), slice(43, 44)):
        assert_same(got, clean, tokens)
    assert got["out"][1, 3, 9].isnan().all()
    if where != "v":
        hit = [name for name, x in got.items() if x[..., 9].isnan().any()]
        assert set(got) <= {*hit, "dq", "dk", "dv"}


def test_bits_do_not_depend_on_batch_mates(batch: Any, clean: dict[str, torch.Tensor]) -> None:
    case, weights, d_out = batch
    order = [2, 1]
    q, k, v = (torch.cat([case.packing.split_q(x)[cell] for cell in order]) for x in (case.q, case.k, case.v))
    mixed = replace(case, q=q, k=k, v=v, packing=Packing.from_lengths([1, 34]))
    pick = [43, *range(9, 43)]
    got = everything(mixed, weights[:, pick], d_out[pick])
    for name, x in got.items():
        assert torch.equal(x, clean[name][..., pick]), name


@pytest.mark.parametrize("heads", HEADS)
def test_rows_of_weight_zero_are_skipped_whatever_they_hold(heads: str) -> None:
    case = make_case([33, 5], heads=1, dim=16)
    weights = torch.rand(3, 38)
    weights[:, [3, 4, 33]] = 0.0
    broken = case.q.clone()
    broken[[3, 33]] = torch.nan
    broken[4] = torch.inf
    for n, residual in ((1, None), (3, 0.5)):
        options = {"heads": heads, "residual": residual}
        whole, skipped = (
            ops.attention_colsum(q, case.k, case.packing, weights[:n], **options) for q in (case.q, broken)
        )
        assert torch.equal(whole, skipped)


def test_the_lowest_bias_hides_a_key_and_equal_ones_are_alike() -> None:
    case = make_case([20], heads=2, dim=8)
    lowest = torch.finfo(torch.float32).min
    bias = torch.zeros(20)
    bias[12:] = lowest
    got = ops.attention_forward(
        case.q, case.k, case.v, case.packing, key_bias=bias, received=True, entropy=True
    )
    fewer = ops.attention_forward(
        case.q, case.k[:12], case.v[:12], Packing.from_lengths([20], [12]), received=True, entropy=True
    )
    torch.testing.assert_close(got.out, fewer.out)
    torch.testing.assert_close(got.entropy, fewer.entropy)
    assert (got.received[:, 12:] == 0).all()
    all_hidden = ops.attention_forward(
        case.q, case.k, case.v, case.packing, key_bias=torch.full((20,), lowest), max=True
    )
    torch.testing.assert_close(all_hidden.max, torch.full((20, 2), 0.05))


@pytest.mark.parametrize("visit", ["colsum", "backward keys"])
def test_tiles_are_timed_and_checked(visit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scfast.kernels.tiles import Tile

    monkeypatch.setattr(tune, "SMALL_LENGTHS", (1, 33))
    shape = tune.Shape(visit, torch.float32, 16)
    bench = tune.Bench(shape, torch.device("cpu"), clock=host_clock, heads=1, lengths=[20])
    tiles = [Tile(32, 32, 4, 1, "compiled"), Tile(16, 32, 4, 1, "measured")]
    times = bench.times(tiles, 1)
    assert not bench.refused
    assert list(times) == tiles
    assert min(times.values()) > 0
