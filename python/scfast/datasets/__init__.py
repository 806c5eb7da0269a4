"""Real data to try things on."""

from scfast.datasets.pbmc68k import pbmc68k

__all__ = ["pbmc68k"]
