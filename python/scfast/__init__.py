"""scfast: what single-cell transformers attend to, computed inside the attention kernel."""

import torch  # noqa: F401  # before the extension, so that one OpenMP runtime serves both

from scfast import ops
from scfast.packing import Packing

__all__ = ["Packing", "ops"]
