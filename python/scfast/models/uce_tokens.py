"""Cell sentences of UCE: genes drawn by their counts, chromosome by chromosome, and the pads of a published batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from scfast.models.base import TokenKind, Tokens
from scfast.packing import Packing

#: Rows of the token table that stand for no gene (row 1, an opening of chromosomes, is never used).
PAD, CLOSE, CLS = 0, 2, 3


@dataclass(frozen=True)
class SentenceRules:
    """How a cell becomes a sentence.

    Attributes
    ----------
    sample_size
        Genes that are drawn for a cell, with replacement.
    chromosome_offset
        Row of the token table that stands for chromosome 0.
    max_tokens
        Longest sentence.
    """

    sample_size: int = 1024
    chromosome_offset: int = 143574
    max_tokens: int = 1536


class Genes(NamedTuple):
    """What the tokens of G genes are made of, int64 [G] each.

    ``rows`` are those of the token table, ``chromosomes`` codes, ``starts`` positions on them.
    """

    rows: np.ndarray
    chromosomes: np.ndarray
    starts: np.ndarray

    def take(self, which: np.ndarray) -> Genes:
        """Some of the genes."""
        return Genes(*(part[which] for part in self))


class Sentence(NamedTuple):
    """Tokens of a cell: rows of the token table, the gene (number among those given; -1: none), and the kind."""

    ids: np.ndarray
    genes: np.ndarray
    kinds: np.ndarray


def weights_of(counts: np.ndarray) -> np.ndarray:
    """Probabilities of the genes of a cell, float32 [G]: log1p of the counts over its sum.

    Rounded as in the authors' code, which normalises twice, the second time by a running sum.

    Parameters
    ----------
    counts
        int64 [G], not all zero.
    """
    logs = torch.from_numpy(counts).log1p()
    weights = (logs / logs.sum()).numpy()
    total = np.add.accumulate(weights)[-1]
    normalised: np.ndarray = weights / total
    return normalised


def draw(
    weights: np.ndarray, chromosomes: np.ndarray, size: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Genes of a cell, and the order of their chromosomes, drawn as the authors' code draws them.

    Parameters
    ----------
    weights
        float [G]: probabilities.
    chromosomes
        int64 [G].
    size
        Genes drawn, with replacement.
    rng
        One ``choice`` and one ``shuffle`` are taken from it. Seeded alike, NumPy's legacy generator gives what the
        authors' code gives, cell after cell.

    Returns
    -------
    genes, order
        int64 [size], and the chromosomes that occur among them.
    """
    genes = rng.choice(len(weights), size=size, replace=True, p=weights)
    order = np.unique(chromosomes[genes])
    rng.shuffle(order)
    return genes, order


def sentence(drawn: np.ndarray, order: np.ndarray, genes: Genes, rules: SentenceRules) -> Sentence:
    """<cls>, then for every chromosome its opening token, its genes by start, and the closing token.

    Genes that start at one place are ordered by their number, a gene drawn several times standing side by side; in the
    authors' code, whose sort is not stable, their order is arbitrary. A sentence is cut at ``rules.max_tokens``.

    Parameters
    ----------
    drawn, order
        From :func:`draw`.
    genes
        All G genes.
    rules
        Offsets and limits.
    """
    place = np.searchsorted(np.sort(order), genes.chromosomes[drawn])
    rank = np.argsort(order)[place]  # of the gene's chromosome in the shuffled order
    drawn = drawn[np.lexsort((drawn, genes.starts[drawn], rank))]
    per_chromosome = np.bincount(rank, minlength=len(order))
    opening = 1 + np.cumsum(per_chromosome + 2) - (per_chromosome + 2)
    closing = opening + per_chromosome + 1
    length = 1 + len(drawn) + 2 * len(order)

    ids = np.empty(length, dtype=np.int64)
    kinds = np.full(length, TokenKind.GENE, dtype=np.uint8)
    ids[0], kinds[0] = CLS, TokenKind.SPECIAL
    ids[opening], ids[closing] = order + rules.chromosome_offset, CLOSE
    kinds[opening] = kinds[closing] = TokenKind.CHROMOSOME
    is_gene = kinds == TokenKind.GENE
    ids[is_gene] = genes.rows[drawn]
    numbers = np.full(length, -1, dtype=np.int64)
    numbers[is_gene] = drawn
    return Sentence(*(part[: rules.max_tokens] for part in (ids, numbers, kinds)))


