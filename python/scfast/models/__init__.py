"""Models that can be asked for their attention, and the one function that loads them."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from scfast.models.base import AttentionSource, TokenBytes, TokenKind, Tokens

__all__ = [
    "AttentionLayers",
    "AttentionSource",
    "ModelBatch",
    "TokenBytes",
    "TokenKind",
    "Tokens",
    "load",
    "names",
    "pack_cells",
    "wrap",
]

#: Model name -> module; each module has ``load(folder, **options)``. Imported on demand: adapters need
#: scfast.attention, which itself needs this package's base types.
_REGISTRY = {
    "bioformers": "scfast.models.bioformers",
    "geneformer": "scfast.models.geneformer",
    "hf": "scfast.models.hf",
    "scgpt": "scfast.models.scgpt",
    "uce": "scfast.models.uce",
}

#: Names of this package -> modules that import scfast.attention; found when they are first used.
_ON_DEMAND = {
    "AttentionLayers": "scfast.attention.declared",
    "ModelBatch": "scfast.models.calls",
    "pack_cells": "scfast.models.tokenizer",
    "wrap": "scfast.models.modules",
}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module 'scfast.models' has no attribute {name!r}")


def names() -> list[str]:
    """Names that :func:`load` knows.

    Returns
    -------
    list of str
        In alphabetical order.

    Examples
    --------
    >>> {"geneformer", "hf"} <= set(names())
    True
    """
    return sorted(_REGISTRY)


def load(name: str, folder: str | Path, **options: Any) -> AttentionSource:
    """Load a published or self-trained checkpoint.

    Parameters
    ----------
    name
        Kind of model; one of :func:`names`.
    folder
        Where its files are.
    **options
        Of that kind of model, for example ``dtype=``, ``token_dictionary=``
        (:func:`scfast.models.geneformer.load`).

    Returns
    -------
    AttentionSource
        What every tool in ``scfast.tl`` takes: tokeniser and network.

    Raises
    ------
    ValueError
        When the name is unknown.
    TypeError
        When that kind of model has no such option.
    FileNotFoundError
        When a file that the model needs is missing; the message lists what was looked for.

    Examples
    --------
    A model that is trained here is loaded as a published one is:

    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> folder = tempfile.mkdtemp()
    >>> log = scfast.tl.pretrain(adata, folder, steps=2, batch_tokens=512, progress=False)
    >>> model = scfast.models.load("geneformer", folder)
    >>> model.n_layers, model.n_heads, model.hidden_size
    (2, 4, 64)
    """
    if name not in _REGISTRY:
        raise ValueError(f"there is no model {name!r}; scfast.models.load knows {', '.join(names())}")
    loader = import_module(_REGISTRY[name]).load
    taken = signature(loader).parameters
    if (
        unknown := []
        if any(p.kind is p.VAR_KEYWORD for p in taken.values())
        else options.keys() - taken.keys()
    ):
        raise TypeError(f"{name} has no option {min(unknown)!r}; it has {', '.join(list(taken)[1:])}")
    source: AttentionSource = loader(Path(folder), **options)
    return source
