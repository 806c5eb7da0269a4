"""Inputs, the float64 oracle, plain torch, and the one error rule of the op tests.

The rule (METHODS, Precision), on the same rounded inputs against float64:

* column sums, float32, scores of spread about 1: error <= ``FLOOR``;
* otherwise: error <= 2 x the error of plain torch in the same dtype + ``FLOOR``, and half a unit in the last
  place of the dtype for what is returned in that dtype.

An error is |got - exact| divided by the *size* of the element: the same formula with absolute values in place
of signed ones (a column sum's size is |r|^T |A|), so cancellation is not charged to the kernel. Sizes have a
floor of ``TINY``, under which float32 exponentials vanish.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch

from scfast import Packing, _kernels
from scfast.reference._maps import fuse_heads, prob_maps

#: Relative error of float32 column sums, and the floor of the rule for 16-bit inputs.
FLOOR = 2e-6
#: Probabilities under exp(-70) are compared as absolutes of this size.
TINY = 1e-30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: (lengths, lengths_k, heads, kv_heads, head dim, value dim): odd sizes, tails of strips and units of work.
SHAPES: dict[str, tuple[Sequence[int], Sequence[int] | None, int, int, int, int]] = {
    "empty batch": ([], None, 2, 2, 16, 16),
    "empty cells": ([0, 0], None, 2, 2, 16, 16),
    "one token": ([1], None, 1, 1, 64, 64),
    "ragged": ([7, 0, 33, 1, 48, 49], None, 4, 4, 64, 64),
    "no keys": ([5, 0, 3, 50], [0, 4, 9, 17], 4, 2, 24, 24),
    "dim 1": ([33, 7], None, 2, 2, 1, 1),
    "dim 3": ([50, 1], None, 6, 1, 3, 5),
    "dim 16": ([49, 100], None, 4, 2, 16, 16),
    "dim 24": ([48, 13], [13, 48], 2, 1, 24, 64),
    "dim 65": ([97], None, 2, 2, 65, 33),
    "dim 80": ([40, 41], None, 3, 3, 80, 80),
    "dim 128": ([65, 2], None, 2, 1, 128, 128),
    "dim 256": ([31, 70], None, 2, 2, 256, 256),
    "unit": ([480, 481], None, 2, 2, 64, 64),
    "long": ([1023, 1500], None, 1, 1, 32, 32),
    "readout": ([1, 9, 1], [481, 4096, 1023], 4, 4, 64, 64),
    "many short": ([3, 1, 5, 2] * 20, None, 2, 2, 32, 32),
}


@dataclass
class Case:
    """Inputs of one call; ``options`` are its score options."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    packing: Packing
    options: dict[str, Any] = field(default_factory=dict)
    spread: float = 1.0

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))


