"""Checks shared by the attention ops: once, in Python, with messages that say what was got and what to do."""

from __future__ import annotations

import math

import torch

from scfast.packing import Packing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = ("mean", "sum", "max", "min", "none")
MAX_HEAD_DIM = 256


def check_qk(q: torch.Tensor, k: torch.Tensor, packing: Packing, suffix: str = "") -> None:
    """Refuse q and k that do not fit each other or the packing; ``suffix`` tells two models' apart."""
    if not isinstance(packing, Packing):
        raise TypeError(
            f"packing must be a scfast.Packing, got {type(packing).__name__}: use Packing.from_lengths"
        )
    for name, x, total in (("q", q, packing.total_q), ("k", k, packing.total_k)):
        _check_packed(name + suffix, x, total)
    if k.shape[2] != q.shape[2]:
        raise ValueError(
            f"q{suffix} has head dim {q.shape[2]} and k{suffix} has {k.shape[2]}; they must agree"
        )
    _check_same("k" + suffix, k, q, packing, "q" + suffix)


def check_v(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing) -> None:
    """Refuse values that do not fit the keys."""
    _check_packed("v", v, packing.total_k)
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads and v has {v.shape[1]}; they must agree")
    _check_same("v", v, q, packing)


def check_gradient(
    q: torch.Tensor, v: torch.Tensor, d_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> None:
    """Refuse what attention_forward did not return for q and v, and a gradient of another shape."""
    shape = (q.shape[0], q.shape[1], v.shape[2])
    for name, x, wanted, dtype in (
        ("d_out", d_out, shape, q.dtype),
        ("out", out, shape, q.dtype),
        ("lse", lse, shape[:2], torch.float32),
    ):
        if tuple(x.shape) != wanted:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; attention_forward returns {wanted} for these inputs"
            )
        if x.dtype != dtype:
            raise TypeError(f"{name} is {x.dtype}, expected {dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}: move them together")


def _check_packed(name: str, x: torch.Tensor, total: int) -> None:
    if x.dim() != 3:
        raise ValueError(
            f"{name} must be packed as [tokens, heads, head dim], got shape {tuple(x.shape)}: "
            "drop the padding and lay the cells end to end (Packing.from_lengths holds their lengths)"
        )
    if x.shape[0] != total:
        raise ValueError(f"{name} has {x.shape[0]} tokens, but the packing's cells add up to {total}")
    if not 1 <= x.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"{name} has head dim {x.shape[2]}; 1 to {MAX_HEAD_DIM} are supported")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}; use one of {', '.join(map(str, DTYPES))}")


def _check_same(name: str, x: torch.Tensor, q: torch.Tensor, packing: Packing, q_name: str = "q") -> None:
    if x.dtype != q.dtype:
        raise TypeError(f"{q_name} is {q.dtype} and {name} is {x.dtype}; cast them to one dtype")
    if x.device != q.device or packing.device != q.device:
        raise ValueError(
            f"{q_name} is on {q.device}, {name} on {x.device}, the packing on {packing.device}: move them together"
        )
    if x.shape[1] == 0 or q.shape[1] % x.shape[1]:
        raise ValueError(f"{q_name} has {q.shape[1]} heads, which {name}'s {x.shape[1]} heads do not divide")


def check_score(
    q: torch.Tensor,
    packing: Packing,
    scale: float | None,
    softcap: float | None,
    key_bias: torch.Tensor | None,
) -> tuple[float, float, torch.Tensor | None]:
    """The score options in the form kernels take: scale, softcap (0: none), key_bias float32 [Tk, 1 or H]."""
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap must be a positive number or None, got {softcap}")
    if key_bias is not None:
        shapes = ((packing.total_k,), (packing.total_k, q.shape[1]))
        if tuple(key_bias.shape) not in shapes:
            raise ValueError(
                f"key_bias must have shape {shapes[0]} or {shapes[1]}, got {tuple(key_bias.shape)}"
            )
        if key_bias.device != q.device:
            raise ValueError(f"key_bias is on {key_bias.device} and q on {q.device}: move them together")
        key_bias = key_bias.to(torch.float32)
        key_bias = (key_bias[:, None] if key_bias.dim() == 1 else key_bias).contiguous()
    return scale, softcap or 0.0, key_bias


