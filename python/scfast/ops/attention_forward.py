"""attention_forward: softmax attention over packed cells, with statistics of its map in the same visit."""

from __future__ import annotations

from typing import NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu
from scfast.ops._checks import check_qk, check_score, check_v
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.packing import Packing

LIBRARY.define(
    f"attention_forward(Tensor q, Tensor k, Tensor v, {PACKING}, {SCORE}, bool received, bool entropy, bool max)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class AttentionOutput(NamedTuple):
    """What :func:`attention_forward` returns; statistics that were not asked for are ``None``."""

    out: torch.Tensor
    lse: torch.Tensor
    received: torch.Tensor | None
    entropy: torch.Tensor | None
    max: torch.Tensor | None


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    received: bool = False,
    entropy: bool = False,
    max: bool = False,
    backend: str = "auto",
) -> AttentionOutput:
    """Softmax attention of every cell, and what its map says, without holding the map.

    Parameters
    ----------
    q
        [Tq, H, D] float32, bfloat16 or float16.
    k, v
        [Tk, Hkv, D] and [Tk, Hkv, Dv], dtype of ``q``; Hkv divides H.
    packing
        Where the cells lie.
    scale
        Factor of the scores. Default: D ** -0.5.
    softcap
        ``c``: the score s becomes c * tanh(s / c).
    key_bias
        [Tk] or [Tk, H], finite: added to the score of key j.
    causal
        Query i sees keys j <= i + packing.causal_offset.
    received, entropy, max
        Statistics to take along, at one to two percent of the cost each.
    backend
        ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns
    -------
    AttentionOutput
        ``out`` [Tq, H, Dv] in q's dtype; ``lse`` float32 [Tq, H], natural logarithm; ``received`` float32 [H, Tk],
        the column sums of each head; ``entropy`` float32 [Tq, H] in nats; ``max`` float32 [Tq, H], the largest
        probability of a row. A query without keys gives 0 and lse -inf.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Notes
    -----
    Under autograd, ``out`` comes from torch's scaled_dot_product_attention cell by cell, so that it can be
    differentiated; the statistics are constants.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
    >>> result = scfast.ops.attention_forward(q, k, v, scfast.Packing.from_lengths([3, 2]), received=True)
    >>> result.out.shape, result.received.sum().round().item()
    (torch.Size([5, 2, 8]), 10.0)
    """
    check_qk(q, k, packing)
    check_v(q, k, v, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    chosen = choose("attention_forward", backend, q=q, k=k, v=v)
    given = (q, k, v)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if differentiable:
        if softcap:
            raise NotImplementedError(
                "softcap under autograd is not implemented: call under torch.no_grad(), or without softcap"
            )
        q, k, v = (x.detach() for x in given)
    if chosen == "reference":
        full = reference.attention_forward(
            q, k, v, packing, scale=scale, softcap=softcap, key_bias=bias, causal=causal
        )
        out, lse = full["out"].to(q.dtype), full["lse"].float()
        stats = [full["received"].float(), full["entropy"].float(), full["max"].float()]
    else:
        out, lse, *stats = torch.ops.scfast.attention_forward(
            q, k, v, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
            bias, scale, cap, causal, received, entropy, max,
        )  # fmt: skip
    if differentiable:
        out = _sdpa_by_cell(*given, packing, scale, bias, causal)
    wanted = (received, entropy, max)
    return AttentionOutput(out, lse, *(x if want else None for x, want in zip(stats, wanted, strict=True)))


def _sdpa_by_cell(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    packing: Packing,
    scale: float,
    bias: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """``out`` as torch's own attention computes it, which autograd can differentiate."""
    biases = [None] * packing.n_cells if bias is None else packing.split_k(bias)
    offsets = packing.causal_offset.tolist() if causal else [None] * packing.n_cells
    parts = [
        _sdpa(*cell, scale=scale)
        for cell in zip(
            packing.split_q(q), packing.split_k(k), packing.split_k(v), biases, offsets, strict=True
        )
    ]
    return torch.cat(parts) if parts else q.new_zeros((0, q.shape[1], v.shape[2]))


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    offset: int | None,
    *,
    scale: float,
) -> torch.Tensor:
    """One cell by torch's own attention: [nq, H, D], [nk, Hkv, D] -> [nq, H, Dv]."""
    if q.shape[0] == 0 or k.shape[0] == 0:
        return q.new_zeros((q.shape[0], q.shape[1], v.shape[2])) + 0 * (q.sum() + k.sum() + v.sum())
    mask = None
    if bias is not None:
        mask = bias.T[:, None, :].to(q.dtype).expand(q.shape[1], q.shape[0], -1)
    if offset is not None:
        row = torch.arange(q.shape[0], device=q.device)[:, None]
        seen = torch.arange(k.shape[0], device=q.device)[None, :] <= row + offset
        hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
        mask = hidden if mask is None else mask + hidden
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, n, D]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0]
    if offset is not None and offset < 0:  # queries before the first key see nothing
        out = torch.where((row + offset >= 0)[None], out, 0.0)
    return out.transpose(0, 1)


def _cpu_impl(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    work: torch.Tensor,
    causal_offset: torch.Tensor,
    key_bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
    received: bool,
    entropy: bool,
    max: bool,
) -> tuple[torch.Tensor, ...]:
    q, k, v = _cpu.dense_rows(q), _cpu.dense_rows(k), _cpu.dense_rows(v)
    results = _allocate(q, k, v, received, entropy, max)
    where = _cpu.geometry(
        q, k, cu_seqlens_q, cu_seqlens_k, work, causal_offset, key_bias, scale, softcap, causal
    )
    _kernels.attention_forward(
        where, _cpu.pointer(v), (v.stride(0), v.stride(1)), v.shape[2], *(_cpu.pointer(x) for x in results)
    )
    return results


def _allocate(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, received: bool, entropy: bool, max: bool
) -> tuple[torch.Tensor, ...]:
    n_queries, n_heads = q.shape[0], q.shape[1]

    def statistic(shape: tuple[int, int], wanted: bool) -> torch.Tensor:
        return q.new_empty(shape if wanted else (0,), dtype=torch.float32)

    return (
        q.new_empty((n_queries, n_heads, v.shape[2])),
        statistic((n_queries, n_heads), True),
        statistic((n_heads, k.shape[0]), received),
        statistic((n_queries, n_heads), entropy),
        statistic((n_queries, n_heads), max),
    )


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    work: torch.Tensor,
    causal_offset: torch.Tensor,
    key_bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
    received: bool,
    entropy: bool,
    max: bool,
) -> tuple[torch.Tensor, ...]:
    return _allocate(q, k, v, received, entropy, max)


LIBRARY.impl("attention_forward", _cpu_impl, "CPU")
torch.library.register_fake("scfast::attention_forward", _fake, lib=LIBRARY)
