"""Training of a BioFormers on the cells of an AnnData."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource, create
from scfast.models.bioformers_tokens import Binning
from scfast.models.counts import totals_of
from scfast.packing import Packing
from scfast.run import Counts
from scfast.run.device import default_device, resolve_device
from scfast.tl._inputs import check_share, get_raw_counts
from scfast.tl._tokens import token_blocks
from scfast.train import bioformers as training
from scfast.train.fit import steps_of_epochs
from scfast.train.precision import resolve_precision

if TYPE_CHECKING:
    from anndata import AnnData

#: Preset -> tokens per step, and largest learning rate; that of ``paper`` is the paper's.
PRESETS = {"tiny": (2048, 2e-3), "small": (8192, 1e-3), "paper": (16_384, 2e-4)}
#: The warm-up takes no larger share of the steps.
LONGEST_WARMUP = 0.1


def train_bioformers(
    adata: AnnData,
    folder: str | Path,
    *,
    preset: str = "small",
    genes: str | Sequence[str] = "hvg:1000",
    binning: str = "value",
    n_bins: int = 30,
    normalise: bool = True,
    architecture: str = "encoder",
    value_embedding: str = "linear",
    counts_layer: str | None = None,
    mask: float = 0.1,
    nonzero: float = 0.5,
    steps: int | None = None,
    epochs: int | None = None,
    batch_tokens: int | None = None,
    accumulate: int = 1,
    lr: float | None = None,
    warmup: int = 2000,
    seed: int = 0,
    held_out: float = 0.1,
    train_share: float = 1.0,
    evaluations: int = 20,
    patience: int | None = None,
    precision: str = "auto",
    device: str | torch.device | None = None,
    resume: bool = True,
    progress: bool | Callable[[dict[str, float]], None] = True,
) -> dict[str, Any]:
    """Train a BioFormers (Amara-Belgadi et al. 2023) on your cells: guess the bins of hidden counts.

    The folder is read by ``scfast.models.load("bioformers", folder)``, and every analysis runs on it.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    folder
        Receives ``config.json``, ``vocab.json``, ``model.safetensors``, ``training_log.json`` and ``metrics.csv``;
        checkpoints while it trains.
    preset
        ``"tiny"`` (2 layers, 2 heads, width 64), ``"small"`` (4, 4, 128) or ``"paper"`` (8, 8, 512).
    genes
        ``"hvg:N"``: the N genes whose log1p of counts, each cell scaled to the mean total, vary most. ``"all"``: those
        that any cell expresses. Or names of ``adata.var_names``. A cell has a token for each, expressed or not.
    binning, n_bins
        ``"value"``, ``"segment"`` or ``"quantile"``, and bins, that of zero among them (:func:`scfast.ops.bin_values`).
    normalise
        Whether value binning scales each cell to the mean total.
    architecture
        ``"encoder"``; or ``"decoder"``: causal, hidden genes behind the others, <cls> last.
    value_embedding
        ``"linear"`` or ``"table"``.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    mask, nonzero
        Share of each cell's genes that are hidden, and the share of these above 0: m and p of the paper.
    steps, epochs
        How long to train: optimiser steps, or passes over the cells. Default: 10 passes.
    batch_tokens, lr
        Tokens per step, and the largest learning rate. Default: 2048 and 2e-3 (tiny), 8192 and 1e-3 (small), 16384 and
        2e-4 (paper).
    accumulate
        Parts that the cells of a step go through the model in: the same gradient, so much less memory.
    warmup
        Steps over which the learning rate rises, at most a tenth of all.
    seed
        Of weights, split, order and masks.
    held_out
        Share of the cells that are never trained on.
    train_share
        Share of the other cells that are trained on: a smaller one's are among a larger one's.
    evaluations
        Of the held-out cells, over all steps; each leaves a checkpoint.
    patience
        Evaluations without a lower held-out loss after which training ends; the weights of the lowest are kept.
        Default: all steps, and the last weights.
    precision
        ``"float32"``; ``"bf16"``: products and attention in bfloat16, weights in float32; ``"auto"``: bf16 where the
        device has instructions for it.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Default: the GPU where there is one.
    resume
        Continue a run that was killed in ``folder``; a finished one is left as it is. False starts again.
    progress
        True prints the losses as they fall; a function receives each entry of the log's history instead.

    Returns
    -------
    dict
        The training log: ``settings``, ``history``, ``baseline`` and, with ``patience``, ``best``, the entry that was
        kept. Held-out cells are scored under one fixed mask of a tenth of the genes, half of them above 0: ``loss`` in
        nats per hidden gene, ``sensitivity`` (counts above 0 in the exact bin), ``npv`` (guesses of 0 that are right)
        and, with value bins, ``hel_sensitivity`` (above the cut-off, up to one bin). The baseline is each gene's own
        bin frequencies, which see no cell.

    Raises
    ------
    KeyError, TypeError, ValueError
        For input that does not fit, and for a folder that holds a run on other data or with other settings.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> folder = tempfile.mkdtemp()
    >>> brief = {"preset": "tiny", "steps": 2, "batch_tokens": 400, "progress": False}
    >>> log = scfast.tl.train_bioformers(adata, folder, genes="hvg:20", **brief)
    >>> scfast.models.load("bioformers", folder).n_layers
    2
    """
    for name, share in (("mask", mask), ("held_out", held_out)):
        check_share(name, share)
    if not 0 < train_share <= 1:
        raise ValueError(f"train_share must lie above 0, up to 1; got {train_share}")
    if not 0 <= nonzero <= 1:
        raise ValueError(f"nonzero must lie between 0 and 1; got {nonzero}")
    if steps is not None and epochs is not None:
        raise ValueError(f"give steps={steps} or epochs={epochs}, not both")
    given = {
        "steps": steps, "epochs": epochs, "batch_tokens": batch_tokens, "accumulate": accumulate, "lr": lr,
        "warmup": warmup, "patience": patience,
        "evaluations": evaluations,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    where = default_device() if device is None else resolve_device(device)
    precision = resolve_precision(precision, where)
    counts = get_raw_counts(adata, counts_layer)
    totals = totals_of(sparse.csr_matrix(counts.matrix), counts.n_counts)
    target = float(totals.mean()) if normalise and binning == "value" else None
    source = create(
        _chosen(genes, counts, totals), preset=preset, binning=Binning(binning, n_bins, target=target),
        architecture=architecture, value_embedding=value_embedding, seed=seed,
    ).to(where)  # fmt: skip
    cells = _tokens(source, counts)
    tokens_per_step, rate = PRESETS[preset]
    tokens_per_step, rate = batch_tokens or tokens_per_step, lr or rate
    steps = steps or steps_of_epochs(np.array(cells.lengths), tokens_per_step, epochs or 10)
    settings = training.settings_for(
        source, steps=steps, mask=mask, nonzero=nonzero, batch_tokens=tokens_per_step, lr=rate, seed=seed,
        held_out=held_out, warmup=min(warmup / steps, LONGEST_WARMUP), accumulate=accumulate,
        patience=patience, precision=precision, train_share=train_share,
        evaluations=evaluations,
    )  # fmt: skip
    report = (lambda entry: print(progress_line(entry), flush=True)) if progress is True else progress
    return training.train(source, cells, Path(folder), settings, resume=resume, progress=report or None)


def progress_line(entry: dict[str, float]) -> str:
    """An entry of the history as text.

    Examples
    --------
    >>> scores = {"held_out_loss": 1.31, "held_out_sensitivity": 0.4213, "held_out_npv": 0.8}
    >>> progress_line({"step": 30, "steps": 600, "train_loss": 1.4, **scores, "seconds": 4.2})
    'step    30/600   held-out loss 1.310   exact bins above 0: 42.1 %       4 s'
    """
    return (
        f"step {entry['step']:>5.0f}/{entry['steps']:.0f}   held-out loss {entry['held_out_loss']:.3f}   "
        f"exact bins above 0: {entry.get('held_out_sensitivity', np.nan):.1%}   {entry['seconds']:>5.0f} s"
    ).replace("%", " %")


def _chosen(genes: str | Sequence[str], counts: Counts, totals: np.ndarray) -> list[str]:
    """Names of the input genes, in the order of the data where a rule chooses them."""
    names = counts.var.index.astype(str)
    if not isinstance(genes, str):
        if missing := [gene for gene in genes if gene not in names]:
            raise KeyError(
                f"{len(missing)} of {len(genes)} genes are not in adata.var_names, such as {missing[0]!r}"
            )
        return list(genes)
    matrix = sparse.csr_matrix(counts.matrix, dtype=np.float64)
    if genes == "all":
        return list(names[np.asarray((matrix > 0).sum(0)).ravel() > 0])
    rule, _, number = genes.partition(":")
    if rule != "hvg" or not number.isdigit() or int(number) == 0:
        raise ValueError(f"genes={genes!r} is unknown; use 'hvg:N', 'all' or names of adata.var_names")
    scale = sparse.diags(np.divide(totals.mean(), totals, out=np.zeros_like(totals, float), where=totals > 0))
    levels = (scale @ matrix).log1p()
    variance = np.asarray(levels.power(2).mean(0) - np.square(levels.mean(0))).ravel()
    most = np.argsort(-variance, kind="stable")[: int(number)]
    return list(names[np.sort(most[variance[most] > 0])])


def _tokens(source: BioformersSource, counts: Counts) -> Tokens:
    """The tokens of all cells, end to end."""
    blocks = [tokens for _, tokens in token_blocks(source, counts)]
    names = ("ids", "positions", "gene_index", "kind", "values", "lost_vocabulary", "lost_truncation")
    joined = {name: torch.cat([getattr(tokens, name) for tokens in blocks]) for name in names}
    lengths = [length for tokens in blocks for length in tokens.lengths]
    return Tokens(packing=Packing.from_lengths(lengths), **joined)