def make_case(
    lengths: Sequence[int],
    lengths_k: Sequence[int] | None = None,
    heads: int = 4,
    kv_heads: int | None = None,
    dim: int = 64,
    dim_v: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
    causal_offset: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Normal q, k and v, whose scores have standard deviation ``spread`` at the default scale."""
    random = torch.Generator().manual_seed(seed)
    packing = Packing.from_lengths(lengths, lengths_k, causal_offset=causal_offset)
    kv_heads, dim_v = kv_heads or heads, dim_v or dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    return Case(
        (normal(packing.total_q, heads, dim) * spread).to(dtype),
        normal(packing.total_k, kv_heads, dim).to(dtype),
        normal(packing.total_k, kv_heads, dim_v).to(dtype),
        packing,
        options,
        spread,
    )


_OPTIONS = product((None, 0.2), (None, 1.5), (None, "keys", "keys and heads"), (None, "aligned", -3, 0, 5))
#: (options for :func:`with_options`, a 16-bit dtype): every combination, the 16-bit dtypes by turns.
OPTION_SETS = [
    (dict(zip(("scale", "softcap", "bias", "offset"), wanted, strict=True)), DTYPES[1 + n % 2])
    for n, wanted in enumerate(_OPTIONS)
]


def with_options(wanted: dict[str, Any], dtype: torch.dtype, **size: Any) -> Case:
    """A ragged case under one of ``OPTION_SETS``: cells without queries, without keys, of one key."""
    lengths, lengths_k = [49, 0, 3, 1, 130], [80, 5, 0, 1, 90]
    offset = wanted["offset"]
    offsets = [offset] * len(lengths) if isinstance(offset, int) else None
    case = make_case(lengths, lengths_k, dtype=dtype, causal_offset=offsets, seed=3, **size)
    random = torch.Generator().manual_seed(4)
    shape = {
        None: None,
        "keys": (case.packing.total_k,),
        "keys and heads": (case.packing.total_k, case.q.shape[1]),
    }
    bias = shape[wanted["bias"]]
    case.options = {
        "scale": wanted["scale"],
        "softcap": wanted["softcap"],
        "key_bias": None if bias is None else torch.randn(bias, generator=random),
        "causal": offset is not None,
    }
    return case


def row_weights(packing: Packing, n: int, *, signed: bool = False, seed: int = 1) -> torch.Tensor:
    """[n, Tq] weights, a third of them zero, some rows zero in every set."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand((n, packing.total_q), generator=random)
    weights = weights - 0.5 if signed else weights
    weights[torch.rand(weights.shape, generator=random) < 1 / 3] = 0.0
    weights[:, torch.rand(packing.total_q, generator=random) < 0.2] = 0.0
    return weights


def plain_maps(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What :func:`prob_maps` yields, by torch in the dtype of the inputs: the yardstick of the error rule."""
    maps, group = [], case.q.shape[1] // case.k.shape[1]
    scale = case.options.get("scale")
    scale = case.q.shape[-1] ** -0.5 if scale is None else scale
    softcap, bias = case.options.get("softcap"), case.options.get("key_bias")
    bias = None if bias is None else case.packing.split_k(bias.reshape(case.packing.total_k, -1))
    for cell, (q, k) in enumerate(
        zip(case.packing.split_q(case.q), case.packing.split_k(case.k), strict=True)
    ):
        heads_first = k.transpose(0, 1).repeat_interleave(group, dim=0)
        score = q.transpose(0, 1) @ heads_first.mT * scale  # [H, nq, nk]
        score = softcap * torch.tanh(score / softcap) if softcap else score
        score = score if bias is None else score + bias[cell].T[:, None, :].to(score.dtype)
        if case.options.get("causal"):
            row, column = torch.arange(score.shape[1])[:, None], torch.arange(score.shape[2])[None, :]
            score = score.masked_fill(column > row + case.packing.causal_offset[cell].item(), -torch.inf)
        maps.append((score.softmax(-1).nan_to_num(0.0), score.logsumexp(-1)))
    return maps


def exact_maps(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The float64 maps of every cell."""
    return list(prob_maps(case.q, case.k, case.packing, **case.options))


def fused(
    maps: list[tuple[torch.Tensor, torch.Tensor]], heads: str, weights: torch.Tensor | None
) -> list[torch.Tensor]:
    """Fused maps [Hout, nq, nk] in the dtype of the maps."""
    return [fuse_heads(p, heads, weights).to(p.dtype) for p, _ in maps]


def every_instruction_set() -> Iterator[str]:
    """Switch to each instruction set in turn, and back at the end."""
    before = _kernels.instruction_set()
    try:
        for name in _kernels.instruction_sets():
            _kernels.use_instruction_set(name)
            yield name
    finally:
        _kernels.use_instruction_set(before)


def error(got: torch.Tensor, exact: torch.Tensor, size: torch.Tensor) -> float:
    """Largest |got - exact| / size; infinities and NaNs belong where the oracle has them, only there."""
    assert got.shape == exact.shape, f"shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if not got.numel():
        return 0.0
    got = got.double()
    same = (got == exact) | (got.isnan() & exact.isnan())
    wrong = torch.where(same, 0.0, (got - exact).abs() / size.double().abs().clamp(min=TINY))
    return wrong.nan_to_num(torch.inf, torch.inf).max().item()


def assert_close(
    name: str,
    got: torch.Tensor,
    exact: torch.Tensor,
    size: torch.Tensor,
    case: Case,
    plain: torch.Tensor | None,
) -> None:
    """The error rule; without ``plain``, what torch computes in the dtype of the inputs, the strict one."""
    ours = error(got, exact, size)
    if not got.numel():
        return
    # A score of size s cannot be held more exactly than s * eps: a relative error of exp(s). Up to spread 100
    # plain torch measures that; beyond, few rows have near ties, and its error is a matter of luck.
    limit = FLOOR if case.spread <= 100 else 8 * case.spread * torch.finfo(torch.float32).eps
    if plain is not None:
        limit += 2 * error(plain, exact, size)
        if got.dtype != torch.float32:
            limit += torch.finfo(got.dtype).eps / 2
    else:
        assert is_strict(case), "the rule for these inputs needs plain torch"
    rule = f"{limit:.3g}" + ("" if plain is None else " (2 x plain torch + floor)")
    assert ours <= limit, f"{name}: error {ours:.3g} exceeds {rule} for {case.q.dtype}"


def assert_by_rule(
    name: str, got: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor, size: torch.Tensor | None = None
) -> None:
    """The error rule for float32 results of any formula: 2 x plain torch + floor; ``size`` default: of ``exact``."""
    size = exact if size is None else size
    ours, theirs = error(got, exact, size), error(plain, exact, size)
    assert ours <= 2 * theirs + FLOOR, f"{name}: error {ours:.3g}, of plain torch {theirs:.3g}"


def is_strict(case: Case) -> bool:
    """Whether the fixed limit on column sums holds for these inputs."""
    return case.q.dtype == torch.float32 and case.spread <= 1
