"""attention_matmul: A x, what queries read of a matrix through attention; one step of the full rollout matrix."""

from __future__ import annotations

from typing import Any

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_heads, check_linear, check_qk, check_score, check_x
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

LIBRARY.define(
    f"attention_matmul(Tensor q, Tensor k, {PACKING}, {SCORE}, Tensor x, str heads, Tensor? head_weights) -> Tensor"
)


@probabilities_alone
def attention_matmul(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    x: torch.Tensor,
    *,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Product of the attention map of every cell with a matrix, A x, without holding the map.

    ``x`` may hold anything that keys carry: a column per gene or readout of the full rollout matrix (Abnar & Zuidema
    2020, A~_l ... A~_1 x, one step a layer), a gene set's membership, hidden states. Heads that are fused are fused
    before the product, so that many heads cost little more than their scores.

    Parameters
    ----------
    q, k
        [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    packing
        Where the cells lie.
    x
        [Tk, W], float32 or the dtype of ``q``: what is read, one row per key. Any width of at least 1.
    heads
        ``"mean"``, ``"sum"``, or ``"none"`` for one product per head. Largest and smallest elements are not linear
        in the heads: :func:`attention_colsum` takes those.
    head_weights
        [H]: factor of each head's map before the fusion.
    scale, softcap, key_bias, causal, backend
        As in :func:`attention_forward`.

    Returns
    -------
    torch.Tensor
        float32 [Tq, W], for ``heads="none"`` [Tq, H, W]. A query without keys gives 0.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, a fusion other than those above, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.randn(2, 5, 2, 8).unbind(0)
    >>> one_hot = torch.eye(5)[:, :2]  # columns 0 and 1 of the map
    >>> read = scfast.ops.attention_matmul(q, k, scfast.Packing.from_lengths([3, 2]), one_hot)
    >>> read.shape, read[3:].tolist()  # the second cell does not see the first one's keys
    (torch.Size([5, 2]), [[0.0, 0.0], [0.0, 0.0]])
    """
    check_qk(q, k, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    check_linear("attention_matmul", heads)
    factors = check_heads(q, heads, head_weights)
    x = check_x(x, q, packing)
    chosen = choose("attention_matmul", backend, q=q, k=k)
    if chosen == "reference":
        return reference.attention_matmul(
            q, k, packing, x, heads=heads, head_weights=factors,
            scale=scale, softcap=softcap, key_bias=bias, causal=causal,
        ).float()  # fmt: skip
    run = _triton.runner("attention_matmul", chosen, q, _triton_impl)
    out: torch.Tensor = run(
        q, k, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
        bias, scale, cap, causal, x, heads, factors,
    )  # fmt: skip
    return out


def _cpu_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
    *packing_and_score, x, heads, head_weights = rest
    q, k, x = _cpu.dense_rows(q), _cpu.dense_rows(k), x.to(torch.float32).contiguous()
    out = _allocate(q, x, heads)
    fusion, factors = _cpu.fusion(q, heads, head_weights)
    _kernels.attention_matmul(
        _cpu.geometry(q, k, *packing_and_score),
        _cpu.pointer(x), x.shape[1], fusion, _cpu.pointer(factors), _cpu.pointer(out),
    )  # fmt: skip
    return out


def _triton_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
    *packing_and_score, x, heads, head_weights = rest
    out = _allocate(q, x, heads)
    _, factors = _triton.fusion(q, heads, head_weights)
    _triton.launch(
        "attention_matmul", q, k, packing_and_score,
        x.to(torch.float32).contiguous(), factors, out if heads == "none" else out.unsqueeze(1),
    )  # fmt: skip
    return out


def _allocate(q: torch.Tensor, x: torch.Tensor, heads: str) -> torch.Tensor:
    shape = (q.shape[0], q.shape[1], x.shape[1]) if heads == "none" else (q.shape[0], x.shape[1])
    return q.new_empty(shape, dtype=torch.float32)


def _fake(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
    x, heads, _ = rest[-3:]
    return _allocate(q, x, heads)


LIBRARY.impl("attention_matmul", _cpu_impl, "CPU")
LIBRARY.impl("attention_matmul", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_matmul", _fake, lib=LIBRARY)
