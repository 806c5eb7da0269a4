"""Masked-gene pretraining of a Geneformer on the cells of an AnnData."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast import models
from scfast.models.dictionaries import Dictionaries
from scfast.pp import gene_medians
from scfast.run import Counts
from scfast.tl._inputs import check_share, get_counts
from scfast.tl._tokens import token_blocks
from scfast.train import pretrain as training
from scfast.train.fit import steps_of_epochs, write_model
from scfast.train.masking import TokenisedCells

if TYPE_CHECKING:
    from anndata import AnnData


def pretrain(
    adata: AnnData,
    folder: str | Path,
    *,
    preset: str = "tiny",
    vocabulary: Sequence[str] | None = None,
    medians: Mapping[str, float] | None = None,
    gene_ids: str | None = None,
    counts_layer: str | None = None,
    mask: float = 0.15,
    steps: int | None = None,
    epochs: int | None = None,
    batch_tokens: int | None = None,
    lr: float | None = None,
    count_noise: float | None = None,
    seed: int = 0,
    held_out: float = 0.1,
    resume: bool = True,
    progress: bool | Callable[[dict[str, float]], None] = True,
) -> dict[str, Any]:
    """Train a Geneformer (Theodoris et al. 2023) on your cells: guess hidden genes from the others.

    A share ``mask`` of each cell's gene tokens is chosen; 80 % of them are hidden, 10 % swapped, 10 % left.
    The folder is in Geneformer's own format and is read by ``scfast.models.load("geneformer", folder)``.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    folder
        Receives ``config.json``, ``model.safetensors``, ``token_dictionary.json``,
        ``gene_median_dictionary.json`` and ``training_log.json``; checkpoints while it trains.
    preset
        ``"tiny"`` (2 layers, 4 heads, width 64, 512 tokens: a minute and a half on two cores), ``"small"`` (4, 4, 256,
        1024 tokens) or ``"v1-10m"`` (6, 4, 256, 2048 tokens: Geneformer V1-10M).
    vocabulary
        Gene ids of any kind. Default: the genes of ``adata`` that any cell expresses.
    medians
        Non-zero medians by gene. Default: :func:`scfast.pp.gene_medians` of ``adata``, and 1 for a gene of
        ``vocabulary`` that no cell of ``adata`` expresses.
    gene_ids
        Column of ``adata.var`` with the gene ids. Default: ``adata.var_names``.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    mask
        Share of the gene tokens that are chosen.
    steps, epochs
        How long to train: optimiser steps, or passes over the cells. Default: the preset's.
    batch_tokens
        Tokens per step. Default: the preset's.
    lr
        Largest learning rate. Default: the preset's.
    count_noise
        Share of the cells of every batch that are ranked anew, with each count c drawn from Gamma(c). Genes
        of one count always stand in the order of their medians, whatever the cell, so a model can guess a
        hidden gene from its place in that order alone; noise makes it look at the cell. 0: as the original.
        Default: the preset's.
    seed
        Of weights, split, order, masks and dropout.
    held_out
        Share of the cells that are never trained on.
    resume
        Continue a run that was killed in ``folder``; a finished one is left as it is. False starts again.
    progress
        True prints the losses as they fall; a function receives each entry of the log's history instead.

    Returns
    -------
    dict
        The training log: ``settings``, ``unigram_loss`` and ``history`` (``step``, ``train_loss``,
        ``held_out_loss``, ``seconds``, ...); losses in nats per hidden gene.

    Raises
    ------
    KeyError, TypeError, ValueError
        For input that does not fit, and for a folder that holds a run on other data or with other settings.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata = scfast.datasets.toy()[0]
    >>> folder = tempfile.mkdtemp()
    >>> log = scfast.tl.pretrain(adata, folder, steps=4, batch_tokens=512, progress=False)
    >>> log["history"][-1]["step"], scfast.models.load("geneformer", folder).n_layers
    (4, 2)
    """
    chosen = _preset(preset, steps, epochs, count_noise)
    check_share("mask", mask)
    check_share("held_out", held_out)
    for name, value in (("batch_tokens", batch_tokens), ("lr", lr)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    folder = Path(folder)
    counts = get_counts(adata, counts_layer)
    names = _gene_names(adata, gene_ids)
    found = gene_medians(adata, layer=counts_layer).set_axis(names).dropna()
    table = _gene_table(found, vocabulary, medians)
    cells = _tokenise(replace(counts, var=pd.DataFrame(index=names)), table, chosen)
    batch = batch_tokens or chosen.batch_tokens
    settings = training.Settings(
        preset=chosen,
        vocabulary_size=len(table) + training.N_SPECIAL,
        steps=chosen.steps or steps_of_epochs(cells.lengths, batch, chosen.epochs or 1),
        mask=mask,
        batch_tokens=batch,
        lr=lr or chosen.lr,
        seed=seed,
        held_out=held_out,
    )
    report = print_progress if progress is True else progress or None
    log = training.pretrain(cells, folder, settings, resume=resume, progress=report)
    _tables(table).write(folder)
    return log


def print_progress(entry: dict[str, float]) -> None:
    """One line of the log: the held-out loss beside the unigram loss."""
    print(progress_line(entry), flush=True)


def progress_line(entry: dict[str, float]) -> str:
    """The entry as text.

    Examples
    --------
    >>> entry = {"step": 30, "steps": 600, "held_out_loss": 6.31, "unigram_loss": 6.38, "seconds": 4.2}
    >>> progress_line(entry)
    'step    30/600   held-out loss 6.310   unigram 6.380       4 s'
    """
    return (
        f"step {entry['step']:>5.0f}/{entry['steps']:.0f}   held-out loss {entry['held_out_loss']:.3f}   "
        f"unigram {entry['unigram_loss']:.3f}   {entry['seconds']:>5.0f} s"
    )


def _preset(preset: str, steps: int | None, epochs: int | None, count_noise: float | None) -> training.Preset:
    if preset not in training.PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; use one of {', '.join(map(repr, training.PRESETS))}")
    if steps is not None and epochs is not None:
        raise ValueError(f"give steps={steps} or epochs={epochs}, not both")
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    chosen = training.PRESETS[preset]
    if count_noise is not None:
        if not 0.0 <= count_noise <= 1.0:
            raise ValueError(f"count_noise must lie in [0, 1]; got {count_noise}")
        chosen = replace(chosen, count_noise=count_noise)
    return chosen if steps is None and epochs is None else replace(chosen, steps=steps, epochs=epochs)


def _gene_names(adata: AnnData, gene_ids: str | None) -> pd.Index:
    if gene_ids is not None and gene_ids not in adata.var:
        raise KeyError(f"gene_ids={gene_ids!r} is not in adata.var, which has {list(adata.var.columns)}")
    names = pd.Index((adata.var_names if gene_ids is None else adata.var[gene_ids]).astype(str))
    if not names.is_unique:
        where = "adata.var_names" if gene_ids is None else f"adata.var[{gene_ids!r}]"
        twice = names[names.duplicated()]
        raise ValueError(
            f"{where} holds {twice.size} genes more than once, such as {twice[0]!r}: remove those columns, "
            "or call adata.var_names_make_unique()"
        )
    return names


def _gene_table(
    expressed: pd.Series, vocabulary: Sequence[str] | None, medians: Mapping[str, float] | None
) -> dict[str, float]:
    """Gene -> median, in the order of the tokens."""
    genes = list(expressed.index) if vocabulary is None else [str(gene) for gene in vocabulary]
    if len(set(genes)) != len(genes):
        raise ValueError(f"vocabulary names {len(genes) - len(set(genes))} genes more than once")
    if expressed.index.intersection(genes).empty:
        raise ValueError(
            f"no gene of the vocabulary ({', '.join(genes[:3])}, ...) is expressed in adata, whose genes are "
            f"{', '.join(expressed.index[:3])}, ...: give ids of one kind, or name their column: gene_ids="
        )
    if medians is None:
        return {gene: float(expressed.get(gene, 1.0)) for gene in genes}
    missing = [gene for gene in genes if gene not in medians]
    if missing and vocabulary is not None:
        raise ValueError(
            f"medians lack {len(missing)} genes of the vocabulary, such as {missing[0]!r}: give one for each"
        )
    if len(missing) == len(genes):
        raise ValueError(f"medians name none of the genes expressed in adata, such as {genes[0]!r}")
    table = {gene: float(medians[gene]) for gene in genes if gene in medians}
    for gene, median in table.items():
        if not 0 < median < np.inf:
            raise ValueError(f"the median of {gene!r} must be positive and finite; got {median}")
    return table


def _tables(table: dict[str, float]) -> Dictionaries:
    tokens = {"<pad>": training.PAD, "<mask>": training.MASK}
    tokens |= {gene: number for number, gene in enumerate(table, start=training.N_SPECIAL)}
    return Dictionaries(tokens, table)


def _tokenise(counts: Counts, table: dict[str, float], preset: training.Preset) -> TokenisedCells:
    """Tokens as the finished model will make them: by its own tokeniser, around fresh weights."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = training.new_model(preset, len(table) + training.N_SPECIAL, seed=0)
        write_model(fresh, Path(scratch))
        _tables(table).write(Path(scratch))
        source = models.load("geneformer", scratch)
    ids, values, weights = [], [], []
    lengths: list[int] = []
    per_median = np.zeros(len(table) + training.N_SPECIAL)
    per_median[training.N_SPECIAL :] = 1.0 / np.array(list(table.values()))
    for block, tokens in token_blocks(source, counts):
        ids.append(tokens.ids.numpy())
        cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
        values.append(np.asarray(block[cell, tokens.gene_index.numpy().copy()], dtype=np.float64).reshape(-1))
        weights.append(per_median[ids[-1]])
        lengths.extend(tokens.lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenisedCells(np.concatenate(ids), offsets, np.concatenate(values), np.concatenate(weights))
