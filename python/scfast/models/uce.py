"""UCE with 4 and 33 layers, as published: sampled cell sentences, protein embeddings, packed layers."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast.models import checkpoint, uce_files, uce_tokens
from scfast.models.base import TokenBytes, TokenKind, Tokens
from scfast.models.cards import Card, Shape
from scfast.models.counts import as_csr, check_counts
from scfast.models.dictionaries import Table, read_names
from scfast.models.gene_ids import Matcher
from scfast.models.packed import PackedSource
from scfast.models.uce_encoder import TABLE, UceEncoder, UceShape
from scfast.models.uce_files import SpeciesGenes
from scfast.models.uce_genes import SymbolMatch, match_symbols
from scfast.models.uce_table import CHROMOSOME_OFFSET, check_rows, token_table
from scfast.models.uce_tokens import SentenceRules
from scfast.packing import Packing

if TYPE_CHECKING:
    from scfast.attention import Recorder

_LOG = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MASKING = ("strict", "published")
#: Cells of a batch in the authors' script.
BATCH_SIZE = 25

CARD = Card(
    title="UCE",
    files=(
        (" or ".join(uce_files.WEIGHTS), "weights; where both lie there, name the file: uce:FOLDER/FILE"),
        (uce_files.TOKENS, "token table; only the rows that are used are read"),
        (uce_files.CHROMOSOMES, "chromosome and start of the genes of every species"),
        (uce_files.OFFSETS, "where each species begins in the token table"),
        (f"{uce_files.EMBEDDINGS}/*.pt", "that of the species: the order of its genes in the token table"),
    ),
    shapes=(Shape("4 layers", 4, 20, 64, 1536), Shape("33 layers", 33, 20, 64, 1536)),
    notes=(
        "Cells are sampled: 1,024 genes with replacement, seeded. species= says whose genes they are.",
        "masking='strict' (default) hides pads; 'published' lets them take part, as the authors' code does.",
    ),
)


def load(
    folder: str | Path,
    *,
    species: str = "human",
    masking: Literal["strict", "published"] = "strict",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    weights: str | Path | None = None,
    protein_embeddings: str | Path | None = None,
    gene_names: Table | None = None,
    sample_size: int = 1024,
    chromosome_offset: int | None = None,
    n_heads: int = 20,
    dtype: torch.dtype = torch.float32,
) -> UceSource:
    """Load a UCE: weights, token table, and the files that say where genes lie.

    Parameters
    ----------
    folder
        Holds the published files, itself or in ``model_files``; or the file of the weights, the others beside it.
    species
        Whose genes the data have, such as "human" or "mouse".
    masking
        ``"strict"``: a cell's results depend on the cell alone. ``"published"``: as in the authors' code, cells are
        padded to the longest of their batch, and pads take part in the attention, their scores even raised by 1, so
        that results depend on the other cells of the batch.
    seed
        Of the genes that are drawn. What is drawn for a cell depends on it and on the cell's counts alone.
    batch_size
        Of ``masking="published"``: so many cells in a row of the data are a batch; 25 in the authors' script.
    weights
        File of the weights, or its name in ``folder``. Default: the published one that is there.
    protein_embeddings
        File of the species' protein embeddings. Default: the published one.
    gene_names
        Symbol -> Ensembl id, a path (pickle, JSON, CSV, TSV) or a mapping: genes are then found by Ensembl id first.
    sample_size
        Genes drawn for a cell.
    chromosome_offset
        Row of the token table that stands for the first chromosome, where it is not the published one.
    n_heads
        Heads of a layer, of which the files say nothing.
    dtype
        Of weights and activations: torch.float32, bfloat16 or float16. float32 weights stay in their file and are
        mapped into memory, as the token table always is.

    Raises
    ------
    FileNotFoundError
        When a file is missing.
    ValueError
        When a file is damaged, or another one than it should be; when weights are missing, extra or of another shape;
        when the species is unknown.
    TypeError
        When ``dtype`` is none of the three.

    Examples
    --------
    With the published files in a folder::

        import scfast
        source = scfast.models.load("uce", "UCE/33l_8ep_1024t_1280.torch", species="mouse")
        scfast.tl.rollout(adata, source, groupby="cell_type")
    """
    if masking not in MASKING:
        raise ValueError(f"masking={masking!r} is unknown; use 'strict' or 'published'")
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype} cannot be run; use one of {', '.join(map(str, DTYPES))}")
    for name, number in (("batch_size", batch_size), ("sample_size", sample_size), ("n_heads", n_heads)):
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}")
    files = uce_files.find(Path(folder), species, weights, protein_embeddings)
    genes, probes = uce_files.read_genes(files, species)
    tensors = checkpoint.read_state_dict(files.weights, mmap=True)
    shape = UceShape.of(tensors, n_heads, str(files.weights))
    stored = None if files.tokens is None else checkpoint.read_torch(files.tokens, mmap=True)
    if stored is not None and not isinstance(stored, torch.Tensor):
        raise ValueError(
            f"{files.tokens} must hold one tensor, the token table; it holds a {type(stored).__name__}"
        )
    table = token_table(stored, tensors.get(TABLE), shape.token_dim, chromosome_offset, str(files.weights))
    check_rows(table, probes, files.embeddings.name)
    first = CHROMOSOME_OFFSET if chromosome_offset is None else chromosome_offset
    unknown = genes.genes.chromosomes.max() + first - table.n_rows + 1
    if unknown > 0:
        raise ValueError(
            f"{files.chromosomes} counts {species} chromosomes up to number {genes.genes.chromosomes.max()}, but the"
            f" token table has vectors for {table.n_rows - first}: lines with chromosomes that the model does not know"
            " were added or changed; use the published file as it is"
        )
    if sample_size + 3 > shape.positions:
        raise ValueError(
            f"sample_size={sample_size} does not fit the model's {shape.positions} positions beside <cls> and the two"
            " tokens of a chromosome"
        )
    if genes.without_place:
        _LOG.warning(
            "%s has no chromosome for %d genes of %s: they are lost",
            files.chromosomes, genes.without_place, files.embeddings.name,
        )  # fmt: skip
    return UceSource(
        f"uce:{files.weights.stem}",
        UceEncoder.from_checkpoint(shape, tensors, table, dtype, str(files.weights)),
        species,
        genes,
        SentenceRules(sample_size, first, shape.positions),
        masking=masking,
        seed=seed,
        batch_size=batch_size,
        gene_names={} if gene_names is None else read_names(gene_names),
    )


class UceSource(PackedSource):
    """A UCE, ready to tokenise counts and to run under a recorder. Made by :func:`load`.

    Attributes
    ----------
    encoder
        The weights.
    species, species_genes
        Whose genes it reads, and which they are.
    rules
        How a cell becomes a sentence.
    masking, seed, batch_size
        See :func:`load`.
    block_tokens
        Tokens of a block where it runs :meth:`in_blocks`, else None.
    """

    def __init__(
        self,
        name: str,
        encoder: UceEncoder,
        species: str,
        genes: SpeciesGenes,
        rules: SentenceRules,
        *,
        masking: str,
        seed: int,
        batch_size: int,
        gene_names: dict[str, str],
        block_tokens: int | None = None,
    ) -> None:
        shape = encoder.shape
        self.name = name
        self.n_layers, self.n_heads = shape.n_layers, shape.n_heads
        self.hidden_size, self.head_dim = shape.hidden, shape.hidden // shape.n_heads
        self.max_tokens = shape.positions
        self.genes = genes.symbols
        self.dtype, self.device = encoder.dtype, encoder.device
        self.default_readout, self.cls_position = "cls", 0
        self.encoder, self.species, self.species_genes, self.rules = encoder, species, genes, rules
        self.masking, self.seed, self.batch_size = masking, seed, batch_size
        self.cells_together = batch_size if masking == "published" else 1
        self.gene_names = gene_names
        self.block_tokens = block_tokens
        found_by = partial(match_symbols, known=genes, species=species, names=gene_names)
        self._match: Matcher[SymbolMatch] = Matcher(found_by, self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that results depend on."""
        chosen = {
            "species": self.species,
            "masking": self.masking,
            "seed": self.seed,
            "sample_size": self.rules.sample_size,
        }
        return chosen | ({"batch_size": self.batch_size} if self.masking == "published" else {})

    def match(self, var: pd.DataFrame) -> SymbolMatch:
        """Which columns of the data are which genes, and how their names were read."""
        return self._match(var)

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """Cell sentences (Rosen et al. 2023): genes drawn with replacement, weighted by log1p(count).

        Genes stand chromosome by chromosome, in an order that is drawn too, and by their start within one; those that
        start at one place by column. A gene that is drawn several times has several tokens. Counts are cut to whole
        numbers, and columns of one gene are not added up, as in the authors' code; its filter of rare genes and poor
        cells (10 cells, 25 genes) is left to the user. With ``masking="published"`` every ``batch_size`` cells in a row
        are padded to the longest of them.

        Parameters
        ----------
        counts
            Raw counts [cells, genes].
        var
            Describes the columns; symbols or Ensembl ids in the index or in a usual column.
        n_counts
            Not used.

        Raises
        ------
        ValueError
            When no gene is in the vocabulary, a count is negative or not finite, or shapes do not agree.
        """
        counts = as_csr(counts, var, "sentences")
        check_counts(counts, var)
        gene = self.match(var).gene
        columns = np.flatnonzero(gene >= 0)
        genes = self.species_genes.genes.take(gene[columns])
        known = counts[:, columns]
        sentences, undrawn = [], np.zeros(counts.shape[0], dtype=np.int64)
        for cell, (start, stop) in enumerate(zip(known.indptr[:-1], known.indptr[1:], strict=True)):
            whole = np.zeros(len(columns), dtype=np.int64)
            whole[known.indices[start:stop]] = known.data[start:stop].astype(np.int64)
            sentence = uce_tokens.cell_sentence(whole, genes, self.rules, self.seed)
            drawn = np.unique(sentence.genes[sentence.genes >= 0])
            undrawn[cell] = np.count_nonzero(whole) - len(drawn)
            sentences.append(sentence)
        tokens = _packed(sentences, columns, _expressed(counts) - _expressed(known), undrawn)
        if self.masking == "strict":
            return tokens
        return uce_tokens.with_pads(tokens, uce_tokens.batch_lengths(tokens.lengths, self.batch_size))

    def encode(self, tokens: Tokens, recorder: Recorder) -> torch.Tensor | None:
        """Embed the tokens and run the layers over them."""
        return self.encoder.forward(tokens, recorder, self.block_tokens)

    def cell_embeddings(self, states: torch.Tensor) -> torch.Tensor:
        """The authors' embeddings of cells, float [B, output], from the last states [B, d] of their cls tokens.

        Examples
        --------
        With the published files in a folder::

            scfast.tl.embed(adata, source)
            source.cell_embeddings(torch.from_numpy(adata.obsm["X_uce"]))
        """
        return self.encoder.decode(states.to(self.device, self.dtype))

    def to(self, device: torch.device | str) -> UceSource:
        """The same model with its weights on ``device``, itself where they are there already; else a copy."""
        encoder = self.encoder.to(device)
        return self if encoder is self.encoder else self._with(self.name, encoder, self.block_tokens)

    def in_blocks(self, tokens: int) -> UceSource:
        """The same model run in blocks of so many tokens: less memory, and no other result."""
        return self._with(self.name, self.encoder, tokens)

    def untrained(self, seed: int = 0) -> UceSource:
        """The same with layers, projection and decoder as before training; the protein embeddings stay."""
        return self._with(f"{self.name}:untrained", self.encoder.initialised(seed), self.block_tokens)

    def bytes_per_token(self) -> TokenBytes:
        """What one token costs in memory, whole or in blocks (:meth:`PackedEncoder.bytes_per_token`)."""
        return self.encoder.packed.bytes_per_token(self.block_tokens)

    def _with(self, name: str, encoder: UceEncoder, block_tokens: int | None) -> UceSource:
        return UceSource(
            name, encoder, self.species, self.species_genes, self.rules, masking=self.masking, seed=self.seed,
            batch_size=self.batch_size, gene_names=self.gene_names, block_tokens=block_tokens,
        )  # fmt: skip


def _expressed(counts: sparse.csr_matrix) -> np.ndarray:
    """int64 [cells]: genes with a count."""
    positive = np.concatenate([[0], np.cumsum(counts.data > 0)])
    return np.diff(positive[counts.indptr])


def _packed(
    sentences: list[uce_tokens.Sentence], columns: np.ndarray, unknown: np.ndarray, undrawn: np.ndarray
) -> Tokens:
    nothing = uce_tokens.Sentence(*(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.uint8)))
    ids, numbers, kinds = (np.concatenate(parts) for parts in zip(nothing, *sentences, strict=True))
    is_gene = kinds == TokenKind.GENE
    gene_index = np.full(len(ids), -1, dtype=np.int64)
    gene_index[is_gene] = columns[numbers[is_gene]]
    packing = Packing.from_lengths([len(sentence.ids) for sentence in sentences])
    return Tokens(
        ids=torch.from_numpy(ids),
        positions=packing.position_of_query(),
        packing=packing,
        gene_index=torch.from_numpy(gene_index),
        kind=torch.from_numpy(kinds),
        lost_vocabulary=torch.from_numpy(unknown),
        lost_truncation=torch.from_numpy(undrawn),
    )
