"""Tables of how alike the tokens of a cell are, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scfast.analyses.token_similarity import TokenSimilarityResult
from scfast.observables.token_cosines import PAIRS
from scfast.ops.cosine_histogram import cosine_edges

#: Which quantiles the tables hold, by column.
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
#: Name of all cells together, beside groups.
ALL = "all"


def histogram_quantiles(counts: np.ndarray, edges: np.ndarray, q: float) -> np.ndarray:
    """Quantile of binned values, linear within a bin.

    Parameters
    ----------
    counts
        int64 [..., bins].
    edges
        [bins + 1].
    q
        0 to 1.

    Returns
    -------
    numpy.ndarray
        float64 [...], nan where there are no counts.

    Examples
    --------
    >>> histogram_quantiles(np.array([[0, 4, 4], [0, 0, 0]]), np.array([0.0, 1.0, 2.0, 3.0]), 0.5).tolist()
    [2.0, nan]
    """
    cumulated = counts.cumsum(-1)
    wanted = q * cumulated[..., -1:]
    place = np.argmax((cumulated >= wanted) & (counts > 0), axis=-1)[..., None]
    inside, before = (np.take_along_axis(x, place, -1)[..., 0] for x in (counts, cumulated - counts))
    low, high = edges[place[..., 0]].astype(np.float64), edges[place[..., 0] + 1].astype(np.float64)
    share = (wanted[..., 0] - before) / np.maximum(inside, 1)
    return np.where(inside > 0, low + np.clip(share, 0, 1) * (high - low), np.nan)


def token_results(parts: Sequence[tuple[Sequence[str], TokenSimilarityResult]]) -> Mapping[str, Any]:
    """``"tokens"``, ``"token_counts"``, ``"token_groups"`` and ``"edges"`` of :func:`scfast.tl.similarity`.

    Parameters
    ----------
    parts
        Names of groups, and the statistics of these groups.
    """
    names = [name for group, _ in parts for name in group]
    counts = np.concatenate([result.counts for _, result in parts])  # [groups, K, 3, bins]
    edges = cosine_edges(counts.shape[-1]).numpy()
    held = counts.sum((0, 1, 3)) > 0
    group, layer, pair = np.indices(counts.shape[:3])[:, :, :, held].reshape(3, -1)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(result, name) for _, result in parts])[:, :, held].ravel()

    low, high = column("min"), column("max")
    quantiles = {
        name: np.clip(histogram_quantiles(counts[:, :, held], edges, q).ravel(), low, high)
        for name, q in QUANTILES.items()
    }
    table = pd.DataFrame(
        {
            "group": pd.Categorical.from_codes(group, categories=names),
            "layer": layer,
            "pair": pd.Categorical.from_codes(pair, categories=list(PAIRS)).remove_unused_categories(),
            **{name: column(name) for name in ("cells", "pairs", "mean", "sd", "min")},
            **quantiles,
            **{name: column(name) for name in ("max", "cell_mean", "cell_se", "zeros")},
        }
    )
    return {
        "tokens": table,
        "token_counts": counts,
        "token_groups": np.array(names, dtype=str),
        "edges": edges,
    }
