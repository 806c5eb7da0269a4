"""attention_topk: the keys that every query attends to most, and how much."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_heads, check_qk, check_score
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

LIBRARY.define(
    f"attention_topk(Tensor q, Tensor k, {PACKING}, {SCORE}, int n, str heads, Tensor? head_weights)"
    " -> (Tensor, Tensor)"
)


class TopKeys(NamedTuple):
    """The strongest entries of every row, largest first: [Tq, n], or [Tq, H, n] for ``heads="none"``.

    Attributes
    ----------
    values
        float32; 0 where fewer than n keys are in sight.
    keys
        int64, the key's place within its cell, from 0; -1 where fewer than n keys are in sight.
    """

    values: torch.Tensor
    keys: torch.Tensor


@probabilities_alone
def attention_topk(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    n: int,
    *,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> TopKeys:
    """The n largest entries of every row of the (fused) attention map, without holding the map.

    Parameters
    ----------
    q, k
        [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    packing
        Where the cells lie.
    n
        Entries of a row, 1 or more.
    heads, head_weights
        Fusion as in :func:`attention_colsum`.
    scale, softcap, key_bias, causal, backend
        As in :func:`attention_forward`. Keys that ``causal`` hides are never among the strongest.

    Returns
    -------
    TopKeys
        Entries that are equal as computed, to the bit, are in the order of their keys. A row that holds NaN has nan
        for its first keys.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.ones(3, 1, 4), torch.tensor([0.0, 2.0, 1.0])[:, None, None].expand(3, 1, 4)
    >>> strongest = scfast.ops.attention_topk(q, k, scfast.Packing.from_lengths([3]), 2)
    >>> strongest.keys[0].tolist(), strongest.values.shape
    ([1, 2], torch.Size([3, 2]))
    """
    check_qk(q, k, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    factors = check_heads(q, heads, head_weights)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n must be a whole number, got {n!r}")
    if not 1 <= n < 2**31:
        raise ValueError(f"n={n} entries of a row cannot be returned: ask for 1 or more")
    chosen = choose("attention_topk", backend, q=q, k=k)
    if chosen == "reference":
        exact, keys = reference.attention_topk(
            q, k, packing, n, heads=heads, head_weights=factors,
            scale=scale, softcap=softcap, key_bias=bias, causal=causal,
        )  # fmt: skip
        values = exact.float()
    else:
        run = _triton.runner("attention_topk", chosen, q, _triton_impl)
        values, keys = run(
            q, k, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
            bias, scale, cap, causal, n, heads, factors,
        )  # fmt: skip
    return TopKeys(values, keys) if heads == "none" else TopKeys(values.squeeze(1), keys.squeeze(1))


def _cpu_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *packing_and_score, n, heads, head_weights = rest
    q, k = _cpu.dense_rows(q), _cpu.dense_rows(k)
    values, keys = _allocate(q, n, heads)
    fusion, factors = _cpu.fusion(q, heads, head_weights)
    _kernels.attention_topk(
        _cpu.geometry(q, k, *packing_and_score),
        n, fusion, _cpu.pointer(factors), _cpu.pointer(values), _cpu.pointer(keys),
    )  # fmt: skip
    return values, keys


def _triton_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *packing_and_score, n, heads, head_weights = rest
    values, keys = _allocate(q, n, heads)
    fusion, factors = _triton.fusion(q, heads, head_weights)
    _triton.launch("attention_topk", q, k, packing_and_score, fusion, factors, values, keys)
    return values, keys


def _allocate(q: torch.Tensor, n: int, heads: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (q.shape[0], q.shape[1] if heads == "none" else 1, n)
    return q.new_empty(shape, dtype=torch.float32), q.new_empty(shape, dtype=torch.int64)


def _fake(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *_, n, heads, _ = rest
    return _allocate(q, n, heads)


LIBRARY.impl("attention_topk", _cpu_impl, "CPU")
LIBRARY.impl("attention_topk", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_topk", _fake, lib=LIBRARY)
