"""Tables of pairs of genes: the largest sources of each target, and what a target reads in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scfast.analyses.gene_pairs import GenePairsResult
from scfast.tl._tables import categorical

#: Share of a target's cells in which a source must be, to stand in the table: a mean over few cells is noise.
LEAST_SHARE = 0.1


def pair_table(
    results: Mapping[str, Any], holding: np.ndarray, baselines: Mapping[str, np.ndarray], n_top: int
) -> pd.DataFrame:
    """A row per group, target and source, the largest means of each target first; a target is no source of its own.

    Parameters
    ----------
    results
        ``mean`` and ``cells`` [groups, targets, sources], the names of all three, and ``null`` where there is one.
    holding
        int64 [groups, targets]: cells that have the target.
    baselines
        Name -> values [groups, sources], put beside.
    n_top
        Sources of each target, at most.
    """
    mean, cells = results["mean"], results["cells"]
    often = cells >= np.maximum(LEAST_SHARE * holding[..., None], 1)
    shown = np.where(often & ~_own(results), mean, -np.inf)
    order = np.argsort(-shown, axis=-1, kind="stable")[..., :n_top]
    group, target, place = np.nonzero(np.isfinite(np.take_along_axis(shown, order, axis=-1)))
    source = order[group, target, place]
    at = (group, target, source)
    columns = {
        "group": results["group_names"][group],
        "target": results["target_names"][target],
        "source": results["source_names"][source],
        "mean": mean[at],
        "cells": cells[at],
        **{name: values[group, source] for name, values in baselines.items()},
        **({"null": results["null"][at]} if "null" in results else {}),
    }
    return categorical(pd.DataFrame(columns), "group", "target", "source")


def target_table(results: Mapping[str, Any], pairs: GenePairsResult, complete: int) -> pd.DataFrame:
    """A row per group and target: its cells, and what it reads from itself, from genes, and from other tokens."""
    group, target = (x.reshape(-1) for x in np.indices(pairs.holding.shape))
    mass = pairs.mass[complete][group, target]
    own = np.where(_own(results), results["mean"], np.nan)[group, target]
    known = np.isfinite(own).any(1)
    itself = np.full(len(own), np.nan)
    itself[known] = np.nanmax(own[known], axis=1)
    columns = {
        "group": results["group_names"][group],
        "target": results["target_names"][target],
        "cells": pairs.holding[group, target],
        "self": itself,
        "mass_gene": mass,
        "mass_other": 1 - mass,
    }
    return categorical(pd.DataFrame(columns), "group", "target")


def _own(results: Mapping[str, Any]) -> np.ndarray:
    """Bool [targets, sources]: where both are one gene."""
    return results["target_names"][:, None] == results["source_names"]
