"""Plots; each returns its Axes and takes ``ax=``, ``show=`` and ``save=``."""

from scfast.pl.attention_norms import attention_norms
from scfast.pl.rollout import rollout

__all__ = ["attention_norms", "rollout"]
