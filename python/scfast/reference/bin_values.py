"""Binning of counts, a cell at a time in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def bin_values(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    *,
    mode: str,
    n_bins: int,
    scales: np.ndarray | None,
    cutoff: float,
    per_doubling: int,
    seed: int,
    row_ids: np.ndarray | None,
    uniforms: np.ndarray | None,
) -> np.ndarray:
    """The bins, int32, of the entries from ``indptr[0]`` to ``indptr[-1]``."""
    bins = np.zeros(len(data), dtype=np.int32)
    for cell, (begin, end) in enumerate(pairwise(indptr)):
        found = begin + np.flatnonzero(data[begin:end] > 0)
        if not len(found):
            continue
        if mode == "segment":
            bins[found] = segments(data[found], n_bins)
        elif mode == "value":
            x = data[found].astype(np.float64) * (1.0 if scales is None else scales[cell])
            bins[found] = value_bins(x, n_bins, cutoff, per_doubling)
        elif uniforms is not None:
            bins[found] = quantile_bins(data[found], n_bins, uniforms[found])
        elif row_ids is not None:
            bins[found] = quantile_bins(data[found], n_bins, random(seed, row_ids[cell], indices[found]))
    return bins[indptr[0] : indptr[-1]]


def segments(x: np.ndarray, n_bins: int) -> np.ndarray:
    """Equal-count bins; equal values share the one of their first."""
    smaller = np.searchsorted(np.sort(x), x, side="left")
    return 1 + (n_bins - 1) * smaller // len(x)


def value_bins(x: np.ndarray, n_bins: int, cutoff: float, per_doubling: int) -> np.ndarray:
    """Whole numbers up to the cut-off, ``per_doubling`` bins for every doubling above it."""
    low = np.where(x <= 1, 1, np.rint(np.minimum(x, cutoff)))
    with np.errstate(over="ignore", divide="ignore"):
        high = np.rint(cutoff) + np.ceil(per_doubling * np.log2(x / cutoff))
    return np.where(x == 0, 0, np.minimum(np.where(x <= cutoff, low, high), n_bins - 1)).astype(np.int32)


def quantile_bins(x: np.ndarray, n_bins: int, u: np.ndarray) -> np.ndarray:
    """The formula of scGPT's ``binning``, in its own terms."""
    edges = np.quantile(x, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(x, edges), np.digitize(x, edges, right=True)
    return np.ceil(u * (right - left) + left).astype(np.int32)


def random(seed: int, row_id: int, columns: np.ndarray) -> np.ndarray:
    """Numbers ``columns`` of the SplitMix64 stream that starts at number ``row_id`` of the stream of the seed."""
    start = split_mix(np.array(seed, np.uint64), np.array(row_id).astype(np.uint64))
    return (split_mix(start, columns.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def split_mix(start: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Number ``number`` of the stream of ``start`` (Steele, Lea & Flood 2014), arithmetic modulo 2^64."""
    with np.errstate(over="ignore"):
        z = start + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
