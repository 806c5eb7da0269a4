"""Random layers with projection and norms, and the vectors F_ij that their attention adds up.

In float64; in float32 by plain torch, the yardstick of the error rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

import scfast
from scfast.attention import LayerAttention, LayerNorm, LayerParts, Recorder, ScoreOptions
from scfast.observables import Observable
from scfast.reference._maps import prob_maps
from tests.ops.helpers import Case, plain_maps

D_MODEL = 24


@dataclass
class Layer:
    """One layer, and the inputs of its norms."""

    attention: LayerAttention
    norm_inputs: dict[str, torch.Tensor]


def random_layer(
    number: int, lengths: Sequence[int], *, n_heads: int = 4, n_shared: int = 2, post_norm: bool = True,
    softcap: float | None = None, key_bias: bool = False, causal: bool = False, scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Layer:  # fmt: skip
    """A layer of heads of width 8 and values of width 6, whose keys and values several heads may share."""
    generator = torch.Generator().manual_seed(number)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    packing = scfast.Packing.from_lengths(lengths)
    n = packing.total_q
    bias = normal(n, n_heads) if key_bias else None
    norms = [LayerNorm(1 + normal(D_MODEL) / 3, normal(D_MODEL), 1e-5) for _ in range(2)]
    attention = LayerAttention(
        number, normal(n, n_heads, 8).to(dtype), normal(n, n_shared, 8).to(dtype), normal(n, n_shared, 6).to(dtype),
        packing, ScoreOptions(scale, softcap, bias, causal), hidden_in=normal(n, D_MODEL).to(dtype),
        parts=LayerParts(normal(D_MODEL, n_heads * 6) / 5, *norms, post_norm),
    )  # fmt: skip
    return Layer(attention, {"attention": 2 * normal(n, D_MODEL), "output": 3 * normal(n, D_MODEL)})


def run(
    layers: Sequence[Layer], *observables: Observable, backend: str = "auto", **begin: object
) -> Recorder:
    """Record the layers as an adapter would."""
    recorder = Recorder(observables, backend=backend)
    recorder.begin(len(layers), layers[0].attention.packing, **begin)  # type: ignore[arg-type]
    for layer in layers:
        recorder.attend(layer.attention)
        for norm, x in layer.norm_inputs.items():
            recorder.norm_input(layer.attention.layer, norm, x)
    recorder.finish()
    return recorder


@dataclass
class CellVectors:
    """Of one cell: maps [H, n, n], f [H, n, d], F [n, n, d] without and with residual and norms.

    ``sizes`` [n, n] are the norms of F's terms, added up: what its norms would be if nothing cancelled.
    """

    maps: torch.Tensor
    transformed: torch.Tensor
    mixed: torch.Tensor
    whole: torch.Tensor
    sizes: torch.Tensor

    @property
    def norms(self) -> torch.Tensor:
        """|F_ij + residual|, [n, n]."""
        return self.whole.norm(dim=-1)

    @property
    def mixing_ratio(self) -> torch.Tensor:
        """[n]."""
        i = torch.arange(len(self.mixed))
        others = (self.mixed.sum(1) - self.mixed[i, i]).norm(dim=-1)
        return others / (others + self.whole[i, i].norm(dim=-1))


def materialised(layer: Layer, kind: str, dtype: torch.dtype = torch.float64) -> list[CellVectors]:
    """Every F_ij of every cell, from the definitions, in float64 or by plain torch in float32."""
    a = layer.attention
    assert a.parts is not None
    assert a.v is not None
    assert a.hidden_in is not None
    n_heads = a.q.shape[1]
    v = a.v.to(dtype).repeat_interleave(n_heads // a.v.shape[1], dim=1)
    weights = a.parts.projection.to(dtype).T.reshape(n_heads, -1, D_MODEL)
    transformed = torch.einsum("jhd,hde->hje", v, weights)  # [H, T, d]
    cells = []
    options = a.options.kwargs()
    for (maps, _), rows in zip(
        prob_maps(a.q, a.k, a.packing, **options)
        if dtype == torch.float64
        else plain_maps(Case(a.q, a.k, a.v, a.packing, options)),
        a.packing.split_q(torch.arange(a.packing.total_q)),
        strict=True,
    ):
        f = transformed[:, rows]
        mixed = torch.einsum("hij,hje->ije", maps, f)
        whole = mixed.clone()
        i = torch.arange(len(rows))
        if kind != "attn-n":
            whole[i, i] += a.hidden_in[rows].to(dtype)
        terms, residual = f, a.hidden_in[rows].to(dtype)
        scale = torch.ones(len(rows), dtype=dtype)
        for norm in {"attnresln-n": ["attention"], "enc-n": ["attention", "output"]}.get(kind, []):
            its = a.parts.attention_norm if norm == "attention" else a.parts.output_norm
            assert its.weight is not None
            entering = layer.norm_inputs[norm][rows].to(dtype)
            sigma = ((entering - entering.mean(-1, keepdim=True)).square().mean(-1) + its.eps).sqrt()

            def centred(x: torch.Tensor, weight: torch.Tensor = its.weight) -> torch.Tensor:
                return (x - x.mean(-1, keepdim=True)) * weight.to(dtype)

            mixed, whole = (centred(x) / sigma[:, None, None] for x in (mixed, whole))
            terms, residual, scale = centred(terms), centred(residual), scale / sigma
        sizes = torch.einsum("hij,hj->ij", maps, terms.norm(dim=-1))
        if kind != "attn-n":
            sizes[i, i] += residual.norm(dim=-1)
        cells.append(CellVectors(maps, f, mixed, whole, sizes * scale[:, None]))
    return cells


def both(layer: Layer, kind: str) -> Iterator[tuple[CellVectors, CellVectors]]:
    """Every cell in float64, and by plain torch in float32."""
    return zip(materialised(layer, kind), materialised(layer, kind, torch.float32), strict=True)
