"""attention_compare: how alike the attention maps of two models are, head by head, from inner products of the maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_qk, check_score
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

_SCORES = ", ".join(part + str(model) for model in (1, 2) for part in SCORE.split(", "))
LIBRARY.define(
    f"attention_compare(Tensor q1, Tensor k1, Tensor q2, Tensor k2, {PACKING}, {_SCORES}) -> Tensor"
)


class MapProducts(NamedTuple):
    """Inner products of the maps P1 and P2 of two models: float64 [B, H] each.

    Sums of the three over cells or heads are those of the concatenated maps.

    Attributes
    ----------
    dot
        Sum of P1 * P2 over the elements of a cell's map.
    square1, square2
        Sums of P1^2 and of P2^2.
    """

    dot: torch.Tensor
    square1: torch.Tensor
    square2: torch.Tensor

    @property
    def cosine(self) -> torch.Tensor:
        """<P1, P2> / (|P1| |P2|), float64 [B, H]; nan for a map without elements."""
        return self.dot / (self.square1.sqrt() * self.square2.sqrt())


@probabilities_alone
def attention_compare(
    q1: torch.Tensor,
    k1: torch.Tensor,
    q2: torch.Tensor,
    k2: torch.Tensor,
    packing: Packing,
    *,
    scale: float | tuple[float | None, float | None] | None = None,
    softcap: float | tuple[float | None, float | None] | None = None,
    key_bias: torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | None = None,
    causal: bool | tuple[bool, bool] = False,
    backend: str = "auto",
) -> MapProducts:
    """Inner products of two models' attention maps over the same tokens, without holding either map.

    Parameters
    ----------
    q1, k1
        Of the first model: [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    q2, k2
        Of the second: as many tokens and heads; head dim, key heads and dtype may differ.
    packing
        Where the cells lie.
    scale, softcap, key_bias, causal
        As in :func:`attention_forward`: one value for both models, or a pair.
    backend
        As in :func:`attention_forward`.

    Returns
    -------
    MapProducts
        ``dot``, ``square1``, ``square2``: float64 [B, H]; ``cosine`` follows from them (the measure of Falkenstein
        2024, Fig. 4). Rows without keys add nothing.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.randn(2, 5, 4, 8).unbind(0)
    >>> packing = scfast.Packing.from_lengths([3, 2])
    >>> products = scfast.ops.attention_compare(q, k, q, k, packing)
    >>> products.cosine.shape, bool((products.dot == products.square1).all())
    (torch.Size([2, 4]), True)
    """
    check_qk(q1, k1, packing, "1")
    check_qk(q2, k2, packing, "2")
    if q1.shape[1] != q2.shape[1]:
        raise ValueError(
            f"q1 has {q1.shape[1]} heads and q2 has {q2.shape[1]}: maps are compared head by head, so select the"
            " same number of heads of both"
        )
    given = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    options1, options2 = (
        {name: _of(value, model, name) for name, value in given.items()} for model in (0, 1)
    )
    scores1 = _score(q1, packing, **options1)
    scores2 = _score(q2, packing, **options2)
    chosen = choose("attention_compare", backend, q1=q1, k1=k1, q2=q2, k2=k2)
    if chosen == "reference":
        return MapProducts(
            *reference.attention_compare(q1, k1, q2, k2, packing, options1=options1, options2=options2)
        )
    run = _triton.runner("attention_compare", chosen, q1, _triton_impl)
    sums = run(
        q1, k1, q2, k2, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
        *scores1, *scores2,
    )  # fmt: skip
    return MapProducts(*sums.unbind(0))


def _of(value: Any, model: int, name: str) -> Any:
    """The option of one model, from a value for both or a pair."""
    if not isinstance(value, tuple):
        return value
    if len(value) != 2:
        raise ValueError(f"{name} has {len(value)} values: give one for both models, or a pair")
    return value[model]


def _score(q: torch.Tensor, packing: Packing, *, causal: bool, **options: Any) -> tuple[Any, ...]:
    """The score options of one model, in the order of the schema."""
    scale, cap, bias = check_score(q, packing, **options)
    return bias, scale, cap, bool(causal)


def _cpu_impl(
    q1: torch.Tensor, k1: torch.Tensor, q2: torch.Tensor, k2: torch.Tensor, *rest: Any
) -> torch.Tensor:
    packing, scores = rest[:4], (rest[4:8], rest[8:])
    q1, k1, q2, k2 = (_cpu.dense_rows(x) for x in (q1, k1, q2, k2))
    sums = _allocate(q1, packing[0])
    _kernels.attention_compare(
        _cpu.geometry(q1, k1, *packing, *scores[0]),
        _cpu.geometry(q2, k2, *packing, *scores[1]),
        _cpu.pointer(sums),
    )
    return sums


def _triton_impl(
    q1: torch.Tensor, k1: torch.Tensor, q2: torch.Tensor, k2: torch.Tensor, *rest: Any
) -> torch.Tensor:
    packing = rest[:4]
    one, two = (q1, k1, (*packing, *rest[4:8])), (q2, k2, (*packing, *rest[8:]))
    causal_first = rest[7] and not rest[11]  # the kernel goes as far as its first model sees
    if causal_first:
        one, two = two, one
    n_cells, n_heads = packing[0].shape[0] - 1, q1.shape[1]
    sums = q1.new_empty((n_cells, 3, n_heads), dtype=torch.float64)
    rows = q1.new_empty((q1.shape[0], 3, n_heads), dtype=torch.float32)
    _triton.launch("attention_compare", *one, _triton.batch(*two), rows, sums)
    return sums[:, [0, 2, 1] if causal_first else [0, 1, 2]].movedim(1, 0).contiguous()


def _allocate(q1: torch.Tensor, cu_seqlens_q: torch.Tensor) -> torch.Tensor:
    return q1.new_empty((3, cu_seqlens_q.shape[0] - 1, q1.shape[1]), dtype=torch.float64)


def _fake(
    q1: torch.Tensor,
    k1: torch.Tensor,
    q2: torch.Tensor,
    k2: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *_: Any,
) -> torch.Tensor:
    return _allocate(q1, cu_seqlens_q)


LIBRARY.impl("attention_compare", _cpu_impl, "CPU")
LIBRARY.impl("attention_compare", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_compare", _fake, lib=LIBRARY)
