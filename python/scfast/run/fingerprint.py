"""A short name for the content of an object, so that a run that is continued is known to be the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

#: Values of an array that are looked at; of longer ones every n-th.
LOOKED_AT = 2**16


def fingerprint(*objects: Any) -> str:
    """Of the values, types and attributes of objects, 32 hexadecimal digits.

    Arrays are looked at in :data:`LOOKED_AT` places at most, so that a model of gigabytes takes no time: this tells
    apart what a user may mistake for one another, not what somebody has forged. Functions are taken by their name, and
    objects with a method ``fingerprint_parts`` by what it returns. What an object remembers of its own attributes
    (``cached_property``) is left out.

    Examples
    --------
    >>> import numpy as np
    >>> fingerprint(np.arange(3), {"seed": 0}) == fingerprint(np.arange(3), {"seed": 0})
    True
    >>> fingerprint(np.arange(3)) == fingerprint(np.arange(3.0))
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest.update, objects, [])
    return digest.hexdigest()


def _add(update: Any, x: Any, above: list[int]) -> None:
    """Add one object; ``above`` are those that it is a part of, so that circles end."""
    update(f"{type(x).__module__}.{type(x).__qualname__}:".encode())
    if x is None or isinstance(
        x, (bool, int, float, complex, str, bytes, Enum, Path, torch.dtype, torch.device)
    ):
        update(repr(x).encode())
    elif isinstance(x, torch.Tensor):
        flat = x.detach().reshape(-1)
        part = flat[:: max(1, flat.numel() // LOOKED_AT)].cpu()
        _array(
            update,
            (x.dtype, tuple(x.shape)),
            (part.float() if part.dtype == torch.bfloat16 else part).numpy(),
        )
    elif isinstance(x, np.ndarray) and x.dtype != object:
        _array(update, (x.dtype, x.shape), x.reshape(-1)[:: max(1, x.size // LOOKED_AT)])
    elif sparse.issparse(x) and hasattr(x, "indptr"):
        _parts(update, (x.shape, x.data, x.indices, x.indptr), x, above)
    elif isinstance(x, (pd.DataFrame, pd.Series, pd.Index)):
        hashed = pd.util.hash_pandas_object(x) if len(x) else np.zeros(0)
        update(np.asarray(hashed).tobytes())
    elif hasattr(x, "fingerprint_parts"):
        _parts(update, x.fingerprint_parts(), x, above)
    elif isinstance(x, Mapping):
        _parts(update, [part for pair in x.items() for part in pair], x, above)
    elif isinstance(x, (list, tuple)):
        _parts(update, x, x, above)
    elif isinstance(x, (set, frozenset)):
        _parts(update, sorted(x, key=repr), x, above)
    elif isinstance(x, partial):
        _parts(update, (x.func, x.args, x.keywords), x, above)
    elif callable(x) and hasattr(x, "__qualname__"):
        update(f"{x.__module__}.{x.__qualname__}".encode())
    elif hasattr(x, "__dict__"):
        derived = [name for name in vars(x) if isinstance(getattr(type(x), name, None), cached_property)]
        kept = [(name, vars(x)[name]) for name in sorted(vars(x)) if name not in derived]
        _parts(update, [part for pair in kept for part in pair], x, above)


def _parts(update: Any, parts: Any, whole: Any, above: list[int]) -> None:
    if id(whole) in above:
        return
    for part in parts:
        _add(update, part, [*above, id(whole)])


def _array(update: Any, about: Any, values: np.ndarray) -> None:
    update(repr(about).encode())
    update(np.ascontiguousarray(values).tobytes())
