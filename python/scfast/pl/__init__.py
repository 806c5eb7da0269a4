"""Plots; each returns its Axes and takes ``ax=``, ``show=`` and ``save=``."""

from scfast.pl.rollout import rollout

__all__ = ["rollout"]
