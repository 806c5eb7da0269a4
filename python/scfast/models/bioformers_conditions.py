"""External tokens of BioFormers: the conditions of a cell, one or several, and marks on the genes they act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from scfast.models.base import Tokens

#: Conditions of one cell: none, a name, or several names.
OfCell: TypeAlias = str | Sequence[str] | None
#: Row of the external table for a cell that has no condition; conditions follow.
NONE = 0
#: Where a token has fewer external tokens than another; adds nothing.
EMPTY = -1


def names_of(conditions: OfCell) -> tuple[str, ...]:
    """The names, none twice.

    Examples
    --------
    >>> names_of(None), names_of("KLF1"), names_of(["KLF1", "MAP2K6"])
    ((), ('KLF1',), ('KLF1', 'MAP2K6'))
    """
    if conditions is None:
        return ()
    return (conditions,) if isinstance(conditions, str) else tuple(dict.fromkeys(conditions))


def condition_rows(
    conditions: Sequence[OfCell], known: Sequence[str], n_cells: int, model: str
) -> list[list[int]]:
    """Rows of the external table of every cell.

    Parameters
    ----------
    conditions
        Of each cell.
    known
        The model's conditions, in order of their rows.
    n_cells
        How many there must be.
    model
        Its name, for errors.

    Raises
    ------
    ValueError
        When a condition is unknown, or there are more or fewer cells.
    """
    if len(conditions) != n_cells:
        raise ValueError(f"conditions names {len(conditions)} cells; there are {n_cells}")
    row = {name: number for number, name in enumerate(known, start=NONE + 1)}
    cells = [names_of(of_cell) for of_cell in conditions]
    if strange := [name for names in cells for name in names if name not in row]:
        raise ValueError(
            f"condition {strange[0]!r} is unknown to {model}, which knows {', '.join(map(repr, known)) or 'none'}"
        )
    return [[row[name] for name in names] for names in cells]


def external_of(
    tokens: Tokens, rows: Sequence[Sequence[int]], marked: Sequence[Sequence[int]] = (), mark: int = EMPTY
) -> torch.Tensor:
    """External tokens of every token: its cell's conditions, and on marked genes the mark.

    Parameters
    ----------
    tokens
        Of B cells.
    rows
        Rows of the external table of each cell; none: the cell without condition.
    marked
        ``tokens.ids`` of the genes to mark in each cell; one that the cell has no token of is passed over.
        Default: no marks.
    mark
        Row of the mark.

    Returns
    -------
    int64 [T]; or [T, W], :data:`EMPTY` where a token has fewer than W, when some has several.

    Examples
    --------
    >>> from scfast.models.bioformers import create
    >>> import pandas as pd, scipy.sparse
    >>> source = create(["CD3D", "NKG7"])
    >>> tokens = source.tokenize(scipy.sparse.csr_matrix([[3, 1]]), pd.DataFrame(index=["CD3D", "NKG7"]))
    >>> external_of(tokens, [[1, 2]], [[2]], mark=3).tolist()
    [[1, 2, -1], [1, 2, -1], [1, 2, 3]]
    """
    width = max((len(of_cell) for of_cell in rows), default=0)
    table = np.full((len(rows), max(1, width)), EMPTY, dtype=np.int64)
    for cell, of_cell in enumerate(rows):
        table[cell, : max(1, len(of_cell))] = of_cell or NONE
    cell_of = tokens.packing.cell_of_query()
    columns = torch.from_numpy(table).to(tokens.device)[cell_of]  # [T, W]
    if any(len(genes) for genes in marked):
        pairs = np.array([(cell, gene) for cell, genes in enumerate(marked) for gene in genes])
        stride = 1 + max(int(tokens.ids.max()), int(pairs[:, 1].max()))
        wanted = torch.from_numpy(pairs[:, 0] * stride + pairs[:, 1]).to(tokens.device)
        own = torch.isin(cell_of * stride + tokens.ids, wanted)
        columns = torch.cat([columns, torch.where(own, mark, EMPTY)[:, None]], 1)
    return columns[:, 0] if columns.shape[1] == 1 else columns


def marked_ids(targets: Sequence[OfCell], ids: Mapping[str, int], n_cells: int) -> list[list[int]]:
    """``tokens.ids`` of the genes of every cell that are to be marked, of those that the vocabulary holds.

    Raises
    ------
    ValueError
        When there are more or fewer cells.
    """
    if len(targets) != n_cells:
        raise ValueError(f"targets names {len(targets)} cells; there are {n_cells}")
    return [[ids[name] for name in names_of(of_cell) if name in ids] for of_cell in targets]
