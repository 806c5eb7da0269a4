"""Maps: what the pair of query i and key j is worth, for the ops that take ``map=``.

Every map is a formula of the probabilities P^h_ij of all heads and of tensors that are linear in tokens. The *own key*
of query i is the key j = i + causal_offset of its cell, as in :class:`scfast.ops.RowStats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Prob:
    """The probabilities P^h_ij themselves, fused over heads: the map of an op that is given none."""

    @property
    def kind(self) -> str:
        """Name of the map in schemas and refusals."""
        return "prob"


@dataclass(frozen=True, eq=False)
class Norm:
    """Length of what query i reads from key j, |F_ij| with F_ij = sum_h P^h_ij f_h(x_j) (Kobayashi et al. 2020, 2021).

    The vectors f_h(x_j) = (x_j W_V^h + b_V^h) W_O^h enter through their inner products alone, one H x H matrix a key:
    no vector is held for a pair. With p = (P^1_ij .. P^H_ij) the element is::

        row_scale_i * sqrt(p^T gram_j p + [j is the own key of i] * (<diagonal_linear_i, p> + diagonal_constant_i))

    and, with ``heads="none"``, P^h_ij |f_h(x_j)| = row_scale_i * P^h_ij * sqrt(gram_j[h, h]) for each head by itself.
    A sum below zero, which rounding may leave of vectors that cancel, counts as zero.

    The analyses of METHODS are choices of these tensors:

    ===========  ==================================================================================================
    AttnN        ``gram`` of f
    AttnRes-N    also the input x_i on the diagonal, |F_ii + x_i|: ``diagonal_linear`` 2 <f_h(x_i), x_i>,
                 ``diagonal_constant`` |x_i|^2
    AttnResLn-N  as AttnRes-N with f and x replaced by (. - mean) * gamma; ``row_scale`` 1 / sigma_i, sigma_i
                 that of the layer norm's actual input
    GlobEnc      the same replacement once more for the second layer norm; ``row_scale`` 1 / (sigma_i sigma'_i)
    ===========  ==================================================================================================

    Parameters
    ----------
    gram
        [Tk, H, H] floating point, symmetric, finite: <f_h(x_j), f_g(x_j)>; computed in float32.
    diagonal_linear, diagonal_constant
        [Tq, H] and [Tq] or None: what is added to the square where a query meets its own key.
    row_scale
        [Tq] or None: factor of every element of a query's row, not negative.
    lse
        [Tq, H] float32 or None: what :func:`scfast.ops.attention_forward` returned for the same queries, keys and score
        options. It spares a pass over the scores; without it, it is computed.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.randn(2, 5, 2, 8).unbind(0)
    >>> f = torch.randn(5, 2, 16)  # [tokens, heads, width]
    >>> norm = scfast.ops.Norm(torch.einsum("jhd,jgd->jhg", f, f))
    >>> scfast.ops.attention_colsum(q, k, scfast.Packing.from_lengths([5]), map=norm).shape
    torch.Size([1, 1, 5])
    """

    gram: torch.Tensor
    diagonal_linear: torch.Tensor | None = None
    diagonal_constant: torch.Tensor | None = None
    row_scale: torch.Tensor | None = None
    lse: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """Name of the map in schemas and refusals."""
        return "norm"


@dataclass(frozen=True, eq=False)
class Relevance:
    """Gradient-weighted attention (dP^h * P^h)^+ with dP^h_ij = <d_out^h_i, v^h_j> (Chefer et al. 2021).

    ``d_out`` is the gradient of a scalar target with respect to the output of attention; it makes dP the gradient with
    respect to P. The positive part is taken head by head, before the heads are fused. With ``residual=0.5`` one step of
    :func:`scfast.ops.attention_colsum` is that of (C + I) / (1 + row sum of C), the gradient-weighted rollout.

    Parameters
    ----------
    v, d_out
        [Tk, Hkv, Dv] and [Tq, H, Dv], in the dtype of the queries.
    signed
        Leave dP * P as it is: self-attention attribution (Hao et al. 2021). Such rows have no entropy.
    lse
        As in :class:`Norm`.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k, v, d_out = torch.randn(4, 5, 2, 8).unbind(0)
    >>> cam = scfast.ops.Relevance(v, d_out)
    >>> step = scfast.ops.attention_colsum(q, k, scfast.Packing.from_lengths([5]), map=cam, residual=0.5)
    >>> step.sum().round(decimals=4).item()
    1.0
    """

    v: torch.Tensor
    d_out: torch.Tensor
    signed: bool = False
    lse: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """Name of the map in schemas and refusals."""
        return "signed relevance" if self.signed else "relevance"


Map: TypeAlias = Prob | Norm | Relevance
