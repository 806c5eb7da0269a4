"""Which cells train and test which probes: labels, folds, sample, shuffled labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfast.tl._folds import check_folds, make_folds, take_sample
from scfast.tl._labels import Labelled
from scfast.tl._probes import Design

if TYPE_CHECKING:
    from anndata import AnnData


def make_design(
    adata: AnnData, labelled: dict[str, Labelled], rows: np.ndarray, replicate_key: str | None, folds: int,
    n_sample: int, seed: int,
) -> Design:  # fmt: skip
    """Folds, sample and shuffled labels of the cells ``rows``, which the model can read."""
    draws = np.random.default_rng(seed)
    codes = np.full((len(labelled), adata.n_obs), -1, dtype=np.int64)
    for number, found in enumerate(labelled.values()):
        codes[number, found.rows] = found.codes
    unread = np.ones(adata.n_obs, dtype=bool)
    unread[rows] = False
    codes[:, unread] = -1
    replicates = (
        None
        if replicate_key is None
        else _replicates(adata, replicate_key, np.any(codes >= 0, axis=0), folds)
    )
    fold = make_folds(codes, replicates, folds, draws)
    for number, (name, found) in enumerate(labelled.items()):
        kept = found.keep(codes[number, found.rows] >= 0, "no gene of the vocabulary")
        check_folds(kept, name, fold, folds, replicates is not None)
    shuffled = codes.copy()
    for of_label in shuffled:
        for number in range(folds):
            cells = np.flatnonzero((fold == number) & (of_label >= 0))
            of_label[cells] = of_label[draws.permutation(cells)]
    classes = {name: found.classes for name, found in labelled.items()}
    return Design(classes, codes, shuffled, fold, take_sample(codes, fold, n_sample, draws), folds)


def _replicates(adata: AnnData, replicate_key: str, needed: np.ndarray, folds: int) -> np.ndarray:
    if replicate_key not in adata.obs:
        raise KeyError(
            f"replicate_key={replicate_key!r} is not in adata.obs, which has {list(adata.obs.columns)}"
        )
    codes = adata.obs[replicate_key].astype("category").cat.codes.to_numpy().astype(np.int64)
    unknown = int(np.sum(needed & (codes < 0)))
    if unknown:
        raise ValueError(
            f"adata.obs[{replicate_key!r}] is empty for {unknown} labelled cells: fill it, or empty their labels"
        )
    there = len(np.unique(codes[needed]))
    if there < folds:
        raise ValueError(
            f"adata.obs[{replicate_key!r}] has {there} replicates and folds={folds}: name at most {there} folds, or"
            " leave replicate_key out"
        )
    return codes
