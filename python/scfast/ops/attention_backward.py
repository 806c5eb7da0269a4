"""attention_backward: gradients of packed attention without its map."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_gradient, check_qk, check_score, check_v
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

LIBRARY.define(
    "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    f" {PACKING}, {SCORE}) -> (Tensor, Tensor, Tensor)"
)


class AttentionGradients(NamedTuple):
    """What :func:`attention_backward` returns.

    Attributes
    ----------
    dq
        Gradient of q, [Tq, H, D], in q's dtype.
    dk
        Gradient of k, [Tk, Hkv, D], in q's dtype; with grouped queries the sum over the heads that share a key head.
    dv
        Gradient of v, [Tk, Hkv, Dv], in q's dtype.
    """

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


@probabilities_alone
def attention_backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> AttentionGradients:
    """Gradients of ``q``, ``k`` and ``v``, given that of ``out``; nothing of size Tq x Tk is held.

    What autograd calls for :func:`attention_forward`; call it yourself where a gradient is wanted without a graph.

    Parameters
    ----------
    d_out
        [Tq, H, Dv], dtype of ``q``: gradient of a scalar with respect to ``out``.
    q, k, v, packing, scale, softcap, key_bias, causal
        As given to :func:`attention_forward`. ``key_bias`` is taken as a constant.
    out, lse
        What it returned for them.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    AttentionGradients
        ``dq`` [Tq, H, D], ``dk`` [Tk, Hkv, D] and ``dv`` [Tk, Hkv, Dv] in q's dtype, bit-identical for any number of
        threads.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Notes
    -----
    With p = exp(s - lse): dv = p^T d_out, ds = p * (d_out v^T - <d_out, out>), dq = scale ds k, dk = scale ds^T q
    (Dao et al. 2022, FlashAttention, algorithm 4), and for a softcap c ds is multiplied by 1 - (s / c)^2.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
    >>> packing = scfast.Packing.from_lengths([3, 2])
    >>> result = scfast.ops.attention_forward(q, k, v, packing)
    >>> d_out = torch.ones_like(result.out)
    >>> gradients = scfast.ops.attention_backward(d_out, q, k, v, result.out, result.lse, packing)
    >>> torch.allclose(gradients.dv.sum(), d_out.sum())  # the rows of a map sum to 1
    True
    """
    check_qk(q, k, packing)
    check_v(q, k, v, packing)
    check_gradient(q, v, d_out, out, lse)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    chosen = choose("attention_backward", backend, q=q, k=k, v=v, d_out=d_out)
    if chosen == "reference":
        full = reference.attention_backward(
            d_out, q, k, v, packing, scale=scale, softcap=softcap, key_bias=bias, causal=causal
        )
        return AttentionGradients(*(full[name].to(q.dtype) for name in ("dq", "dk", "dv")))
    run = _triton.runner("attention_backward", chosen, q, _triton_impl)
    return AttentionGradients(
        *run(
            d_out, q, k, v, out, lse, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work,
            packing.causal_offset, bias, scale, cap, causal,
        )
    )  # fmt: skip


def _cpu_impl(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *packing_and_score: Any,
) -> tuple[torch.Tensor, ...]:
    q, k, v = _cpu.dense_rows(q), _cpu.dense_rows(k), _cpu.dense_rows(v)
    d_out, out, lse = d_out.contiguous(), out.contiguous(), lse.contiguous()
    results = _allocate(q, k, v)
    where = _cpu.geometry(q, k, *packing_and_score)
    _kernels.attention_backward(
        where, _cpu.pointer(v), (v.stride(0), v.stride(1)), v.shape[2],
        *(_cpu.pointer(x) for x in (out, d_out, lse, *results)),
    )  # fmt: skip
    return results


def _triton_impl(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *packing_and_score: Any,
) -> tuple[torch.Tensor, ...]:
    results = _allocate(q, k, v)
    _triton.launch(
        "attention_backward", q, k, packing_and_score, d_out.contiguous(), _cpu.dense_rows(v), out.contiguous(),
        lse.contiguous(), packing_and_score[5], *results,
    )  # fmt: skip
    return results


def _allocate(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _fake(
    d_out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    return _allocate(q, k, v)


LIBRARY.impl("attention_backward", _cpu_impl, "CPU")
LIBRARY.impl("attention_backward", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_backward", _fake, lib=LIBRARY)
