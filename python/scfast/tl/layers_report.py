"""Which layers of a model could go: what each adds, by every measure that was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.tl._batches import given
from scfast.tl._inputs import check_options, commit

if TYPE_CHECKING:
    from anndata import AnnData


def layers_report(
    adata: AnnData,
    *,
    similarity: str = "similarity",
    probe: str | None = "probe",
    shift: str | None = None,
    readout: str | None = None,
    group: str | None = None,
    key_added: str = "layers_report",
    copy: bool = False,
) -> AnnData | None:
    """One table of what each layer of a model adds: similarity, blocks, gain of probes, shift of attention.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity`, and :func:`scfast.tl.probe` and :func:`scfast.tl.attention_shift` as far as
        they are named.
    similarity, probe, shift
        Names of those results, of one model; ``probe=None`` and ``shift=None`` leave them out.
    readout
        Whose probes. Default: the readout of the similarities.
    group
        Group of the similarities and of the shift. Default: the only one.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]["table"]``: DataFrame, one row per ``layer`` from 1: ``block``, ``change`` (1 - cosine of the
        readout vector before and after the layer), ``to_last`` (its cosine to the last layer's); for each label
        ``f1_LABEL`` after the layer, ``gain_LABEL`` over the state before it and ``gain_se_LABEL`` (of two independent
        errors); ``shift`` (1 - mean cosine over the heads of the two models' maps); and ``candidate``: the layer
        continues the block of the one before, and no label's F1 gains more than its standard error. Whether a model
        does as well without the candidates is to be tried; the table says where to begin.

        ``uns[key_added]["labels"]``, with probes: DataFrame, one row per label: ``best``, the layer of the highest F1,
        ``f1_best`` and its standard error ``f1_se``; ``stops``, the first layer whose F1 is within that error of it
        (the one-standard-error rule of Breiman et al. 1984), after which no layer gains, and ``f1_stops``. 0: the
        embeddings.

        ``uns[key_added]["params"]``: the arguments.

    Raises
    ------
    KeyError
        When results, groups or readouts are not there.
    ValueError
        When the results are of different models, or of several groups and none is named.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model)
    >>> scfast.tl.probe(adata, model, "cell_type")
    >>> scfast.tl.layers_report(adata)
    >>> adata.uns["layers_report"]["table"].columns.tolist()
    ['layer', 'block', 'change', 'to_last', 'f1_cell_type', 'gain_cell_type', 'gain_se_cell_type', 'candidate']
    """
    check_options(key_added)
    alike = _results(adata, similarity, "map", "similarity")
    name = _group(alike["groups"].index, group, similarity)
    table = alike["table"][(alike["table"]["group"].astype(str) == name).to_numpy()]
    table = table.set_index("layer")[["block", "change", "to_last"]]
    candidate = table["block"].diff() == 0
    read = alike["params"]["readout"] if readout is None else readout
    stops: list[tuple[str, int, float, float, int, float]] = []
    if probe is not None:
        probes = _results(adata, probe, "transfer", "probe")
        _check_model(alike, probes, similarity, probe)
        for label, f1, error in _curves(probes["table"], read, probe):
            stops.append((label, *_where_gain_stops(f1, error)))
            f1, error = f1.reindex(table.index), error.reindex(table.index)
            gain, gain_se = f1.diff(), np.sqrt(error**2 + error.shift() ** 2)
            table = table.assign(**{f"f1_{label}": f1, f"gain_{label}": gain, f"gain_se_{label}": gain_se})
            candidate &= gain <= gain_se.fillna(0.0)
    if shift is not None:
        shifts = _results(adata, shift, "cosine", "attention_shift")["cosine"]
        own = _group(list(dict.fromkeys(shifts["group"].astype(str))), group, shift)
        cosine = shifts[(shifts["group"].astype(str) == own).to_numpy()].groupby("layer")["mean"].mean()
        if len(cosine) != len(table) - 1:
            raise ValueError(
                f"{shift!r} is of a model of {len(cosine)} layers and {similarity!r} of one of {len(table) - 1}:"
                " compare results of one model"
            )
        table["shift"] = (1.0 - cosine).rename(lambda layer: layer + 1).reindex(table.index)
    table["candidate"] = candidate
    uns: dict[str, Any] = {
        "table": table.iloc[1:].reset_index(),
        "params": {
            "similarity": similarity,
            "readout": read,
            "group": name,
            **given(probe=probe, shift=shift),
        },
    }
    if stops:
        columns = ["label", "best", "f1_best", "f1_se", "stops", "f1_stops"]
        uns["labels"] = pd.DataFrame(stops, columns=columns).set_index("label")
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _results(adata: AnnData, key: str, part: str, tool: str) -> dict[str, Any]:
    if part not in adata.uns.get(key, {}):
        raise KeyError(
            f"adata.uns has no results of scfast.tl.{tool} named {key!r}: run it with key_added={key!r} first"
        )
    return adata.uns[key]


def _group(names: Any, group: str | None, key: str) -> str:
    """The group that is named, or the only one."""
    known = [str(name) for name in names]
    if group is None and len(known) > 1:
        raise ValueError(f"{key!r} has the groups {known}: name one with group=")
    if group is not None and group not in known:
        raise KeyError(f"group={group!r} is not in {key!r}, which has {known}")
    return known[0] if group is None else group


def _check_model(a: dict[str, Any], b: dict[str, Any], *keys: str) -> None:
    """Refuse results of two models."""
    models = [(str(x["params"]["model"]), int(x["params"]["n_layers"])) for x in (a, b)]
    if models[0] != models[1]:
        raise ValueError(
            f"{keys[0]!r} is of {models[0][0]} ({models[0][1]} layers) and {keys[1]!r} of {models[1][0]}"
            f" ({models[1][1]} layers): compare results of one model"
        )


def _curves(table: pd.DataFrame, readout: str, key: str) -> list[tuple[str, pd.Series, pd.Series]]:
    """Label, macro-F1 by layer and its standard error, of one readout."""
    mine = table[(table["readout"].astype(str) == readout).to_numpy()]
    if not len(mine):
        raise KeyError(
            f"readout={readout!r} was not probed in {key!r}, which has {sorted(set(table['readout']))}"
        )
    parts = mine.set_index("layer").groupby("label", observed=True, sort=False)
    return [(str(label), part["f1"], part["f1_se"]) for label, part in parts]


def _where_gain_stops(f1: pd.Series, error: pd.Series) -> tuple[int, float, float, int, float]:
    """The best layer, its F1 and error, the first layer whose F1 is within that error of it, and its F1; -1: none.

    Examples
    --------
    >>> f1 = pd.Series([0.5, 0.81, 0.83, 0.82])
    >>> _where_gain_stops(f1, pd.Series([0.1, 0.02, 0.03, 0.02]))
    (2, 0.83, 0.03, 1, 0.81)
    """
    if f1.isna().all():
        return -1, float("nan"), float("nan"), -1, float("nan")
    best = f1.idxmax()
    allowed = 0.0 if np.isnan(error[best]) else float(error[best])
    stop = f1.index[(f1 >= f1[best] - allowed).to_numpy()][0]
    return int(best), float(f1[best]), allowed, int(stop), float(f1[stop])
