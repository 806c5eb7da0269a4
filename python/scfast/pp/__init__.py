"""Preparing data: counts, and what a tokeniser needs to know about genes."""

from scfast.pp.gene_medians import gene_medians
from scfast.pp.recover_counts import recover_counts

__all__ = ["gene_medians", "recover_counts"]
