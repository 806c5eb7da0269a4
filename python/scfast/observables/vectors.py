"""The vectors that attention adds up, F_ij = sum_h P^h_ij f_h(x_j): what norm-based analysis measures.

Here are their parts that are linear in tokens: f_h through per-head values and the output projection, Gram
matrices of f_h, the diagonal F_ii. None of them holds tokens x tokens, nor tokens x heads x width beyond a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scfast.observables.base import Observable
from scfast.ops import Norm

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention, LayerParts
    from scfast.ops import AttentionOutput

#: Kobayashi et al. 2020 (AttnN), 2021 (AttnRes-N, AttnResLn-N), Modarressi et al. 2022 (N_enc).
KINDS = ("attn-n", "attnres-n", "attnresln-n", "enc-n")
#: Kind -> the norms that are part of it.
_NORMS = {"attn-n": (), "attnres-n": (), "attnresln-n": ("attention",), "enc-n": ("attention", "output")}
#: Floats of the largest intermediate of a Gram matrix, [block, H, d]: 16 MB.
_BLOCK_FLOATS = 2**22


def check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds, none unknown and none twice."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no norm-based measure; there are {', '.join(map(repr, KINDS))}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={kinds} must name at least one measure, and none twice")
    return kinds


def norms_of(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The norms, in order, whose input must be known for all of these kinds."""
    return max((_NORMS[kind] for kind in kinds), key=len)


