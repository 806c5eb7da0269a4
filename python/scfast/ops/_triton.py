"""The Triton backend: what it refuses, and tensors for what it takes.

float32 inputs of attention are multiplied in float32 (``"ieee"``), which is what the precision of the column sums
rests on. ``torch.set_float32_matmul_precision("high")`` lets them be split into bfloat16 parts for the tensor cores.
Rows of the cosine ops are split into halves always (``kernels/cosine.py``): that loses nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from scfast.ops import _cpu

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Ops that have a kernel.
OPS = (
    "attention_forward", "attention_backward", "attention_colsum", "attention_rowstats", "attention_matmul",
    "attention_compare", "attention_topk", "attention_scatter",
    "cosine_histogram", "cosine_matrix", "cosine_threshold", "cosine_topk",
)  # fmt: skip
INSTALLED = importlib.util.find_spec("triton") is not None
#: Triton runs kernels on the CPU, element by element: for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: How products of float32 are taken for each setting of torch.
PRECISION = {"highest": "ieee", "high": "bf16x3", "medium": "tf32"}
_LOG2E = 1.0 / math.log(2.0)

#: Work lists of a batch, by the tensor of its cumulative lengths: built once, on the device, for all layers.
_work_lists: WeakIdKeyDictionary = WeakIdKeyDictionary()


def unsupported(op: str, **tensors: torch.Tensor) -> list[str]:
    """Reasons why the Triton kernels cannot take these tensors; empty when they can."""
    if op not in OPS:
        return [f"{op} has no Triton kernel"]
    device, first = "cpu" if INTERPRETED else "cuda", next(iter(tensors.values()))
    reasons = [
        f"{name} is on {x.device}, not on a GPU" for name, x in tensors.items() if x.device.type != device
    ]
    if not INSTALLED:
        reasons.append("triton is not installed: pip install scfast[gpu]")
    elif not reasons and not INTERPRETED and torch.cuda.get_device_capability(first.device) < (8, 0):
        reasons.append("the GPU is older than compute capability 8.0")
    return reasons


def runner(op: str, backend: str, q: torch.Tensor, impl: Callable[..., Any]) -> Callable[..., Any]:
    """The registered op; ``impl`` itself for the interpreter, whose tensors torch hands to the C++ kernels."""
    return impl if backend == "triton" and q.device.type == "cpu" else getattr(torch.ops.scfast, op)


def launch(op: str, q: torch.Tensor, k: torch.Tensor, packing_and_score: Sequence[Any], *args: Any) -> None:
    """Run the kernels of ``op`` on the device of ``q``; ``args`` are what follows the batch there."""
    kernel = importlib.import_module(f"scfast.kernels.{op}")
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        kernel.launch(batch(q, k, packing_and_score), *args)


def batch(q: torch.Tensor, k: torch.Tensor, packing_and_score: Sequence[Any]) -> Batch:
    """What launches are told of packed cells: for a second model, which :func:`launch` knows nothing of."""
    return _batch(_cpu.dense_rows(q), _cpu.dense_rows(k), *packing_and_score)


def map_tensors(kind: str, tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The tensors of a map as kernels take them: v and d_out with unit stride along the head dim."""
    if "relevance" not in kind:
        return tensors
    return [*(_cpu.dense_rows(x) for x in tensors[:2] if x is not None), *tensors[2:]]


def fusion(
    q: torch.Tensor, heads: str, head_weights: torch.Tensor | None
) -> tuple[str | None, torch.Tensor | None]:
    """Fusion (None: each head by itself) and head factors: a mean is a sum of heads weighted by 1/H."""
    if heads != "mean":
        return None if heads == "none" else heads, head_weights
    n_heads = q.shape[1]
    if head_weights is None:
        return "sum", q.new_full((n_heads,), 1.0 / n_heads, dtype=torch.float32)
    return "sum", head_weights / n_heads


def _batch(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    work: torch.Tensor,
    causal_offset: torch.Tensor,
    key_bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
) -> Batch:
    from triton.language import constexpr

    from scfast.kernels.batch import Batch
    from scfast.kernels.scores import Where, padded, slice_of

    total_q, n_heads, dim = q.shape
    bits, width = 8 * q.element_size(), padded(dim)
    where = Where(
        tiles=None, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, causal_offset=causal_offset,
        q=q, q_row=q.stride(0), q_head=q.stride(1), k=k, k_row=k.stride(0), k_head=k.stride(1),
        bias=key_bias,
        bias_row=None if key_bias is None else key_bias.shape[1],
        bias_head=None if key_bias is None else int(key_bias.shape[1] > 1),
        scale=scale / softcap if softcap else scale * _LOG2E,
        cap=softcap * _LOG2E if softcap else None,
        shift=None, norm=None, pitch=-(-max(total_q, 1) // 16) * 16, factors=None,
        span=constexpr(1), group=constexpr(n_heads // k.shape[1]), dim=constexpr(dim), width=constexpr(width),
        causal=constexpr(causal), fusion=constexpr("none"), slice=constexpr(slice_of(bits, width)),
        kind=constexpr("prob"), map=None,
        precision=constexpr(PRECISION[torch.get_float32_matmul_precision()]),
    )  # fmt: skip

    def work_list(side: str, rows: int) -> torch.Tensor:
        own, other = cu_seqlens_q, cu_seqlens_k
        if side == "keys":
            own, other = other, own
        return _work_list(own, other, (q if side == "queries" else k).shape[0], rows)

    return Batch(where, _gpu(q.device), bits, work_list, n_heads)


def _gpu(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _work_list(own: torch.Tensor, other: torch.Tensor, total: int, rows: int) -> torch.Tensor:
    """int32 [n, 2]: (cell, first row) of every tile of ``rows`` rows, largest map first, then (-1, 0).

    n is a bound that follows from sizes alone, so the device is never asked for its lengths.
    """
    version = 0 if own.is_inference() else own._version
    known = _work_lists.setdefault(own, {})
    if (rows, version) not in known:
        n_cells = own.shape[0] - 1
        lengths = own.diff().long()
        order = (lengths * other.diff().clamp(min=1)).argsort(descending=True, stable=True)
        tiles = (lengths[order] + rows - 1) // rows
        ends = tiles.cumsum(0)
        number = torch.arange(total // rows + n_cells, device=own.device)
        slot = torch.searchsorted(ends, number, right=True)
        inside, slot = slot < n_cells, slot.clamp(max=max(n_cells - 1, 0))
        if n_cells:
            first = torch.where(inside, (number - (ends - tiles)[slot]) * rows, 0)
            number = torch.stack([torch.where(inside, order[slot], -1), first], dim=1)
        known[rows, version] = number.reshape(-1, 2).to(torch.int32).contiguous()
    return known[rows, version]
