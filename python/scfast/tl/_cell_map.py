"""How alike the tokens of one cell are: a map that was asked for, of tokens x tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scfast import ops
from scfast.attention.recorder import Recorder
from scfast.models.base import AttentionSource, TokenKind
from scfast.observables import HiddenStates
from scfast.run import Counts, granted_memory
from scfast.run.memory import MB, fit
from scfast.tl._batches import Conditions

if TYPE_CHECKING:
    from anndata import AnnData

#: The share of the granted memory that the maps of a cell may take.
SHARE = 0.5


def choose_cell(adata: AnnData, cell: str, lengths: np.ndarray, n_layers: int, granted: int) -> int:
    """Row of the cell of that name.

    Parameters
    ----------
    adata, cell
        Its name is looked up in ``adata.obs_names``.
    lengths
        int64 [cells]: tokens of every cell.
    n_layers, granted
        Maps that are kept of it, and the memory of which they may take half.

    Raises
    ------
    KeyError
        When there is no such cell.
    ValueError
        When it has no pair of tokens, or the maps take more.
    """
    places = np.flatnonzero(adata.obs_names.astype(str) == cell)
    if len(places) != 1:
        raise KeyError(
            f"cell={cell!r} stands {len(places)} times in adata.obs_names, which holds"
            f" {adata.obs_names[:3].astype(str).tolist()}, ...; name one cell"
        )
    n = int(lengths[places[0]])
    if n < 2:
        raise ValueError(f"cell={cell!r} has {n} tokens, and similarity needs two: name another cell")
    needed = 4 * n_layers * n * n
    if needed > granted * SHARE:
        raise ValueError(
            f"{n_layers} maps of the {n} x {n} tokens of cell={cell!r} take {needed / MB:,.2f} MB and may take half of"
            f" memory={granted / MB:,.2f}MB: name fewer layers=, or pass memory='{-(-2 * needed // MB)}MB' or more"
        )
    return int(places[0])


def cell_results(
    adata: AnnData, source: AttentionSource, counts: Counts, row: int, layers: list[int], how: Conditions
) -> dict[str, Any]:
    """``uns["similarity"]["cell"]`` of :func:`scfast.tl.similarity`.

    Raises
    ------
    ValueError
        When states are nan.
    """
    _, tokens = counts.tokenize(source, np.array([row]))
    name, n = str(adata.obs_names[row]), tokens.n_tokens
    needed = 4 * len(layers) * n * n
    on_cpu = source.device.type == "cpu"
    fitted = fit(
        source, granted_memory(how.memory, source.device), n, reserved=needed if on_cpu else 0, layers_kept=0,
        hidden_kept=len(layers) + 1,
    )  # fmt: skip
    recorder = Recorder([HiddenStates(layers)], backend=how.backend, keep=False)
    with torch.inference_mode():
        fitted.source.forward(tokens, recorder)
    kept = torch.from_numpy(np.flatnonzero(tokens.kind.numpy() != TokenKind.PAD))
    states = recorder.batch["hidden_states"].cpu()[:, kept]  # [L, n, d]
    if not torch.isfinite(states).all():
        bad = [layers[k] for k in torch.nonzero(~torch.isfinite(states).all(2).all(1))[:, 0].tolist()]
        raise ValueError(
            f"states of cell {name!r} are nan or infinite at layers {bad}: the model's weights are damaged"
        )
    gene, kind = tokens.gene_index[kept].numpy(), tokens.kind[kept].numpy()
    kinds = np.array([TokenKind(each).name.lower() for each in kind])
    names = np.where(gene >= 0, adata.var_names.astype(str).to_numpy()[gene], kinds)
    return {
        "name": name,
        "names": names.astype(str),
        "tokens": pd.DataFrame(
            {"token": names.astype(str), "kind": pd.Categorical(kinds), "place": kept.numpy()}
        ),
        "layers": np.array(layers),
        "zeros": (states == 0).all(2).sum(1).numpy(),
        "similarity": np.stack([ops.cosine_matrix(each).numpy() for each in states]),
    }