def check_heads(q: torch.Tensor, heads: str, head_weights: torch.Tensor | None) -> torch.Tensor | None:
    """Refuse an unknown fusion or head weights of another length; returns them as float32 [H]."""
    if heads not in HEADS:
        raise ValueError(f"heads={heads!r} is not a fusion; use one of {', '.join(HEADS)}")
    if head_weights is None:
        return None
    if tuple(head_weights.shape) != (q.shape[1],):
        raise ValueError(f"head_weights must have shape ({q.shape[1]},), got {tuple(head_weights.shape)}")
    return head_weights.to(device=q.device, dtype=torch.float32).contiguous()


def check_linear(op: str, heads: str, taken: tuple[str, ...] = ("mean", "sum", "none")) -> None:
    """Refuse a fusion that an op of sums over heads does not take."""
    if heads in HEADS and heads not in taken:
        why = " it keeps the heads apart" if heads == "none" else " it is not linear in the heads"
        raise ValueError(f"{op} does not take heads={heads!r}:{why}; use one of {', '.join(taken)}")


def check_x(x: torch.Tensor, q: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Refuse a matrix that does not have one row per key; returns it as it is."""
    if x.dim() != 2 or x.shape[0] != packing.total_k or x.shape[1] == 0:
        raise ValueError(
            f"x must have shape [{packing.total_k}, W], one row per key and W at least 1, got {tuple(x.shape)}"
        )
    if x.dtype not in (torch.float32, q.dtype):
        raise TypeError(f"x is {x.dtype}; use torch.float32 or the dtype of q, {q.dtype}")
    if x.device != q.device:
        raise ValueError(f"x is on {x.device} and q on {q.device}: move them together")
    return x


def check_out(out: torch.Tensor, q: torch.Tensor, rows: tuple[int, int] | None) -> tuple[int, int]:
    """Refuse a matrix that sums cannot be added to; returns the sources that it holds, [first, last)."""
    if out.dim() != 2:
        raise ValueError(f"out must be [sources, targets], got shape {tuple(out.shape)}")
    if out.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"out is {out.dtype}; use torch.float64, or torch.float32 for half the memory")
    if out.device != q.device:
        raise ValueError(f"out is on {out.device} and q on {q.device}: move them together")
    if out.numel() and (out.stride(1) != 1 or out.stride(0) < out.shape[1]):
        raise ValueError(
            f"out has strides {out.stride()}: its rows must be dense and apart, as torch.zeros makes them"
        )
    if out.requires_grad:
        raise ValueError("out requires a gradient, and sums are added to it in place: pass out.detach()")
    first, last = (0, out.shape[0]) if rows is None else rows
    if not 0 <= first <= last or last - first != out.shape[0]:
        raise ValueError(
            f"rows={rows} are {last - first} sources and out has {out.shape[0]} rows: give (first, last) with"
            " 0 <= first and last - first = len(out)"
        )
    return first, last


def check_ids(name: str, ids: torch.Tensor, total: int, q: torch.Tensor) -> None:
    """Refuse ids of another shape or dtype."""
    if tuple(ids.shape) != (total,):
        raise ValueError(f"{name} must have shape ({total},), one per token, got {tuple(ids.shape)}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} is {ids.dtype}; use torch.int64 or torch.int32")
    if ids.device != q.device:
        raise ValueError(f"{name} is on {ids.device} and q on {q.device}: move them together")


def check_id_values(name: str, ids: torch.Tensor, limit: int) -> None:
    """Refuse ids below -1 or not below ``limit``: called by the backends, which may be traced before."""
    if ids.numel() == 0:
        return
    low, high = (int(x) for x in ids.aminmax())
    if low < -1 or high >= limit:
        raise ValueError(
            f"{name} holds {low if low < -1 else high}; ids lie in 0 to {limit - 1}, or are -1: not counted"
        )


def check_row_weights(row_weights: torch.Tensor | None, q: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Row weights as float32 [R, Tq]; ``None`` is 1/n within each cell of n queries."""
    if row_weights is None:
        return packing.uniform_row_weights()[None]
    weights = row_weights[None] if row_weights.dim() == 1 else row_weights
    if weights.dim() != 2 or weights.shape[1] != packing.total_q or weights.shape[0] == 0:
        raise ValueError(
            f"row_weights must have shape [R, {packing.total_q}] or [{packing.total_q}], got {tuple(row_weights.shape)}"
        )
    if not weights.dtype.is_floating_point:
        raise TypeError(f"row_weights must be floating point, got {weights.dtype}")
    if weights.device != q.device:
        raise ValueError(f"row_weights are on {weights.device} and q on {q.device}: move them together")
    return weights.to(torch.float32).contiguous()
