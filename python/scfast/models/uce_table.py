"""The token table of UCE: protein embeddings in a mapped file, of which the rows of a batch are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

#: Chromosomes of all published species together, and the seed that their vectors were drawn with.
N_CHROMOSOMES, CHROMOSOME_SEED = 1895, 23
#: Rows of the published table before those of the chromosomes.
CHROMOSOME_OFFSET = 143574
#: Rows of two copies of a table may differ by so much, relative to their largest entry.
SAME = 1e-3


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Vectors of all tokens, float [rows, width] in one or two parts, which stay where they are.

    Attributes
    ----------
    parts
        One after the other; usually views of a mapped file.
    """

    parts: tuple[torch.Tensor, ...]

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return sum(len(part) for part in self.parts)

    @property
    def width(self) -> int:
        """Width of a row."""
        return self.parts[0].shape[1]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """float32 [n, width]: the rows ``ids`` int64 [n], on the CPU."""
        rows = torch.empty(len(ids), self.width)
        start = 0
        for part in self.parts:
            here = ((ids >= start) & (ids < start + len(part))).nonzero()[:, 0]
            rows[here] = part[ids[here] - start].float()
            start += len(part)
        return rows

    def unit_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The same at Euclidean length 1; a row of zeros stays one."""
        return functional.normalize(self.rows(ids), dim=1)


def chromosome_vectors(width: int) -> torch.Tensor:
    """float32 [1895, width]: standard normal, as the authors draw them behind a table that lacks them."""
    generator = torch.Generator().manual_seed(CHROMOSOME_SEED)
    return torch.normal(0.0, 1.0, (N_CHROMOSOMES, width), generator=generator)


def token_table(
    stored: torch.Tensor | None, own: torch.Tensor | None, width: int, offset: int | None, origin: str
) -> TokenTable:
    """The table that the authors' code ends up with.

    A stored table without chromosomes gets theirs drawn; a table that the weights bring wins over one of the same size,
    because drawn vectors may differ between versions of torch.

    Parameters
    ----------
    stored
        From all_tokens.torch, if there.
    own
        ``pe_embedding.weight`` of the weights, if there.
    width
        That the model's first layer takes.
    offset
        Row of chromosome 0, where it is not the published one; tables of other sizes are then taken.
    origin
        What errors call the model.

    Raises
    ------
    ValueError
        When a table has another width or number of rows, or two tables differ.
    """
    first = CHROMOSOME_OFFSET if offset is None else offset
    for name, table in (("all_tokens.torch", stored), ("pe_embedding.weight", own)):
        if table is None:
            continue
        if table.dim() != 2 or table.shape[1] != width or not table.dtype.is_floating_point:
            raise ValueError(
                f"{name} of {origin} is {table.dtype} {list(table.shape)}; the model takes rows of {width} numbers:"
                " they belong to different models"
            )
        sizes = (first, first + N_CHROMOSOMES) if name == "all_tokens.torch" else (first + N_CHROMOSOMES,)
        if (offset is None and len(table) not in sizes) or len(table) < first:
            raise ValueError(
                f"{name} of {origin} has {len(table)} rows, expected {' or '.join(map(str, sizes))}; the table of other"
                " species needs chromosome_offset=, the row of its first chromosome"
            )
    if stored is not None and own is not None and len(stored) in (first, len(own)):
        _check_same(stored, own, first, origin)
        return TokenTable((own,))
    table = own if stored is None else stored
    if table is None:
        raise FileNotFoundError(f"{origin} has no all_tokens.torch, and its weights hold no token table")
    return TokenTable((table, chromosome_vectors(width)) if len(table) == first else (table,))


def check_rows(table: TokenTable, expected: Mapping[int, torch.Tensor], what: str) -> None:
    """Refuse a table whose rows are not those of some genes.

    Parameters
    ----------
    table
        The token table.
    expected
        Row -> vector of a gene.
    what
        Where the vectors are from, for the message.
    """
    beyond = [row for row in expected if row >= table.n_rows]
    if beyond:
        raise ValueError(
            f"{what} asks for row {max(beyond)} of the token table, which has {table.n_rows} rows: they belong to"
            " different models"
        )
    for row, vector in expected.items():
        if vector.shape != (table.width,) or not _same(table.rows(torch.tensor([row]))[0], vector):
            raise ValueError(
                f"row {row} of the token table is not the vector that {what} has for that gene: the file is that of"
                " another species or release, or species_offsets.pkl is"
            )


def _check_same(stored: torch.Tensor, own: torch.Tensor, n_rows: int, origin: str) -> None:
    for row in {0, 2, 3, n_rows // 2, n_rows - 1}:
        if row < n_rows and not _same(stored[row], own[row]):
            raise ValueError(
                f"row {row} of all_tokens.torch is not that of the token table in the weights of {origin}: they belong"
                " to different models"
            )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= SAME * b.abs().max())
