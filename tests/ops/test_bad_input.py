"""Inputs that do not fit are refused by name, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scfast import Packing
from scfast.ops import (
    attention_colsum,
    attention_forward,
    attention_matmul,
    attention_rowstats,
    attention_scatter,
)
from scfast.ops._dispatch import BACKENDS, BackendError
from tests.ops.helpers import make_case


def call(op: str, **changed: Any) -> object:
    """The op on sound inputs but for ``changed``."""
    case = make_case([5, 4], [6, 3], heads=4, kv_heads=2, dim=8)
    inputs = {"q": case.q, "k": case.k, "v": case.v, "packing": case.packing} | changed
    if op != "forward":
        inputs.pop("v")
    if op == "matmul":
        inputs = {"x": torch.zeros(9, 5, device=inputs["q"].device)} | inputs
    if op == "scatter":
        there = inputs["q"].device
        ids = torch.arange(9, device=there)
        out = torch.zeros(9, 9, device=there, dtype=torch.float64)
        inputs = {"ids": ids, "ids_q": ids, "out": out} | inputs
    return {
        "forward": attention_forward,
        "colsum": attention_colsum,
        "rowstats": attention_rowstats,
        "matmul": attention_matmul,
        "scatter": attention_scatter,
    }[op](**inputs)


ALL = ("forward", "colsum", "rowstats", "matmul", "scatter")
REFUSED: list[tuple[tuple[str, ...], dict[str, Any], type[Exception], str]] = [
    (
        ALL,
        {"q": torch.zeros(1, 9, 4, 8)},
        ValueError,
        r"q must be packed .* got shape \(1, 9, 4, 8\).*Packing.from_lengths",
    ),
    (ALL, {"k": torch.zeros(9, 16)}, ValueError, r"k must be packed as \[tokens, heads, head dim\]"),
    (ALL, {"q": torch.zeros(8, 4, 8)}, ValueError, "q has 8 tokens, but the packing's cells add up to 9"),
    (ALL, {"k": torch.zeros(10, 2, 8)}, ValueError, "k has 10 tokens, but the packing's cells add up to 9"),
    (ALL, {"k": torch.zeros(9, 2, 7)}, ValueError, "q has head dim 8 and k has 7"),
    (ALL, {"k": torch.zeros(9, 3, 8)}, ValueError, "q has 4 heads, which k's 3 heads do not divide"),
    (ALL, {"k": torch.zeros(9, 0, 8)}, ValueError, "q has 4 heads, which k's 0 heads do not divide"),
    (ALL, {"q": torch.zeros(9, 4, 257)}, ValueError, "q has head dim 257; 1 to 256"),
    (ALL, {"q": torch.zeros(9, 4, 0)}, ValueError, "q has head dim 0; 1 to 256"),
    (ALL, {"k": torch.zeros(9, 2, 8).half()}, TypeError, r"q is torch.float32 and k is torch.float16; cast"),
    (ALL, {"q": torch.zeros(9, 4, 8).double()}, TypeError, r"q is torch.float64; use one of torch.float32"),
    (ALL, {"k": torch.zeros(9, 2, 8, dtype=torch.int32)}, TypeError, "k is torch.int32; use one of"),
    (
        ALL,
        {"k": torch.zeros(9, 2, 8, device="meta")},
        ValueError,
        "k on meta, the packing on cpu: move them together",
    ),
    (
        ALL,
        {"packing": [5, 4]},
        TypeError,
        "packing must be a scfast.Packing, got list: use Packing.from_lengths",
    ),
    (ALL, {"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    (ALL, {"softcap": -1.0}, ValueError, "softcap must be a positive number or None, got -1.0"),
    (ALL, {"softcap": float("inf")}, ValueError, "softcap must be a positive number"),
    (
        ALL,
        {"key_bias": torch.zeros(8)},
        ValueError,
        r"key_bias must have shape \(9,\) or \(9, 4\), got \(8,\)",
    ),
    (
        ALL,
        {"key_bias": torch.zeros(9, 2)},
        ValueError,
        r"key_bias must have shape \(9,\) or \(9, 4\), got \(9, 2\)",
    ),
    (ALL, {"key_bias": torch.zeros(9, device="meta")}, ValueError, "key_bias is on meta and q on cpu"),
    (
        ALL,
        {"backend": "gpu"},
        ValueError,
        "backend='gpu' is unknown; use 'auto' or one of 'cpu', 'triton', 'reference'",
    ),
    (("forward",), {"v": torch.zeros(9, 4, 8)}, ValueError, "k has 2 heads and v has 4"),
    (
        ("forward",),
        {"v": torch.zeros(8, 2, 8)},
        ValueError,
        "v has 8 tokens, but the packing's cells add up to 9",
    ),
    (
        ("forward",),
        {"v": torch.zeros(9, 2, 8).bfloat16()},
        TypeError,
        "q is torch.float32 and v is torch.bfloat16",
    ),
    (
        ("colsum", "rowstats", "matmul", "scatter"),
        {"heads": "median"},
        ValueError,
        "heads='median' is not a fusion; use one of mean, sum",
    ),
    (
        ("colsum", "rowstats", "matmul", "scatter"),
        {"head_weights": torch.ones(2)},
        ValueError,
        r"head_weights must have shape \(4,\), got \(2,\)",
    ),
    (
        ("colsum",),
        {"row_weights": torch.ones(3, 8)},
        ValueError,
        r"row_weights must have shape \[R, 9\] or \[9\], got \(3, 8\)",
    ),
    (
        ("colsum",),
        {"row_weights": torch.ones(0, 9)},
        ValueError,
        r"row_weights must have shape .* got \(0, 9\)",
    ),
    (("colsum",), {"row_weights": torch.ones(1, 1, 9)}, ValueError, "row_weights must have shape"),
    (
        ("colsum",),
        {"row_weights": torch.ones(9, dtype=torch.int64)},
        TypeError,
        "row_weights must be floating point, got torch.int64",
    ),
    (
        ("colsum",),
        {"row_weights": torch.ones(9, device="meta")},
        ValueError,
        "row_weights are on meta and q on cpu",
    ),
    (
        ("matmul",),
        {"heads": "max"},
        ValueError,
        "attention_matmul does not take heads='max': it is not linear in the heads; use one of mean, sum, none",
    ),
    (("matmul",), {"heads": "min"}, ValueError, "attention_matmul does not take heads='min'"),
    (
        ("matmul",),
        {"x": torch.zeros(8, 5)},
        ValueError,
        r"x must have shape \[9, W\], one row per key and W at least 1, got \(8, 5\)",
    ),
    (("matmul",), {"x": torch.zeros(9, 0)}, ValueError, r"W at least 1, got \(9, 0\)"),
    (("matmul",), {"x": torch.zeros(9)}, ValueError, r"one row per key .* got \(9,\)"),
    (
        ("matmul",),
        {"x": torch.zeros(9, 5).half()},
        TypeError,
        "x is torch.float16; use torch.float32 or the dtype of q, torch.float32",
    ),
    (("matmul",), {"x": torch.zeros(9, 5, device="meta")}, ValueError, "x is on meta and q on cpu"),
    (
        ("scatter",),
        {"heads": "max"},
        ValueError,
        "attention_scatter does not take heads='max'.*; use one of mean, sum",
    ),
    (
        ("scatter",),
        {"heads": "none"},
        ValueError,
        "heads='none': it keeps the heads apart; use one of mean, sum",
    ),
    (
        ("scatter",),
        {"ids": torch.arange(8)},
        ValueError,
        r"ids must have shape \(9,\), one per token, got \(8,\)",
    ),
    (("scatter",), {"ids_q": torch.arange(10)}, ValueError, r"ids_q must have shape \(9,\)"),
    (("scatter",), {"ids_q": None}, ValueError, "ids_q is needed where cells have other queries than keys"),
    (("scatter",), {"ids": torch.rand(9)}, TypeError, "ids is torch.float32; use torch.int64 or torch.int32"),
    (("scatter",), {"ids": torch.arange(9, device="meta")}, ValueError, "ids is on meta and q on cpu"),
    (
        ("scatter",),
        {"ids": torch.arange(1, 10)},
        ValueError,
        "ids holds 9; ids lie in 0 to 8, or are -1: not counted",
    ),
    (("scatter",), {"ids": torch.arange(9) - 2}, ValueError, "ids holds -2; ids lie in 0 to 8"),
    (("scatter",), {"ids_q": torch.arange(9) + 5}, ValueError, "ids_q holds 13; ids lie in 0 to 8"),
    (
        ("scatter",),
        {"out": torch.zeros(9)},
        ValueError,
        r"out must be \[sources, targets\], got shape \(9,\)",
    ),
    (("scatter",), {"out": torch.zeros(9, 9).half()}, TypeError, "out is torch.float16; use torch.float64"),
    (("scatter",), {"out": torch.zeros(9, 9, device="meta")}, ValueError, "out is on meta and q on cpu"),
    (("scatter",), {"out": torch.zeros(9, 9).T[:, ::2]}, ValueError, "its rows must be dense and apart"),
    (("scatter",), {"out": torch.zeros(1, 9).expand(9, 9)}, ValueError, "its rows must be dense and apart"),
    (("scatter",), {"out": torch.zeros(9, 9, requires_grad=True)}, ValueError, r"pass out.detach\(\)"),
    (("scatter",), {"rows": (0, 8)}, ValueError, r"rows=\(0, 8\) are 8 sources and out has 9 rows"),
    (("scatter",), {"rows": (-1, 8)}, ValueError, r"rows=\(-1, 8\)"),
    (("colsum",), {"residual": 1.5}, ValueError, r"residual must lie in \[0, 1\], got 1.5"),
    (("colsum",), {"residual": float("nan")}, ValueError, r"residual must lie in \[0, 1\], got nan"),
    (("colsum",), {"residual": 0.5}, ValueError, "residual needs as many queries as keys in every cell"),
]


@pytest.mark.parametrize(
    ("op", "changed", "kind", "text"),
    [(op, *rest) for ops, *rest in REFUSED for op in ops],
    ids=[f"{op}-{text[:40]}" for ops, _, _, text in REFUSED for op in ops],
)
def test_refused_by_name(op: str, changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(op, **changed)


def test_sound_inputs_pass() -> None:
    for op in ALL:
        call(op)


def on_meta() -> dict[str, Any]:
    return {
        "q": torch.zeros(9, 4, 8, device="meta"),
        "k": torch.zeros(9, 2, 8, device="meta"),
        "v": torch.zeros(9, 2, 8, device="meta"),
        "packing": Packing.from_lengths([5, 4], device="meta"),
    }


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_no_backend_lists_inputs_and_refusals(op: str, backend: str) -> None:
    with pytest.raises(BackendError) as refusal:
        call(op, backend=backend, **on_meta())
    message = str(refusal.value)
    assert re.search(rf"no backend runs attention_{op} on q: torch.float32 \(9, 4, 8\) on meta", message)
    assert "cpu: q is on meta, not on the CPU; k is on meta" in message
    assert "backend='reference'" in message


@pytest.mark.parametrize("op", ALL)
def test_auto_never_takes_the_reference(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(op: str, **tensors: torch.Tensor) -> list[str]:
        return ["out of order today"]

    refusing: Callable[..., list[str]] = refuses
    for name in [name for name in BACKENDS if name != "reference"]:
        monkeypatch.setitem(BACKENDS, name, refusing)
    with pytest.raises(BackendError, match="cpu: out of order today"):
        call(op)


@pytest.mark.parametrize("index", ["cu_seqlens_q", "cu_seqlens_k"])
def test_a_hand_made_packing_of_another_dtype_is_refused(index: str) -> None:
    case = make_case([5, 4], heads=2, dim=8)
    where = {
        name: getattr(case.packing, name)
        for name in ("cu_seqlens_q", "cu_seqlens_k", "work", "causal_offset")
    }
    where[index] = where[index].long()
    with pytest.raises(
        ValueError, match=f"{index} must be contiguous int32; build it with Packing.from_lengths"
    ):
        torch.ops.scfast.attention_rowstats(
            case.q, case.k, *where.values(), None, 1.0, 0.0, False, "none", None, "prob", []
        )
