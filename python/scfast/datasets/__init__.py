"""Real data to try things on, and a toy that needs none."""

from scfast.datasets.pbmc68k import pbmc68k
from scfast.datasets.toy import toy

__all__ = ["pbmc68k", "toy"]