@dataclass(frozen=True)
class Vectors:
    """f_h(x_j) of one layer, as one kind of measure sees them.

    Attributes
    ----------
    values
        float32 [T, H, Dv]: x W_V + b_V of every head.
    projection
        float32 [H, Dv, d]: W_O, followed by the linear part of the norms that are part of the kind.
    residual
        float32 [T, d]: what is added on the diagonal; None for AttnN.
    inverse_sigma
        float32 [T]: 1 / sigma of those norms, which divides the rows of the map.
    """

    values: torch.Tensor
    projection: torch.Tensor
    residual: torch.Tensor | None
    inverse_sigma: torch.Tensor

    def gram(self) -> torch.Tensor:
        """G_j[h, g] = <f_h(x_j), f_g(x_j)>, float32 [T, H, H].

        With M_hg = W_O^h W_O^gT, G_j[h, g] = v_h^T M_hg v_g: no f_h is formed.
        """
        n_heads, width, _ = self.projection.shape
        flat = self.projection.flatten(0, 1)
        products = (flat @ flat.T).view(n_heads, width, n_heads * width)  # [H, Dv, H Dv]
        gram = self.values.new_empty((len(self.values), n_heads, n_heads))
        block = max(1, _BLOCK_FLOATS // (n_heads * n_heads * width))
        for start in range(0, len(gram), block):
            v = self.values[start : start + block]  # [b, H, Dv]
            left = torch.bmm(v.transpose(0, 1), products).view(n_heads, len(v), n_heads, width)
            one = torch.einsum("hbgd,bgd->bhg", left, v)
            gram[start : start + block] = (one + one.mT) / 2
        return gram

    def head_norms(self) -> torch.Tensor:
        """|f_h(x_j)|, float32 [T, H]."""
        squares = torch.stack(
            [((self.values[:, h] @ w) ** 2).sum(-1) for h, w in enumerate(self.projection)], dim=1
        )
        return squares.sqrt()

    def project(self, heads: torch.Tensor) -> torch.Tensor:
        """sum_h W_O^h heads_h of vectors [T, H, Dv], float32 [T, d]; of the attention output it gives sum_j F_ij."""
        return heads.float().flatten(1) @ self.projection.flatten(0, 1)

    def own(self, self_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """F_jj and F_jj + x_j (the same where nothing is added), float32 [T, d]."""
        alone = self.project(self.values * self_weights[..., None])
        return alone, alone if self.residual is None else alone + self.residual

    def norm_map(self, lse: torch.Tensor | None) -> Norm:
        """|F_ij| (with the residual on the diagonal) / sigma_i, as the ops take it."""
        linear = constant = None
        if self.residual is not None:
            n_heads, width, _ = self.projection.shape
            seen = self.residual @ self.projection.flatten(0, 1).T  # [T, H Dv]: W_O^h x of every head
            linear = 2 * (self.values * seen.view(-1, n_heads, width)).sum(-1)
            constant = (self.residual**2).sum(-1)
        return Norm(self.gram(), linear, constant, self.inverse_sigma, lse)


def vectors(attention: LayerAttention, kind: str, sigma: dict[str, torch.Tensor]) -> Vectors:
    """The vectors of a layer; ``sigma`` float32 [T] of the norms in :func:`norms_of`."""
    parts, values = attention.parts, attention.v
    assert parts is not None
    assert values is not None
    assert attention.hidden_in is not None
    n_heads, width = attention.q.shape[1], values.shape[2]
    projection = parts.projection.float().T.unflatten(0, (n_heads, width))  # [H, Dv, d]
    residual = None if kind == "attn-n" else attention.hidden_in.float()
    inverse = torch.ones(len(values), device=values.device)
    for norm in _NORMS[kind]:
        layer_norm = parts.attention_norm if norm == "attention" else parts.output_norm
        projection = layer_norm.part(projection)
        residual = None if residual is None else layer_norm.part(residual)
        inverse = inverse / sigma[norm]
    values = values.float()
    if values.shape[1] < n_heads:  # grouped queries share values
        values = values.repeat_interleave(n_heads // values.shape[1], dim=1)
    return Vectors(values, projection, residual, inverse)


def self_weights(attention: LayerAttention) -> torch.Tensor:
    """P^h_ii = exp(s_ii - lse_i), float32 [T, H]: linear in tokens."""
    assert attention.lse is not None
    options, q = attention.options, attention.q.float()
    k = attention.k.float().repeat_interleave(q.shape[1] // attention.k.shape[1], dim=1)
    scores = (q * k).sum(-1) * (q.shape[2] ** -0.5 if options.scale is None else options.scale)
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.key_bias is not None:
        scores = scores + options.key_bias.float().view(len(q), -1)
    return (scores - attention.lse).exp()


class NormObservable(Observable):
    """An observable of the vectors of each layer: waits for the inputs of the norms, then calls :meth:`measure`."""

    needs_parts = True
    kinds: tuple[str, ...] = KINDS[:1]
    #: The layer whose norms' inputs are awaited.
    _open: LayerAttention | None = None

    def needs_output(self, n_layers: int | None) -> bool:
        """True: values and norms of every layer are needed."""
        return True

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the layer; with norms among the kinds, its measures wait for their inputs."""
        self._check(attention)
        self._sigma: dict[str, torch.Tensor] = {}
        self._open = attention
        if not norms_of(self.kinds):
            self._close()

    def on_norm_input(self, layer: int, norm: str, x: torch.Tensor) -> None:
        """Note sigma of a norm's input; the last one that is needed settles the layer."""
        wanted = norms_of(self.kinds)
        if norm not in wanted or self._open is None or self._open.layer != layer:
            return
        parts = self._open.parts
        assert parts is not None
        self._sigma[norm] = (parts.attention_norm if norm == "attention" else parts.output_norm).sigma(x)
        if norm == wanted[-1]:
            self._close()

    def measure(self, attention: LayerAttention, sigma: dict[str, torch.Tensor]) -> None:
        """Measure a layer; ``sigma`` float32 [T] of the inputs of its norms, as far as the kinds need them."""
        raise NotImplementedError

    def _close(self) -> None:
        assert self._open is not None
        missing = [norm for norm in norms_of(self.kinds) if norm not in self._sigma]
        if missing:
            raise RuntimeError(f"the model did not report the input of its {missing[0]} norm (norm_input)")
        attention, self._open = self._open, None
        self.measure(attention, self._sigma)

    def check_closed(self) -> None:
        """Refuse a model that leaves the inputs of a layer's norms unsaid."""
        if self._open is not None:
            raise RuntimeError(
                f"{type(self).__name__}: the model did not report the inputs of the norms of layer "
                f"{self._open.layer}; its adapter must call recorder.norm_input"
            )

    def _check(self, attention: LayerAttention) -> None:
        self.check_closed()
        parts: LayerParts | None = attention.parts
        if parts is None or attention.hidden_in is None or attention.v is None:
            raise ValueError(
                f"{type(self).__name__} needs the values, the layer's input, projection and norms; this model's "
                "adapter does not hand them over (LayerAttention.v, .hidden_in, .parts)"
            )
        if attention.packing.lengths_q != attention.packing.lengths_k:
            raise ValueError(f"{type(self).__name__} needs as many queries as keys in every cell")
        refused = [kind for kind in self.kinds if _NORMS[kind]]
        if refused and not parts.post_norm:
            raise ValueError(
                f"{refused[0]} is undefined for a pre-norm model, whose norms are not applied to the sums of "
                "attention output and residual: use 'attn-n' or 'attnres-n'"
            )
