"""Fine-tuning a BERT to tell classes of cells apart: from labelled tokens to a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from scfast.models.dictionaries import Dictionaries
from scfast.train.classifier import Classifier, Freeze, LabelledCells
from scfast.train.early_stopping import EarlyStopping
from scfast.train.fit import (
    Epochs,
    Progress,
    Schedule,
    adamw,
    claim,
    fingerprint,
    fingerprint_cells,
    fingerprint_weights,
    finish,
    finished_log,
    fit,
    identity,
    remove_run,
)
from scfast.train.scores import classification_scores, confusion_matrix, f1_scores
from scfast.train.split import PARTS, TEST, TRAIN, VALIDATION


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """Everything that decides the result, given the cells and the weights to start from.

    ``class_weights`` multiply the losses of the classes, whose mean is taken over the sum of the weights.
    ``patience`` is the number of epochs without a lower validation loss after which training ends.
    """

    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    freeze: Freeze
    weight_decay: float
    patience: int


def finetune(
    model: torch.nn.Module,
    data: LabelledCells,
    tables: Dictionaries,
    folder: Path,
    settings: Settings,
    *,
    notes: dict[str, Any] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train; write model, dictionaries, ``predictions.csv`` and ``training_log.json`` into ``folder``.

    AdamW with linear warm-up and cosine decay on cells laid end to end without padding. After each epoch the
    validation loss is taken; the weights of the lowest are kept, and scored on the test cells once. Killed runs
    continue as those of :func:`scfast.train.pretrain.pretrain` do.

    Parameters
    ----------
    model
        A ``BertForSequenceClassification`` with scfast attention, see :func:`scfast.models.heads.new_classifier`;
        changed in place.
    data
        Cells of all parts; validation and training may not be empty.
    tables
        The tokeniser's, written beside the model.
    folder
        Where the model goes; created when missing.
    settings
        See :class:`Settings`.
    notes
        Added to the log.
    resume
        Continue the run found in ``folder``; False starts again.
    progress
        Called after each epoch.

    Returns
    -------
    The training log: ``settings``, ``history``, ``best`` (the entry of the history whose weights are kept),
    ``validation`` and ``test`` (:func:`scfast.train.scores.classification_scores`).
    """
    log: dict[str, Any] = identity(
        settings,
        data=fingerprint_cells(data.cells),
        labels=fingerprint(data.labels, data.parts),
        weights=fingerprint_weights(model),
    )
    claim(folder, log)
    if not resume:
        remove_run(folder)
    if (finished := finished_log(folder, log)) is not None:
        return finished
    train = data.rows(TRAIN)
    log |= {**(notes or {}), "history": [], "seconds": 0.0, "finished": False}
    classifier = Classifier(
        model,
        data,
        what=settings.freeze,
        class_weights=settings.class_weights,
        batch_tokens=settings.batch_tokens,
    )
    stopping = EarlyStopping(
        model, folder / "checkpoints" / "best.safetensors", settings.patience, "validation_loss"
    )
    log, _ = fit(
        model,
        adamw((p for p in model.parameters() if p.requires_grad), settings.lr, settings.weight_decay),
        folder,
        settings,
        log,
        epochs=Epochs(data.cells.lengths[train], settings.batch_tokens, settings.seed),
        loss=lambda step, rows: classifier.loss(train[rows]),
        evaluate=lambda: _validation(classifier, len(settings.classes)),
        progress=progress,
        enough=stopping,
    )
    stopping.restore()
    logits = classifier.predict(np.arange(data.labels.size)).numpy()
    _predictions(data, logits, settings.classes).to_csv(folder / "predictions.csv", float_format="%.6g")
    majority = int(np.bincount(data.labels[train]).argmax())
    for part in (VALIDATION, TEST):
        rows = data.rows(part)
        confusion = confusion_matrix(data.labels[rows], logits.argmax(1)[rows], len(settings.classes))
        if rows.size:
            log[PARTS[part]] = classification_scores(confusion, settings.classes, majority)
    tables.write(folder)
    return finish(folder, {**log, "best": stopping.best(log["history"])}, model)


def balanced_weights(labels: np.ndarray, n_classes: int) -> tuple[float, ...]:
    """N / (K n_k) of each class k: every class weighs the same (King & Zeng 2001; scikit-learn's "balanced").

    Examples
    --------
    >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
    (0.6666666666666666, 2.0)
    """
    counts = np.bincount(labels, minlength=n_classes)
    return tuple(float(labels.size / (n_classes * count)) for count in counts)


def _validation(classifier: Classifier, n_classes: int) -> dict[str, float]:
    rows = classifier.data.rows(VALIDATION)
    logits = classifier.predict(rows)
    confusion = confusion_matrix(classifier.data.labels[rows], logits.argmax(1).numpy(), n_classes)
    return {
        "validation_loss": float(classifier.loss_of(logits, rows)),
        "validation_accuracy": float(np.trace(confusion) / confusion.sum()),
        "validation_macro_f1": float(np.nanmean(f1_scores(confusion))),
    }


def _predictions(data: LabelledCells, logits: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    columns = {
        "part": np.array(PARTS)[data.parts],
        "label": np.array(classes)[data.labels],
        "predicted": np.array(classes)[logits.argmax(1)],
        **{f"p_{name}": probabilities[:, code] for code, name in enumerate(classes)},
    }
    return pd.DataFrame(columns, index=pd.Index(data.names, name="cell"))
