"""Simulated cells and a small model of them: to try every call in a second."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

    from scfast.models import AttentionSource

#: Population -> the genes that it has six times as much of as the others.
MARKERS = {
    "B cell": ("CD79A", "MS4A1", "CD74", "HLA-DRA"),
    "Monocyte": ("LYZ", "CD14", "S100A8", "CST3"),
    "T cell": ("CD3D", "CD3E", "IL7R", "CCR7"),
}
#: What interferon brings up in the cells of ``condition == "stim"``.
RESPONSE = ("ISG15", "IFI6", "STAT1")
N_CELLS, N_OTHERS = 60, 25
#: Training of the model: half a second, after which it has learned which genes are common, and little else.
STEPS, BATCH_TOKENS = 20, 1024


def toy(*, seed: int = 0) -> tuple[AnnData, AttentionSource]:
    """Simulated cells of three populations, and a small Geneformer trained on them for half a second.

    Made for trying calls out, as the examples of these pages do: whatever is found in it was put there or is
    chance. Counts are Poisson draws around one profile per gene; each population has four marker genes at six
    times their rate, and half of the cells respond to interferon.

    Parameters
    ----------
    seed
        Of the model's weights and its training: models of two seeds know the same genes, and can be compared.
        The cells are the same for every seed.

    Returns
    -------
    adata : AnnData
        Counts [60, 40] in ``X`` (CSR float32); ``obs["cell_type"]`` (B cell, Monocyte, T cell), ``"donor"``
        (d1, d2, d3) and ``"condition"`` (ctrl, stim); symbols as ``var_names``.
    model : AttentionSource
        A Geneformer V1 of 2 layers, 4 heads and width 64, as :func:`scfast.tl.pretrain` writes it.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> adata.shape, model.n_layers, model.n_heads
    ((60, 40), 2, 4)
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> adata.uns["rollout"]["groups"].index.tolist()
    ['B cell', 'Monocyte', 'T cell']
    """
    return _cells().copy(), _model(seed)


@cache
def _model(seed: int) -> AttentionSource:
    from scfast import models, tl  # much to import, of which the cells need nothing

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "toy"
        tl.pretrain(_cells(), folder, steps=STEPS, batch_tokens=BATCH_TOKENS, seed=seed, progress=False)
        return models.load("geneformer", folder)


@cache
def _cells() -> AnnData:
    from anndata import AnnData

    draws = np.random.default_rng(0)
    genes = [*(gene for markers in MARKERS.values() for gene in markers), *RESPONSE]
    genes += [f"GENE{number}" for number in range(1, N_OTHERS + 1)]
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(N_CELLS)])
    obs["cell_type"] = pd.Categorical.from_codes(np.arange(N_CELLS) % len(MARKERS), list(MARKERS))
    obs["donor"] = pd.Categorical.from_codes(draws.permutation(N_CELLS) % 3, ["d1", "d2", "d3"])
    obs["condition"] = pd.Categorical.from_codes(np.arange(N_CELLS) // 3 % 2, ["ctrl", "stim"])
    rates = np.tile(draws.lognormal(-0.5, 0.7, len(genes)), (N_CELLS, 1))
    rates[:, : len(genes) - N_OTHERS] = 0.5
    for population, markers in MARKERS.items():
        rates[np.ix_(obs["cell_type"] == population, [genes.index(gene) for gene in markers])] *= 6
    rates[np.ix_(obs["condition"] == "stim", [genes.index(gene) for gene in RESPONSE])] *= 6
    counts = draws.poisson(rates).astype(np.float32)
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))
