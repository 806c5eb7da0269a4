"""What probes found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scfast.tl._labels import Labelled
from scfast.tl._probes import Design, Probes, Tested, macro_f1
from scfast.tl._read_places import Place
from scfast.tl._tables import categorical
from scfast.train.scores import f1_scores


def probe_tables(
    design: Design, tested: dict[tuple[int, int], Tested], layers: Sequence[int], places: Sequence[Place]
) -> dict[str, Any]:
    """The tables of what was tested, without the confirming regression."""
    rows, classes, transfer, tokens = [], [], [], []
    for label, (name, names) in enumerate(design.classes.items()):
        for k, layer in enumerate(layers):
            f1 = {}
            for p, place in enumerate(places):
                test = tested[label, k * len(places) + p]
                own = test.confusion[p]
                at = {"label": name, "layer": layer, "readout": place.name}
                f1[place] = macro_f1(own)
                known = test.folds[np.isfinite(test.folds)]
                rows.append(
                    {
                        **at,
                        "f1": f1[place],
                        "f1_se": known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan,
                        "accuracy": np.trace(own) / own.sum() if own.sum() else np.nan,
                        "control": macro_f1(test.control),
                        "chance": 1 / len(names),
                        "logistic": np.nan,
                        "train": test.cells // design.n_folds,
                        "test": int(own.sum()),
                        "shrinkage": test.shrinkage,
                    }
                )
                classes += [{**at, "class": c, "f1": x} for c, x in zip(names, f1_scores(own), strict=True)]
                transfer += [
                    {
                        "label": name, "layer": layer, "trained_on": place.name, "tested_on": other.name,
                        "f1": macro_f1(confusion),
                    }
                    for other, confusion in zip(places, test.confusion, strict=True)
                ]  # fmt: skip
            single = [value for place, value in f1.items() if place.single]
            if single:
                pooled = {place.name: value for place, value in f1.items() if not place.single}
                mean = float(np.nanmean(single)) if np.isfinite(single).any() else np.nan
                tokens.append({"label": name, "layer": layer, "tokens": mean, "n": len(single), **pooled})
    found = {
        "table": categorical(pd.DataFrame(rows), "label", "readout"),
        "classes": categorical(pd.DataFrame(classes), "label", "readout", "class"),
        "transfer": categorical(pd.DataFrame(transfer), "label", "trained_on", "tested_on"),
    }
    return found | ({"tokens": categorical(pd.DataFrame(tokens), "label")} if tokens else {})


def fill_logistic(
    table: pd.DataFrame, probes: Probes, confirm: str | None, n_layers: int, n_places: int
) -> None:
    """Fill in the macro-F1 of logistic regression; rows are in the order of label, layer, readout."""
    f1 = table["f1"].to_numpy().reshape(-1, n_layers, n_places)
    for label, readout in np.ndindex(f1.shape[0], n_places):
        scores = np.nan_to_num(f1[label, :, readout], nan=-1.0)
        layers = {"best": [int(scores.argmax())], "all": range(n_layers)}.get(confirm or "", [])
        for k in layers:
            row = (label * n_layers + k) * n_places + readout
            table.loc[row, "logistic"] = probes.confirm(k * n_places + readout, label)


def label_table(labelled: dict[str, Labelled], design: Design) -> pd.DataFrame:
    cells = (design.codes >= 0).sum(1)
    return pd.DataFrame(
        {
            "classes": [len(found.classes) for found in labelled.values()],
            "cells": cells,
            "missing": design.codes.shape[1] - cells,
        },
        index=pd.Index(list(labelled), name="label"),
    )
