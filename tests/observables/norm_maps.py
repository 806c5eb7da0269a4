"""Random layers with projection and norms, and the vectors F_ij that their attention adds up, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import scfast
from scfast.attention import LayerAttention, LayerNorm, LayerParts, Recorder, ScoreOptions
from scfast.observables import Observable
from scfast.reference._maps import prob_maps

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
    """Of one cell in float64: maps [H, n, n], f [H, n, d], F [n, n, d] without and with residual and norms."""

    maps: torch.Tensor
    transformed: torch.Tensor
    mixed: torch.Tensor
    whole: torch.Tensor

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


def materialised(layer: Layer, kind: str) -> list[CellVectors]:
    """Every F_ij of every cell, from the definitions."""
    a = layer.attention
    assert a.parts is not None
    assert a.v is not None
    assert a.hidden_in is not None
    n_heads = a.q.shape[1]
    v = a.v.double().repeat_interleave(n_heads // a.v.shape[1], dim=1)
    weights = a.parts.projection.double().T.reshape(n_heads, -1, D_MODEL)
    transformed = torch.einsum("jhd,hde->hje", v, weights)  # [H, T, d]
    cells = []
    for (maps, _), rows in zip(
        prob_maps(a.q, a.k, a.packing, **a.options.kwargs()),
        a.packing.split_q(torch.arange(a.packing.total_q)),
        strict=True,
    ):
        f = transformed[:, rows]
        mixed = torch.einsum("hij,hje->ije", maps, f)
        whole = mixed.clone()
        i = torch.arange(len(rows))
        if kind != "attn-n":
            whole[i, i] += a.hidden_in[rows].double()
        for norm in {"attnresln-n": ["attention"], "enc-n": ["attention", "output"]}.get(kind, []):
            its = a.parts.attention_norm if norm == "attention" else a.parts.output_norm
            assert its.weight is not None
            entering = layer.norm_inputs[norm][rows].double()
            sigma = ((entering - entering.mean(-1, keepdim=True)).square().mean(-1) + its.eps).sqrt()

            def apply(x: torch.Tensor, its: LayerNorm = its, sigma: torch.Tensor = sigma) -> torch.Tensor:
                assert its.weight is not None
                return (x - x.mean(-1, keepdim=True)) * its.weight.double() / sigma[:, None, None]

            mixed, whole = apply(mixed), apply(whole)
        cells.append(CellVectors(maps, f, mixed, whole))
    return cells
