"""Fine-tuning a Geneformer on the cells of an AnnData: a classifier of whole cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfast.models.base import AttentionSource, TokenKind
from scfast.models.geneformer import GeneformerSource
from scfast.models.heads import new_classifier
from scfast.run import Counts
from scfast.tl._inputs import check_share, get_counts, get_source
from scfast.tl._labels import Labelled, label_cells, require_classes
from scfast.tl._parts import cells_by_part, choose_parts, group_of_cells, groups_by_part
from scfast.tl._tokens import token_blocks
from scfast.train import finetune as training
from scfast.train.classifier import Freeze, LabelledCells
from scfast.train.fit import HEAD, SPLIT, Epochs, Progress, rng
from scfast.train.masking import TokenisedCells
from scfast.train.split import TRAIN

if TYPE_CHECKING:
    from anndata import AnnData


def finetune(
    adata: AnnData,
    folder: str | Path,
    *,
    model: AttentionSource | str,
    label: str,
    where: str | None = None,
    recode: Mapping[str, Sequence[Any]] | None = None,
    group: str | None = None,
    test: float = 0.2,
    test_groups: Sequence[str] | None = None,
    validation: float = 0.1,
    validate_within: bool = False,
    freeze: Freeze = "none",
    class_weights: str | Mapping[str, float] | None = "balanced",
    epochs: int = 10,
    patience: int = 3,
    batch_tokens: int = 8192,
    lr: float = 5e-5,
    weight_decay: float = 0.001,
    counts_layer: str | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool | Progress = True,
) -> dict[str, Any]:
    """Train a Geneformer to tell classes of cells apart, and test it on cells that it never saw.

    As the authors of Geneformer do, a ``BertForSequenceClassification``: the last hidden state of each cell's
    *first token* goes through a dense layer and tanh (BERT's pooler) and a linear map to the classes. The first
    token is ``<cls>`` in V2; in V1, which has none, it is the gene that ranks highest in the cell. Pooler and
    linear map start at random and are always trained. Cells are packed: no padding is computed, and attention
    holds no map in either direction.

    The folder loads in transformers (``BertForSequenceClassification.from_pretrained``), and with
    ``scfast.models.load("geneformer", folder)`` wherever the pretrained model does.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    folder
        Receives ``config.json``, ``model.safetensors``, the model's dictionaries, ``predictions.csv`` (part, label,
        prediction and class probabilities of each cell) and ``training_log.json``; checkpoints while it trains.
    model
        From :func:`scfast.models.load`, float32; or ``"geneformer:FOLDER"``. It is left as it is.
    label
        Column of ``adata.obs``. Cells where it is empty are left out.
    where
        Which cells: a condition on ``adata.obs`` as for ``DataFrame.query``, such as ``"drug == 'Nutlin'"``.
    recode
        Class -> values of the column that make it; cells of other values are left out.
        Default: each value is a class.
    group
        Column (donor, batch): no group is in two of training, validation and test. Default: cells are drawn at
        random, the same share of each class.
    test, validation
        ``test`` is a share of the cells, ``validation`` of those that are not for the test. The validation cells
        decide when training ends; nothing is decided on the test cells.
    test_groups
        The groups to test on, instead of a share.
    validate_within
        Take the validation cells from the training groups, the same share of each class, instead of whole groups:
        for few groups. The test shares no group with them all the same.
    freeze
        ``"none"``; N: embeddings and the first N layers stay as they are; ``"all"``: the whole encoder does. Frozen
        parts run without dropout.
    class_weights
        ``"balanced"`` (cells / (classes x cells of the class), over the training cells), None, or class -> weight.
    epochs
        Passes over the training cells, at most.
    patience
        Epochs without a lower validation loss after which training stops. The best epoch's weights are kept.
    batch_tokens
        Tokens per step.
    lr
        Largest learning rate: warm-up over a tenth of the steps, then cosine decay. The default is that of
        Geneformer's authors; small models trained from scratch take 1e-3.
    weight_decay
        Of AdamW.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    seed
        Of the head, the split, the order of cells and dropout.
    resume
        Continue a run that was killed in ``folder``; a finished one is left as it is. False starts again.
    progress
        True prints a line per epoch; a function receives each entry of the log's history instead.

    Returns
    -------
    dict
        The training log: ``settings``, ``cells`` (by part and class), ``groups`` (by part), ``left_out``,
        ``vocabulary`` (what of the data the model's vocabulary lacks), ``history``, ``best``, and ``validation`` and
        ``test``: ``accuracy``, its 95 % ``accuracy_interval``, ``macro_f1``, ``f1``, ``confusion`` (true class x
        predicted), and ``majority_accuracy``, that of always guessing the commonest class.

    Raises
    ------
    KeyError, TypeError, ValueError
        For input that does not fit, and for a folder that holds another run.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, model = scfast.datasets.toy()
    >>> log = scfast.tl.finetune(
    ...     adata,
    ...     tempfile.mkdtemp(),
    ...     model=model,
    ...     label="cell_type",
    ...     group="donor",
    ...     recode={"lymphocyte": ["B cell", "T cell"], "monocyte": ["Monocyte"]},
    ...     freeze=1,
    ...     epochs=2,
    ...     progress=False,
    ... )
    >>> sorted(log["test"])
    ['accuracy', 'accuracy_interval', 'cells', 'confusion', 'f1', 'macro_f1', 'majority_accuracy', 'majority_macro_f1']
    """
    for name, share in (("test", test), ("validation", validation)):
        check_share(name, share)
    numbers = {"epochs": epochs, "patience": patience, "batch_tokens": batch_tokens, "lr": lr}
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    source = _source(model)
    labelled = label_cells(adata.obs, label, where, recode)
    cells, labelled, vocabulary = _tokenise(source, get_counts(adata, counts_layer), labelled)
    groups = None if group is None else group_of_cells(adata.obs, group, labelled.rows)
    parts = choose_parts(
        labelled,
        groups,
        test=test,
        test_groups=test_groups,
        validation=validation,
        within=validate_within,
        draws=rng(seed, SPLIT),
    )
    train = parts == TRAIN
    settings = training.Settings(
        classes=labelled.classes,
        class_weights=_class_weights(class_weights, labelled.codes[train], labelled.classes),
        freeze=freeze,
        steps=Epochs(cells.lengths[train], batch_tokens, seed).steps(epochs),
        batch_tokens=batch_tokens,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience,
        seed=seed,
    )
    head = int(rng(seed, HEAD).integers(2**62))
    named = (
        None
        if recode is None
        else {name: [str(value) for value in values] for name, values in recode.items()}
    )
    return training.finetune(
        new_classifier(source.encoder, source.config, labelled.classes, head),
        LabelledCells(cells, labelled.codes, parts, adata.obs_names[labelled.rows].to_numpy()),
        source.dictionaries,
        Path(folder),
        settings,
        notes={
            "model": source.name,
            "label": label,
            "where": where,
            "recode": named,
            "cells": cells_by_part(labelled, parts),
            "groups": None if groups is None else groups_by_part(groups, parts),
            "left_out": labelled.left_out,
            "vocabulary": vocabulary,
        },
        resume=resume,
        progress=print_progress if progress is True else progress or None,
    )


def print_progress(entry: dict[str, float]) -> None:
    """One line of the log."""
    print(progress_line(entry), flush=True)


def progress_line(entry: dict[str, float]) -> str:
    """The entry as text.

    Examples
    --------
    >>> entry = {"epoch": 2, "train_loss": 0.41, "validation_loss": 0.52, "seconds": 4.2}
    >>> progress_line({**entry, "validation_accuracy": 0.8, "validation_macro_f1": 0.79})
    'epoch   2   loss 0.4100   validation loss 0.5200   accuracy 0.800   macro-F1 0.790       4 s'
    """
    return (
        f"epoch {entry['epoch']:>3.0f}   loss {entry['train_loss']:.4f}   validation loss"
        f" {entry['validation_loss']:.4f}   accuracy {entry['validation_accuracy']:.3f}   macro-F1"
        f" {entry['validation_macro_f1']:.3f}   {entry['seconds']:>5.0f} s"
    )


def _source(model: AttentionSource | str) -> GeneformerSource:
    source = get_source(model, "cpu")
    if not isinstance(source, GeneformerSource):
        raise TypeError(f"{source.name} is a {type(source).__name__}; a Geneformer can be fine-tuned")
    if source.dtype != torch.float32:
        raise TypeError(f"{source.name} is in {source.dtype}; load it in float32 to train it")
    return source


def _tokenise(
    source: GeneformerSource, counts: Counts, labelled: Labelled
) -> tuple[TokenisedCells, Labelled, dict[str, float]]:
    """Tokens of the labelled cells that have any, and what the vocabulary lacks of the data."""
    ids, lengths, genes, lost, cut = [], [], [], [], []
    for _, tokens in token_blocks(source, counts, labelled.rows):
        ids.append(tokens.ids.numpy())
        lengths.append(np.array(tokens.lengths, dtype=np.int64))
        cell = tokens.packing.cell_of_query()
        genes.append(torch.bincount(cell[tokens.kind == TokenKind.GENE], minlength=tokens.n_cells).numpy())
        lost.append(tokens.lost_vocabulary.numpy())
        cut.append(tokens.lost_truncation.numpy())
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    kept = np.concatenate(genes) > 0
    if not kept.all():
        warnings.warn(
            f"{int(np.sum(~kept))} of {kept.size} cells express no gene of {source.name}'s vocabulary; they are left"
            " out",
            UserWarning,
            stacklevel=3,
        )
    labelled = labelled.keep(kept, "no gene of the vocabulary")
    require_classes(labelled.codes, labelled.classes, "cell with genes of the vocabulary")
    vocabulary = {
        "data_genes": len(counts.var),
        "data_genes_known": int(np.sum(source.match(counts.var).token_ids >= 0)),
        "mean_genes_per_cell": float(np.concatenate(genes)[kept].mean()),
        "mean_lost_to_vocabulary": float(np.concatenate(lost)[kept].mean()),
        "mean_lost_to_truncation": float(np.concatenate(cut)[kept].mean()),
    }
    cells = TokenisedCells(np.concatenate(ids), offsets).select(np.flatnonzero(kept))
    return cells, labelled, vocabulary


def _class_weights(
    given: str | Mapping[str, float] | None, codes: np.ndarray, classes: tuple[str, ...]
) -> tuple[float, ...]:
    if given is None:
        return (1.0,) * len(classes)
    if given == "balanced":
        return training.balanced_weights(codes, len(classes))
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weights={given!r}: use 'balanced', None, or class -> weight")
    if set(given) != set(classes):
        raise ValueError(f"class_weights name {sorted(given)}; the classes are {list(classes)}")
    wrong = {name: weight for name, weight in given.items() if not 0 < weight < np.inf}
    if wrong:
        raise ValueError(f"class_weights must be positive and finite; got {wrong}")
    return tuple(float(given[name]) for name in classes)
