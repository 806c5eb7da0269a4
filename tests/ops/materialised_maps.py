"""Maps of one attention layer held in full: every P^h_ij f_h(x_j) as a vector, every dP by autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scfast.ops import Norm, Relevance
from scfast.reference._maps import prob_maps
from tests.ops.helpers import Case, make_case

EPS = 1e-5


@dataclass
class Layer:
    """q, k of a case, the vectors f_h(x_j) of its keys, and for its queries inputs x_i, all random."""

    case: Case
    f: torch.Tensor  # [Tk, H, width]
    x: torch.Tensor  # [Tq, width]
    gamma: torch.Tensor  # [width]
    sigma: torch.Tensor  # [Tq]


def make_layer(*args: Any, width: int = 12, seed: int = 0, **options: Any) -> Layer:
    case = make_case(*args, seed=seed, **options)
    random = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    n_queries, n_keys, heads = case.packing.total_q, case.packing.total_k, case.q.shape[1]
    return Layer(
        case,
        normal(n_keys, heads, width),
        normal(n_queries, width),
        normal(width),
        torch.rand(n_queries, generator=random) + 0.5,
    )


VARIANTS = ("AttnN", "AttnRes-N", "AttnResLn-N")


def norm_of(layer: Layer, variant: str = "AttnN", lse: torch.Tensor | None = None) -> Norm:
    """The map of a variant from inner products, as its documentation says."""
    f, x, scale, linear, constant = layer.f.double(), layer.x.double(), None, None, None
    if variant == "AttnResLn-N":
        f, x, scale = _normalise(f, layer.gamma), _normalise(x, layer.gamma), 1 / layer.sigma
    if variant != "AttnN":
        own = own_vectors(layer.case, f)  # [Tq, H, width]
        linear, constant = 2 * torch.einsum("ihd,id->ih", own, x), x.square().sum(1)
    return Norm(torch.einsum("jhd,jgd->jhg", f, f).float(), linear, constant, scale, lse)


def norm_maps(layer: Layer, variant: str = "AttnN") -> list[torch.Tensor]:
    """[nq, nk] of every cell: lengths of the vectors themselves, [nq, nk, width] in float64."""
    case, maps = layer.case, []
    for cell, (p, _) in enumerate(prob_maps(case.q, case.k, case.packing, **case.options)):
        f = case.packing.split_k(layer.f.double())[cell]
        x = case.packing.split_q(layer.x.double())[cell]
        vectors = torch.einsum("hij,jhd->ijd", p, f)
        offset = case.packing.causal_offset[cell].item()
        if variant != "AttnN":
            for i in range(p.shape[1]):
                if 0 <= i + offset < p.shape[2]:
                    vectors[i, i + offset] += x[i]
        if variant == "AttnResLn-N":
            vectors = _normalise(vectors, layer.gamma)
        norm = vectors.norm(dim=-1)
        if variant == "AttnResLn-N":
            norm = norm / case.packing.split_q(layer.sigma.double())[cell][:, None]
        maps.append(norm)
    return maps


def head_norm_maps(layer: Layer) -> list[torch.Tensor]:
    """[H, nq, nk] of every cell: lengths of P^h_ij f_h(x_j)."""
    case, maps = layer.case, []
    for cell, (p, _) in enumerate(prob_maps(case.q, case.k, case.packing, **case.options)):
        f = case.packing.split_k(layer.f.double())[cell]
        maps.append(torch.einsum("hij,jhd->hijd", p, f).norm(dim=-1))
    return maps


def own_vectors(case: Case, f: torch.Tensor) -> torch.Tensor:
    """f of the own key of every query, 0 where it has none."""
    packing, parts = case.packing, []
    for cell, vectors in enumerate(packing.split_k(f)):
        key = torch.arange(packing.lengths_q[cell]) + packing.causal_offset[cell]
        inside = (key >= 0) & (key < len(vectors))
        own = vectors.new_zeros((len(key), *vectors.shape[1:]))
        own[inside] = vectors[key[inside]]
        parts.append(own)
    return torch.cat(parts)


def _normalise(vectors: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return (vectors - vectors.mean(-1, keepdim=True)) * gamma.double()


def relevance_of(
    case: Case, signed: bool = False, lse: torch.Tensor | None = None, seed: int = 2
) -> Relevance:
    """A random gradient of the output, and the case's values."""
    random = torch.Generator().manual_seed(seed)
    d_out = torch.randn(case.packing.total_q, case.q.shape[1], case.v.shape[2], generator=random)
    return Relevance(case.v, d_out.to(case.q.dtype), signed, lse)


def relevance_maps(case: Case, map: Relevance) -> list[torch.Tensor]:
    """[H, nq, nk] of every cell: dP as autograd gives it, of the target <d_out, P v>."""
    maps, packing = [], case.packing
    for cell, (p, _) in enumerate(prob_maps(case.q, case.k, packing, **case.options)):
        p = p.detach().requires_grad_()
        v = packing.split_k(map.v.double())[cell].repeat_interleave(p.shape[0] // map.v.shape[1], dim=1)
        out = torch.einsum("hij,jhd->ihd", p, v)
        (gradient,) = torch.autograd.grad(out, p, packing.split_q(map.d_out.double())[cell])
        cam = (p * gradient).detach()
        maps.append(cam if map.signed else cam.clamp(min=0))
    return maps
