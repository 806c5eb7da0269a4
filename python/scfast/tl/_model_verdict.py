"""What a model's own training says of the networks that are read from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "training_log.json"


def model_verdict(training: Mapping[str, Any] | str | Path) -> str:
    """A sentence: whether the model predicts hidden genes better than a baseline that sees no cell.

    Parameters
    ----------
    training
        The log of :func:`scfast.tl.train_bioformers` or :func:`scfast.tl.pretrain`, or the folder that holds it.

    Raises
    ------
    FileNotFoundError
        When the folder has no log.
    ValueError
        When the log says nothing of held-out cells.

    Examples
    --------
    >>> model_verdict({"history": [{"held_out_loss": 1.5}], "baseline": {"loss": 1.2}})
    'The model does not beat the mean predictor on held-out cells (loss 1.500 against 1.200): do not trust its network.'
    """
    log: Mapping[str, Any]
    if isinstance(training, Mapping):
        log = training
    else:
        path = Path(training) / LOG if Path(training).is_dir() else Path(training)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: training= takes the folder of a model that scfast trained, or its log"
            )
        log = json.loads(path.read_text())
    history = log.get("history") or []
    last = log.get("best") or (history[-1] if history else {})
    baseline = dict(log.get("baseline", {}))
    if "unigram_loss" in log:
        baseline["loss"] = log["unigram_loss"]
    if "held_out_loss" not in last or "loss" not in baseline:
        raise ValueError(
            f"training= says nothing of held-out cells: a log has 'history' with 'held_out_loss', and 'baseline' or"
            f" 'unigram_loss'; got {sorted(log)}"
        )
    loss, least = float(last["held_out_loss"]), float(baseline["loss"])
    figures, beats = f"loss {loss:.3f} against {least:.3f}", loss < least
    if "sensitivity" in baseline and "held_out_sensitivity" in last:
        found, guessed = float(last["held_out_sensitivity"]), float(baseline["sensitivity"])
        figures += f", sensitivity {100 * found:.1f} % against {100 * guessed:.1f} %"
        beats &= found > guessed
    if beats:
        return f"The model beats the mean predictor on held-out cells ({figures})."
    return (
        f"The model does not beat the mean predictor on held-out cells ({figures}): do not trust its network."
    )
