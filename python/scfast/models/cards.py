"""What ``scfast models`` says of each kind of model: its files, its shapes, and what a whole cell costs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

#: Bytes of a number of a map, of q and of k.
FLOAT32 = 4


@dataclass(frozen=True)
class Shape:
    """The shape of one published checkpoint.

    Attributes
    ----------
    name
        What its authors call it.
    n_layers, n_heads, head_dim
        Of its attention.
    context
        Tokens of the longest cell, special tokens included.

    Examples
    --------
    >>> shape = Shape("V2-316M", 18, 18, 64, 4096)
    >>> f"{shape.bytes_with_maps / 1e9:.1f} GB, {shape.bytes_with_scfast / 1e9:.2f} GB"
    '21.7 GB, 0.68 GB'
    """

    name: str
    n_layers: int
    n_heads: int
    head_dim: int
    context: int

    @property
    def bytes_with_maps(self) -> int:
        """Of one cell at full length: a float32 number for each pair of tokens, layer and head."""
        return FLOAT32 * self.n_layers * self.n_heads * self.context**2

    @property
    def bytes_with_scfast(self) -> int:
        """Of the same cell: float32 q and k of all layers, which is all that a rollout keeps."""
        return FLOAT32 * self.n_layers * self.n_heads * self.head_dim * 2 * self.context


@dataclass(frozen=True)
class Card:
    """What a kind of model is and needs; a module of a model declares its own as ``CARD``.

    Attributes
    ----------
    title
        What it is called in print.
    files
        What :func:`scfast.models.load` expects in the folder, each with what it holds.
    shapes
        The published checkpoints; empty where the checkpoint's own configuration says all.
    notes
        What a user must know beside.
    tokenises
        Whether cells become tokens without more, so that the command line can run it.
    """

    title: str
    files: tuple[tuple[str, str], ...]
    shapes: tuple[Shape, ...] = ()
    notes: tuple[str, ...] = ()
    tokenises: bool = True


def cards() -> dict[str, Card]:
    """The card of every kind of model that :func:`scfast.models.load` knows.

    Examples
    --------
    >>> cards()["geneformer"].title
    'Geneformer V1 and V2'
    """
    from scfast.models import _REGISTRY

    return {name: import_module(module).CARD for name, module in sorted(_REGISTRY.items())}
