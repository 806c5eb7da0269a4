"""scfast: what single-cell transformers attend to, computed inside the attention kernel."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch  # noqa: F401  # before the extension, so that one OpenMP runtime serves both

from scfast import _kernels, ops
from scfast.attention import record
from scfast.packing import Packing

__all__ = ["Packing", "datasets", "io", "models", "ops", "pl", "pp", "record", "run", "tl"]

#: Rooms that need AnnData, pandas or matplotlib: imported when they are first used, so that this import stays light.
_ON_DEMAND = ("datasets", "io", "models", "pl", "pp", "run", "tl")

#: An older instruction set than the best one here: results of another machine, or a look at its kernels.
if _wanted := os.environ.get("SCFAST_INSTRUCTION_SET"):
    try:
        _kernels.use_instruction_set(_wanted)
    except ValueError as error:
        raise ValueError(f"SCFAST_INSTRUCTION_SET: {error}") from None


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return import_module(f"scfast.{name}")
    raise AttributeError(f"module 'scfast' has no attribute {name!r}")
