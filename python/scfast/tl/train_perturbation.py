"""Training of a BioFormers that predicts perturbed cells, and its scores beside simple predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast.models.bioformers import create
from scfast.models.bioformers_tokens import Binning
from scfast.models.counts import totals_of
from scfast.run import Counts
from scfast.run.device import default_device, resolve_device
from scfast.tl._inputs import check_share, get_raw_counts
from scfast.tl._perturbations import get_design
from scfast.tl.train_bioformers import PRESETS, _chosen, _tokens
from scfast.train import perturbation as training
from scfast.train.fit import SPLIT, Epochs, rng
from scfast.train.perturbation_scores import summarise
from scfast.train.perturbed_cells import PerturbedCells, choose, parts_of
from scfast.train.precision import resolve_precision

if TYPE_CHECKING:
    from anndata import AnnData

#: Share of the cells told by their marked genes alone, where single perturbations are predicted that were never seen.
FORGET = 0.5
#: Share of the steps over which the learning rate rises.
WARMUP = 0.1


def train_perturbation(
    adata: AnnData,
    folder: str | Path,
    *,
    perturbation: str,
    control: str = "control",
    within: str | Sequence[str] = (),
    separator: str = "+",
    held_out: str | Sequence[str] = "combinations",
    share: float = 0.5,
    genes: str | Sequence[str] = "hvg:500",
    preset: str = "tiny",
    binning: str = "value",
    n_bins: int = 30,
    counts_layer: str | None = None,
    epochs: int = 50,
    patience: int = 5,
    validation: float = 0.1,
    batch_tokens: int | None = None,
    lr: float | None = None,
    precision: str = "auto",
    device: str | torch.device | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool | Callable[[dict[str, float]], None] = True,
) -> dict[str, Any]:
    """Train a BioFormers (Amara-Belgadi et al. 2023) to predict perturbations that it never sees, and score it.

    Control cells go in, with an external token for each of their perturbations and a mark on target genes that are
    among the inputs; the bins of perturbed cells of the same context come out. What is held out is predicted by the
    model and by what it must beat: a perceptron given the same, the sum of single effects, the mean of training
    perturbations, and no change.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    folder
        Receives the model, ``scores.csv`` (a row per held-out perturbation, context and method), ``predictions.csv``
        (mean expression of every gene, measured and predicted), ``training_log.json``; checkpoints while it trains.
    perturbation
        Column of ``adata.obs``: what was done to each cell. Several perturbations of one cell are joined by
        ``separator``, in any order.
    control
        The value of unperturbed cells.
    within
        Column or columns of ``adata.obs`` whose cells are compared among themselves: data set, cell line.
    separator
        Between the parts of a combination.
    held_out
        ``"combinations"``: those whose every part was applied alone in the same context. ``"perturbations"``: single
        ones whose target is among the genes, and all combinations they are part of. Or names. No cell of theirs is
        trained on, in any context.
    share
        Of those that a rule finds; ``seed`` chooses them.
    genes
        Inputs: ``"hvg:N"``, to which targets that a cell expresses are added; ``"all"``; or names
        (:func:`train_bioformers`).
    preset
        ``"tiny"``, ``"small"`` or ``"paper"``.
    binning, n_bins
        As those of :func:`train_bioformers`; value binning scales each cell to the mean total.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    epochs, patience
        Passes over the cells at most, and passes without a lower validation loss after which training ends; the
        weights of the lowest are kept.
    validation
        Share of each trained perturbation's cells that decide that.
    batch_tokens, lr
        Tokens per step, and the largest learning rate. Default: the preset's.
    precision, device
        As those of :func:`train_bioformers`.
    seed
        Of weights, split, order and pairs.
    resume
        Continue a run that was killed in ``folder``; a finished one is left as it is. False starts again.
    progress
        True prints the losses as they fall; a function receives each entry of the log's history instead.

    Returns
    -------
    dict
        The training log: ``settings``, ``genes``, ``history``, ``best`` and ``scores``: per perturbation, context and
        method ``pearson`` between predicted and measured mean expression (log1p of counts, cells scaled to the mean
        total) over the input genes, ``pearson_change`` of the changes against the control's mean, and both over the
        20 genes with the largest absolute t of Welch between the perturbed and control cells (``_top``). None where
        one is not defined, such as that of no change. The methods ``half of the cells`` are no predictions: they say
        how far the measured change repeats itself, with the same controls or with halves of them.
        :func:`perturbation_summary` sums them up over seeds.

    Raises
    ------
    KeyError, TypeError, ValueError
        For input that does not fit; when nothing can be held out as asked, or a held-out perturbation has a part that
        the model could know nothing of; for a folder that holds a run on other data or with other settings.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.obs["gene"] = ["control", "STAT1", "ISG15", "STAT1+ISG15"] * 15
    >>> log = scfast.tl.train_perturbation(
    ...     adata, tempfile.mkdtemp(), perturbation="gene", genes="all", epochs=1, progress=False
    ... )
    >>> sorted({entry["perturbation"] for entry in log["scores"]})
    ['STAT1+ISG15']
    """
    check_share("validation", validation)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0, up to 1; got {share}")
    given = {"epochs": epochs, "patience": patience, "batch_tokens": batch_tokens, "lr": lr}
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; use one of {', '.join(map(repr, PRESETS))}")
    columns = [within] if isinstance(within, str) else list(within)
    design = get_design(adata, perturbation, control, columns, separator)
    counts = get_raw_counts(adata, counts_layer)
    totals = totals_of(sparse.csr_matrix(counts.matrix), counts.n_counts)
    every = sorted({part for parts in design.parts for part in parts})
    inputs = _with_targets(_chosen(genes, counts, totals), genes, counts, every)
    draws = rng(seed, SPLIT)
    split = choose(design, inputs, held_out, share, draws)
    where = default_device() if device is None else resolve_device(device)
    target = float(totals.mean())
    source = create(
        inputs, preset=preset, binning=Binning(binning, n_bins, target=target if binning == "value" else None),
        conditions=split.seen, mark_targets=True, seed=seed,
    ).to(where)  # fmt: skip
    known, ids = {name: row for row, name in enumerate(split.seen, start=1)}, source.inputs.tables.tokens
    cells = PerturbedCells(
        _tokens(source, counts), _levels(counts, totals, target, source.genes), design,
        parts_of(design, split, validation, draws),
        tuple(tuple(known[part] for part in parts if part in known) for parts in design.parts),
        tuple(tuple(ids[part] for part in parts if part in ids) for parts in design.parts),
        source.inputs.n_conditions,
    )  # fmt: skip
    tokens_per_step, rate = PRESETS[preset]
    tokens_per_step, rate = batch_tokens or tokens_per_step, lr or rate
    trained = np.array(cells.tokens.lengths)[cells.part == 0]
    settings = training.Settings(
        model=asdict(source.network.shape) | source.config(),
        held_out=tuple(design.names[number] for number in split.held_out),
        forget=FORGET if split.unseen(design) else 0.0,
        steps=Epochs(trained, tokens_per_step, seed).steps(epochs), patience=patience,
        batch_tokens=tokens_per_step, lr=rate, seed=seed, validation=validation, warmup=WARMUP,
        precision=resolve_precision(precision, where),
    )  # fmt: skip
    notes = {"control": control, "separator": separator, "target": target, "unseen": split.unseen(design)}
    report = (lambda entry: print(progress_line(entry), flush=True)) if progress is True else progress
    return training.train(
        source, cells, split, Path(folder), settings, notes=notes, resume=resume, progress=report or None
    )


def perturbation_summary(logs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Scores of one or several :func:`train_perturbation`, one per seed, summed up.

    Parameters
    ----------
    logs
        What they returned.

    Returns
    -------
    pandas.DataFrame
        A row per method and metric: ``mean`` over perturbations of the mean over seeds; ``low``, ``high``: its 95 % t
        interval between perturbations; ``seed_low``, ``seed_high``: that between seeds; ``ahead``: the model minus the
        method on perturbations that both score, with the interval ``ahead_low``, ``ahead_high`` between perturbations;
        ``perturbations`` and ``seeds``, how many. nan where a correlation is not defined.

    Raises
    ------
    ValueError
        When there is no log, one has no scores, or two have the same seed.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.obs["gene"] = ["control", "STAT1", "ISG15", "STAT1+ISG15"] * 15
    >>> log = scfast.tl.train_perturbation(
    ...     adata, tempfile.mkdtemp(), perturbation="gene", genes="all", epochs=1, progress=False
    ... )
    >>> scfast.tl.perturbation_summary([log]).columns.tolist()[:5]  # one log for each seed
    ['method', 'metric', 'mean', 'low', 'high']
    """
    several = [logs] if isinstance(logs, Mapping) else list(logs)
    if not several or any("scores" not in log for log in several):
        raise ValueError(
            "give logs of scfast.tl.train_perturbation that finished: there are no scores to sum up"
        )
    seeds = [log["settings"]["seed"] for log in several]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the logs have the seeds {seeds}: give one of each")
    scores = pd.concat([pd.DataFrame(log["scores"]) for log in several], ignore_index=True)
    return summarise(scores)