def cell_sentence(counts: np.ndarray, genes: Genes, rules: SentenceRules, seed: int) -> Sentence:
    """The sentence of one cell; <cls> alone where it has no count.

    What is drawn depends on the seed and on the cell's own counts, not on its place or on the cells beside it.

    Parameters
    ----------
    counts
        int64 [G].
    genes
        Those that the counts belong to.
    rules, seed
        See there.
    """
    if not counts.any():
        return Sentence(np.array([CLS]), np.array([-1]), np.array([int(TokenKind.SPECIAL)], dtype=np.uint8))
    drawn, order = draw(
        weights_of(counts), genes.chromosomes, rules.sample_size, _generator(counts, genes, seed)
    )
    return sentence(drawn, order, genes, rules)


def _generator(counts: np.ndarray, genes: Genes, seed: int) -> np.random.RandomState:
    expressed = np.flatnonzero(counts)
    digest = hashlib.blake2b(str(seed).encode(), digest_size=32)
    for part in (genes.rows[expressed], counts[expressed]):
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return np.random.RandomState(np.frombuffer(digest.digest(), dtype="<u4"))


def with_pads(tokens: Tokens, lengths: Sequence[int]) -> Tokens:
    """The same cells with pads behind their tokens, which take part in the attention of a published batch.

    Parameters
    ----------
    tokens
        Of cells without pads.
    lengths
        Tokens of each cell then.

    Examples
    --------
    >>> import torch
    >>> from scfast import Packing
    >>> cells = Tokens(
    ...     ids=torch.tensor([3, 9, 3]),
    ...     positions=torch.tensor([0, 1, 0]),
    ...     packing=Packing.from_lengths([2, 1]),
    ...     gene_index=torch.tensor([-1, 5, -1]),
    ...     kind=torch.tensor([1, 0, 1], dtype=torch.uint8),
    ...     lost_vocabulary=torch.tensor([0, 0]),
    ...     lost_truncation=torch.tensor([0, 0]),
    ... )
    >>> padded = with_pads(cells, [2, 2])
    >>> padded.ids.tolist(), padded.kind.tolist()
    ([3, 9, 3, 0], [1, 0, 1, 3])
    """
    new, old = np.asarray(lengths, dtype=np.int64), np.asarray(tokens.lengths, dtype=np.int64)
    starts = np.cumsum(new) - new
    places = torch.from_numpy(np.repeat(starts - (np.cumsum(old) - old), old) + np.arange(int(old.sum())))
    packing = Packing.from_lengths(new.tolist())

    def spread(values: torch.Tensor, pad: int) -> torch.Tensor:
        return values.new_full((packing.total_q,), pad).index_copy_(0, places, values)

    return Tokens(
        ids=spread(tokens.ids, PAD),
        positions=packing.position_of_query(),
        packing=packing,
        gene_index=spread(tokens.gene_index, -1),
        kind=spread(tokens.kind, int(TokenKind.PAD)),
        lost_vocabulary=tokens.lost_vocabulary,
        lost_truncation=tokens.lost_truncation,
    )


def batch_lengths(lengths: Sequence[int], batch_size: int) -> list[int]:
    """The length of the longest cell of each one's batch, so many cells in a row being one.

    Examples
    --------
    >>> batch_lengths([3, 5, 2, 4, 1], 2)
    [5, 5, 4, 4, 1]
    """
    return [
        max(lengths[cell - cell % batch_size : cell - cell % batch_size + batch_size])
        for cell in range(len(lengths))
    ]
