"""attention_forward: softmax attention over packed cells, with statistics of its map in the same visit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_qk, check_score, check_v
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

LIBRARY.define(
    f"attention_forward(Tensor q, Tensor k, Tensor v, {PACKING}, {SCORE}, bool received, bool entropy, bool max)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class AttentionOutput(NamedTuple):
    """What :func:`attention_forward` returns; statistics that were not asked for are ``None``.

    Attributes
    ----------
    out
        P v, [Tq, H, Dv], in q's dtype.
    lse
        Log-sum-exp of each row's scores, in nats, float32 [Tq, H]; what the backward pass and the other ops take.
    received
        Sum of P over the queries of a cell, for each head and key, float32 [H, Tk].
    entropy
        -sum_j P_ij ln P_ij, in nats, float32 [Tq, H].
    max
        Largest P_ij of each row, float32 [Tq, H].
    """

    out: torch.Tensor
    lse: torch.Tensor
    received: torch.Tensor | None
    entropy: torch.Tensor | None
    max: torch.Tensor | None


@probabilities_alone
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
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

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
    ``out`` can be differentiated with respect to q, k and v; they, ``out`` and ``lse`` are saved for
    :func:`attention_backward`. ``lse`` and the statistics are constants.

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
    if chosen == "reference":
        full = reference.attention_forward(
            q, k, v, packing, scale=scale, softcap=softcap, key_bias=bias, causal=causal
        )
        out, lse = full["out"].to(q.dtype), full["lse"].float()
        stats = [full["received"].float(), full["entropy"].float(), full["max"].float()]
    else:
        run = _triton.runner("attention_forward", chosen, q, _triton_impl)
        out, lse, *stats = run(
            q, k, v, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
            bias, scale, cap, causal, received, entropy, max,
        )  # fmt: skip
    wanted = (received, entropy, max)
    return AttentionOutput(out, lse, *(x if want else None for x, want in zip(stats, wanted, strict=True)))


def _cpu_impl(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    *packing_and_score, received, entropy, max = rest
    q, k, v = _cpu.dense_rows(q), _cpu.dense_rows(k), _cpu.dense_rows(v)
    results = _allocate(q, k, v, received, entropy, max)
    where = _cpu.geometry(q, k, *packing_and_score)
    _kernels.attention_forward(
        where, _cpu.pointer(v), (v.stride(0), v.stride(1)), v.shape[2], *(_cpu.pointer(x) for x in results)
    )
    return results


def _triton_impl(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    *packing_and_score, received, entropy, max = rest
    results = _allocate(q, k, v, received, entropy, max)
    wanted = (x if want else None for x, want in zip(results[2:], (received, entropy, max), strict=True))
    _triton.launch("attention_forward", q, k, packing_and_score, _cpu.dense_rows(v), *results[:2], *wanted)
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


def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _allocate(q, k, v, *rest[-3:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, work, causal_offset, key_bias, *score_and_wants = inputs
    out, lse, *statistics = output
    ctx.mark_non_differentiable(lse, *statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, work, causal_offset, key_bias)
    ctx.score = score_and_wants[:3]


def _differentiate(ctx: Any, d_out: torch.Tensor | None, *constants: None) -> tuple[torch.Tensor | None, ...]:
    n_inputs = 14  # of attention_forward; the first three have gradients
    if d_out is None:
        return (None,) * n_inputs
    q, k, v, out, lse, *packing_and_bias = ctx.saved_tensors
    gradients = torch.ops.scfast.attention_backward(d_out, q, k, v, out, lse, *packing_and_bias, *ctx.score)
    return (*gradients, *(None,) * (n_inputs - 3))


LIBRARY.impl("attention_forward", _cpu_impl, "CPU")
LIBRARY.impl("attention_forward", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_forward", _fake, lib=LIBRARY)
torch.library.register_autograd("scfast::attention_forward", _differentiate, setup_context=_save, lib=LIBRARY)