def progress_line(entry: dict[str, float]) -> str:
    """An entry of the history as text.

    Examples
    --------
    >>> progress_line({"epoch": 3, "train_loss": 0.412, "validation_loss": 0.4301, "seconds": 4.2})
    'epoch   3   training loss 0.4120   validation loss 0.4301       4 s'
    """
    return (
        f"epoch {entry['epoch']:>3.0f}   training loss {entry['train_loss']:.4f}   "
        f"validation loss {entry['validation_loss']:.4f}   {entry['seconds']:>5.0f} s"
    )


def _with_targets(
    chosen: list[str], genes: str | Sequence[str], counts: Counts, targets: Sequence[str]
) -> list[str]:
    """The chosen genes and, where a number of them was chosen, the targets that a cell expresses."""
    if not isinstance(genes, str):
        return chosen
    expressed = np.asarray((sparse.csr_matrix(counts.matrix) > 0).sum(0)).ravel() > 0
    names = counts.var.index.astype(str)
    wanted = set(chosen) | (set(targets) & set(names[expressed]))
    return [name for name in names if name in wanted]


def _levels(counts: Counts, totals: np.ndarray, target: float, genes: Sequence[str]) -> sparse.csr_matrix:
    """log1p of counts [N, G], each cell scaled to the mean total."""
    columns = counts.var.index.astype(str).get_indexer(list(genes))
    scale = np.divide(target, totals, out=np.zeros(len(totals)), where=totals > 0)
    chosen = sparse.csr_matrix(counts.matrix, dtype=np.float64)[:, columns]
    return sparse.csr_matrix(sparse.diags(scale) @ chosen).log1p()
