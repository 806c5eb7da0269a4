"""How well hidden counts are guessed: by a trained BioFormers, and by what it must beat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.models.bioformers import load
from scfast.tl._inputs import get_raw_counts
from scfast.tl.train_bioformers import _tokens
from scfast.train.bioformers import SCORES, Settings, cells_fingerprint
from scfast.train.checkpoint import write_atomically
from scfast.train.expression import Guesses, guess

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def expression_modelling(
    adata: AnnData,
    folder: str | Path,
    *,
    correlated: int | None = 300,
    device: str | torch.device = "cpu",
    counts_layer: str | None = None,
) -> pd.DataFrame:
    """Score a trained BioFormers on the counts that the fixed mask hides of held-out cells, beside baselines.

    A tenth of the genes of each held-out cell is hidden, half of these above 0, whatever the model was trained with
    (Amara-Belgadi et al. 2023).

    Parameters
    ----------
    adata
        The cells that the model was trained on, held-out ones included.
    folder
        What :func:`scfast.tl.train_bioformers` has written. Receives the table as ``expression_modelling.csv``, by
        which :func:`scfast.tl.grn` labels the model's networks.
    correlated
        Genes that each gene's linear regression looks at: those with the largest absolute correlation of bins over the
        training cells. None: no baselines.
    device
        Where the model runs.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.

    Returns
    -------
    pandas.DataFrame
        A row for each way to guess: ``BioFormers``, its most likely bin; ``BioFormers, expected bin``; ``the gene's bin
        frequencies`` under such masks, and ``the gene's mean`` bin, which see no cell; ``linear regression`` over all
        values of the training cells, hidden predictors at their means; ``linear regression under masks``, over hidden
        values of the masked training cells alone, which is what the model learns from. Means and expected bins are
        rounded.

        Columns: ``loss`` in nats, for those that give probabilities; ``accuracy``, the share of all bins that are
        guessed exactly; ``sensitivity``, of the bins above 0; ``hel_sensitivity``, of those above the cut-off, up to
        one bin (value bins alone); ``npv``, the share of guesses of 0 that are right, NPV-50 as half of the hidden
        values are 0; for each its standard error between cells, ``_se``; nan for a share of nothing. Who guesses 1
        always has a high sensitivity: look at all of them.

    Raises
    ------
    FileNotFoundError
        When ``folder`` holds no finished training.
    ValueError
        When the model was trained on other cells, or has too few genes for ``correlated``.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> folder = tempfile.mkdtemp()
    >>> brief = {"preset": "tiny", "steps": 2, "batch_tokens": 400, "progress": False}
    >>> log = scfast.tl.train_bioformers(adata, folder, genes="all", **brief)
    >>> scores = scfast.tl.expression_modelling(adata, folder, correlated=5)
    >>> scores.index.tolist()[:3]
    ['BioFormers', "the gene's bin frequencies", 'BioFormers, expected bin']
    """
    folder = Path(folder)
    file = folder / "training_log.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist: give the folder of a finished scfast.tl.train_bioformers"
        )
    log = json.loads(file.read_text())
    source = load(folder).to(device)
    cells = _tokens(source, get_raw_counts(adata, counts_layer))
    if cells_fingerprint(cells) != log["data"]:
        raise ValueError(
            f"{folder} was trained on other cells than the {adata.n_obs} given, or on other counts of them: "
            "give the AnnData of its training"
        )
    found = guess(source, cells, Settings(**log["settings"]), correlated)
    table = _table(found, source.inputs.binning.last_exact)
    write_atomically(folder / SCORES, table.to_csv())
    return table


def _table(found: Guesses, last_exact: int | None) -> pd.DataFrame:
    targets, cell = found.targets.numpy(), found.cell.numpy()
    rows = {}
    for name, guessed in ((name, x.numpy()) for name, x in found.guessed.items()):
        rows[name] = {"loss": found.loss.get(name, np.nan)}
        asked = {
            "accuracy": (guessed == targets, targets >= 0),
            "sensitivity": (guessed == targets, targets > 0),
            "npv": (targets == 0, guessed == 0),
        }
        if last_exact is not None:
            asked["hel_sensitivity"] = (np.abs(guessed - targets) <= 1, targets > last_exact)
        for score, (right, among) in asked.items():
            rows[name][score], rows[name][f"{score}_se"] = share(right, among, cell)
    return pd.DataFrame(rows).T.rename_axis("guess")


def share(right: np.ndarray, among: np.ndarray, cell: np.ndarray) -> tuple[float, float]:
    """Share of ``right`` among the values ``among`` [M], and its standard error between cells, as a ratio of sums.

    Examples
    --------
    >>> right, among = np.array([1, 1, 0, 1], bool), np.array([1, 1, 1, 0], bool)
    >>> [round(x, 4) for x in share(right, among, np.array([0, 0, 1, 1]))]
    [0.6667, 0.4444]
    """
    asked = np.bincount(cell, weights=among)
    hits = np.bincount(cell, weights=right & among)
    if asked.sum() == 0:
        return np.nan, np.nan
    found = hits.sum() / asked.sum()
    n = np.count_nonzero(asked)
    if n < 2:
        return float(found), np.nan
    off = np.square(hits - found * asked).sum()
    return float(found), float(np.sqrt(n / (n - 1) * off) / asked.sum())
