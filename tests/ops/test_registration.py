"""The ops as torch sees them: schemas, fakes, torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scfast import Packing, ops
from tests.ops import test_cosine_registration as cosine
from tests.ops.helpers import DTYPES, Case, make_case

MAPS: dict[str, Callable[[Case], tuple[str, list[torch.Tensor | None]]]] = {
    "prob": lambda case: ("prob", []),
    "norm": lambda case: ("norm", [torch.ones(49, 4, 4), torch.ones(38, 4), None, torch.ones(38), None]),
    "relevance": lambda case: ("relevance", [case.v, case.v.new_ones(38, 4, 8), torch.ones(38, 4)]),
}


def arguments(op: str, dtype: torch.dtype = torch.float32, **extra: Any) -> tuple[Any, ...]:
    """Arguments of the registered op, in the order of its schema."""
    case = make_case([5, 0, 33], [7, 2, 40], heads=4, kv_heads=2, dim=16, dim_v=8, dtype=dtype)
    packing = case.packing
    where = (packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset)
    score = (extra.get("bias"), 0.25, extra.get("softcap", 0.0), extra.get("causal", False))
    heads, weights = extra.get("heads", "mean"), extra.get("head_weights")
    out = case.v.new_ones(38, 4, 8)
    wanted = extra.get("wanted", (True, True, True))
    given = MAPS[extra.get("map", "prob")](case)
    linear = "sum" if heads == "max" else heads
    return {
        "attention_forward": (
            case.q,
            case.k,
            case.v,
            *where,
            *score,
            *wanted,
        ),
        "attention_backward": (out.clone(), case.q, case.k, case.v, out, torch.ones(38, 4), *where, *score),
        "attention_colsum": (
            case.q,
            case.k,
            *where,
            *score,
            torch.rand(3, 38),
            heads,
            weights,
            None,
            True,
            *given,
        ),
        "attention_matmul": (case.q, case.k, *where, *score, torch.rand(49, 20), linear, weights),
        "attention_scatter": (
            case.q,
            case.k,
            *where,
            *score,
            torch.arange(49) % 20,
            torch.arange(38),
            torch.zeros(20, 38, dtype=torch.float64),
            0,
            20,
            "sum" if heads == "none" else linear,
            weights,
        ),
        "attention_rowstats": (case.q, case.k, *where, *score, heads, weights, *given),
        "attention_topk": (case.q, case.k, *where, *score, 5, heads, weights),
        "attention_compare": (case.q, case.k, case.q * 2, case.k, *where, *score, *score),
    }[op]


OPS = (
    "attention_forward",
    "attention_backward",
    "attention_colsum",
    "attention_rowstats",
    "attention_matmul",
    "attention_compare",
    "attention_topk",
    "attention_scatter",
)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {
            "bias": torch.zeros(49, 4),
            "softcap": 3.0,
            "causal": True,
            "heads": "none",
            "wanted": (False, True, False),
        },
        {"heads": "max", "head_weights": torch.ones(4), "wanted": (False, False, False)},
        {"heads": "sum", "map": "norm"},
        {"heads": "max", "map": "relevance"},
    ],
    ids=["plain", "options", "fusion", "norm", "relevance"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_opcheck(op: str, extra: dict[str, Any]) -> None:
    results = torch.library.opcheck(getattr(torch.ops.scfast, op).default, arguments(op, **extra))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fakes_have_the_shapes_and_dtypes_of_the_real_thing(op: str, dtype: torch.dtype) -> None:
    args = arguments(op, dtype)
    real = getattr(torch.ops.scfast, op)(*args)
    with FakeTensorMode() as mode:
        fake_args = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args]
        fake = getattr(torch.ops.scfast, op)(*fake_args)
    fake, real = ((x,) if isinstance(x, torch.Tensor) else x or () for x in (fake, real))
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]


def call(
    op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
) -> tuple[torch.Tensor, ...]:
    """The public op between ordinary torch code."""
    q = q * 2
    if op == "attention_forward":
        out, lse, received, _, _ = ops.attention_forward(q, k, v, packing, received=True, causal=True)
        return out + 1, lse, received
    if op == "attention_matmul":
        return (ops.attention_matmul(q, k, packing, k.flatten(1), heads="none") + 1,)
    if op == "attention_topk":
        return ops.attention_topk(q, k, packing, 3)
    if op == "attention_compare":
        products = ops.attention_compare(q, k, v, k, packing, causal=(True, False))
        return *products, products.cosine
    if op == "attention_scatter":
        ids = torch.arange(q.shape[0])
        out = q.new_ones((q.shape[0], q.shape[0]), dtype=torch.float64)
        return (ops.attention_scatter(q, k, packing, ids, out) + 1, out)
    if op == "attention_colsum":
        sums, rho = ops.attention_colsum(q, k, packing, heads="max", row_sums=True)
        return sums * 2, rho
    return tuple(x + 1 for x in ops.attention_rowstats(q, k, packing, heads="mean"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_compiled_as_one_graph(op: str, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for lengths in ([5, 33], [7, 2, 11]):  # other lengths, other sizes: traced again
        case = make_case(lengths, heads=2, dim=16)
        expected = call(op, case.q, case.k, case.v, case.packing)
        for ours, same in zip(compiled(op, case.q, case.k, case.v, case.packing), expected, strict=True):
            assert torch.equal(ours, same)


def test_every_public_op_on_packed_tensors_is_registered_and_tested_here() -> None:
    public = [getattr(ops, name) for name in ops.__all__ if name.islower()]
    packed = {op.__name__ for op in public if "packing" in inspect.signature(op).parameters}
    assert packed == {*OPS, *cosine.OPS}
    assert all(hasattr(torch.ops.scfast, name) for name in packed)
