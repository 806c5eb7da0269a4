"""What a model's own training says of the networks that are read from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scfast.train.bioformers import SCORES
from scfast.train.expression import LINEAR, LINEAR_MASKED, MODEL_MEAN

LOG = "training_log.json"
#: Scores that the model must win beside a linear baseline: the first alone rewards who never guesses 0, the second who
#: mostly does.
COMPARED = ("sensitivity", "accuracy")


def model_verdict(training: Mapping[str, Any] | str | Path) -> str:
    """Sentences: whether the model predicts hidden genes better than a baseline that sees no cell, and a linear one.

    Parameters
    ----------
    training
        The log of :func:`scfast.tl.train_bioformers` or :func:`scfast.tl.pretrain`, or the folder that holds it. The
        linear baseline is known where :func:`scfast.tl.expression_modelling` has scored the folder.

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
    scores = None
    if isinstance(training, Mapping):
        log = training
    else:
        path = Path(training) / LOG if Path(training).is_dir() else Path(training)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: training= takes the folder of a model that scfast trained, or its log"
            )
        log = json.loads(path.read_text())
        scores = path.with_name(SCORES)
    beside_mean, figures = _beside_the_mean(log)
    sentences = [_sentence(beside_mean, "the mean predictor", figures)]
    if "sensitivity" in log.get("baseline", {}):  # bins of counts are guessed: regression can do that too
        sentences.append(_beside_linear(scores))
    return " ".join(sentences)


def _sentence(beats: bool, baseline: str, figures: str) -> str:
    if beats:
        return f"The model beats {baseline} on held-out cells ({figures})."
    return f"The model does not beat {baseline} on held-out cells ({figures}): do not trust its network."


def _beside_the_mean(log: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the lowest held-out loss is below that of the genes' frequencies, and by what figures."""
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
    return beats, figures


def _beside_linear(file: Path | None) -> str:
    """The model's expected bin beside the better of the regressions, score by score."""
    table = None if file is None or not file.is_file() else pd.read_csv(file, index_col="guess")
    if table is None or LINEAR not in table.index:
        return (
            "It was not compared with the linear baseline: scfast.tl.expression_modelling does that, before the network"
            " is made."
        )
    own, best = table.loc[MODEL_MEAN], table.loc[[LINEAR, LINEAR_MASKED]].max()
    figures = [f"{score} {100 * own[score]:.1f} % against {100 * best[score]:.1f} %" for score in COMPARED]
    beats = all(own[score] > best[score] for score in COMPARED)
    return _sentence(beats, "the linear baseline", ", ".join(figures))
