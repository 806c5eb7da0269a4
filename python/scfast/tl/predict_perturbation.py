"""Expression of cells under perturbations, as a trained BioFormers predicts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from safetensors.torch import load_file

from scfast import models
from scfast.models.bioformers import BioformersSource
from scfast.models.bioformers_conditions import names_of
from scfast.run.device import default_device, resolve_device
from scfast.tl._inputs import get_raw_counts
from scfast.tl._perturbations import parts_of_name
from scfast.tl.train_bioformers import _tokens
from scfast.train.perturbation import predict

if TYPE_CHECKING:
    from anndata import AnnData


def predict_perturbation(
    adata: AnnData,
    folder: str | Path,
    perturbations: str | Sequence[str],
    *,
    counts_layer: str | None = None,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Mean expression of unperturbed cells, had they been perturbed.

    Parameters
    ----------
    adata
        Raw counts of unperturbed cells.
    folder
        Of :func:`train_perturbation`.
    perturbations
        Names, combinations joined by the separator the model was trained with; its control for no perturbation.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Default: the GPU where there is one.

    Returns
    -------
    pandas.DataFrame
        float64 [input genes, perturbations]: log1p of counts, cells scaled to the mean total of those trained on; the
        mean over the cells of ``adata``.

    Raises
    ------
    FileNotFoundError
        When the folder holds no model of perturbations.
    ValueError
        When a perturbation was never seen in training and cannot be told by its gene: the gene is not among the inputs,
        or no perturbation was held out that would have taught the model to read marks alone.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.obs["gene"] = ["control", "STAT1", "ISG15", "STAT1+ISG15"] * 15
    >>> folder = tempfile.mkdtemp()
    >>> log = scfast.tl.train_perturbation(adata, folder, perturbation="gene", genes="all", epochs=1, progress=False)
    >>> control = adata[adata.obs["gene"] == "control"]
    >>> scfast.tl.predict_perturbation(control, folder, "STAT1+ISG15").shape
    (40, 1)
    """
    folder = Path(folder)
    if not (folder / "perturbation.json").exists():
        raise FileNotFoundError(
            f"{folder} has no perturbation.json: it is not the folder of a finished scfast.tl.train_perturbation"
        )
    notes = json.loads((folder / "perturbation.json").read_text())
    where = default_device() if device is None else resolve_device(device)
    source = models.load("bioformers", folder).to(where)
    assert isinstance(source, BioformersSource)
    levels = load_file(folder / "levels.safetensors")["levels"].numpy()
    known = {name: row for row, name in enumerate(source.inputs.conditions, start=1)}
    ids = source.inputs.tables.tokens
    asked = {
        name: parts_of_name(name, notes["control"], notes["separator"]) for name in names_of(perturbations)
    }
    for name, parts in asked.items():
        if strange := [part for part in parts if part not in known]:
            _refuse_unseen(name, strange[0], ids, notes["unseen"], list(known))
    cells = _tokens(source, get_raw_counts(adata, counts_layer))
    columns = {
        name: predict(
            source, cells, [known[part] for part in parts if part in known],
            [ids[part] for part in parts if part in ids], levels,
        )
        for name, parts in asked.items()
    }  # fmt: skip
    return pd.DataFrame(columns, index=pd.Index(source.genes, name="gene"))


def _refuse_unseen(name: str, part: str, ids: dict[str, int], unseen: bool, known: list[str]) -> None:
    """Raise unless a perturbation that was never seen can be told by its marked gene."""
    if part in ids and unseen:
        return
    why = (
        "the model has not learned to tell perturbations by their genes alone: train with held_out='perturbations'"
        if part in ids
        else f"its gene is not among the {len(ids)} inputs; those seen are {', '.join(known[:5])}, ..."
    )
    raise ValueError(f"{name!r}: the perturbation {part!r} was never seen in training, and {why}")
