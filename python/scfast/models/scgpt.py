"""scGPT as published: genes and the bins of their counts, a packed encoder; flash-attention is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast.models import checkpoint, dictionaries
from scfast.models.base import TokenBytes, Tokens
from scfast.models.cards import Card, Shape
from scfast.models.counts import as_csr, check_counts
from scfast.models.dictionaries import Dictionaries, Table
from scfast.models.gene_ids import GeneMatch, Matcher, match_genes
from scfast.models.packed import PackedSource
from scfast.models.scgpt_tokens import SPECIAL, Rules, check_vocabulary, tokens_of
from scfast.models.scgpt_weights import ScgptNetwork, ScgptShape

if TYPE_CHECKING:
    from scfast.attention import Recorder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Of the published models, where args.json does not say.
MAX_TOKENS, N_BINS, PAD_VALUE = 1200, 51, -2

CARD = Card(
    title="scGPT",
    files=(
        ("args.json", "sizes and options of training"),
        ("vocab.json", "gene symbol -> row of the gene table"),
        ("best_model.pt", "weights, in any of the three layouts of attention weights"),
    ),
    shapes=(Shape("whole-human and the organ models", 12, 8, 64, 1200),),
    notes=(
        "Over 1,200 genes are drawn by a seed; max_tokens= takes longer cells.",
        "Genes are symbols; data with Ensembl ids alone need gene_names=.",
    ),
)


def load(
    folder: str | Path,
    *,
    seed: int = 0,
    max_tokens: int | None = None,
    cls_value: float | None = None,
    gene_names: Table | None = None,
    dtype: torch.dtype = torch.float32,
) -> ScgptSource:
    """Load an scGPT checkpoint (Cui et al. 2024): ``args.json``, ``vocab.json``, ``best_model.pt``.

    The authors' embedding of a cell is the last state of <cls>, as :func:`scfast.tl.embed` gives it, divided by its
    Euclidean norm.

    Parameters
    ----------
    folder
        The checkpoint. Its attention weights may have the names of flash-attention (``Wqkv``, as the released
        files), of its wrapper (``_impl.Wqkv``) or of torch (``in_proj``). Heads are left unused; every other
        weight must be there, and none beside.
    seed
        Of ties between bins, and of the genes drawn where a cell has too many. What is drawn depends on it
        and on the cell's own counts.
    max_tokens
        Longest cell, <cls> included. Default: that of ``args.json``, else 1,200. The model knows no positions, so
        more than it was trained with can be run.
    cls_value
        Value of the <cls> token. Default: the ``pad_value`` of ``args.json``, as in the authors' pretraining
        and cell embeddings; their fine-tuning code takes 0.
    gene_names
        Gene symbol -> Ensembl id, as a path (pickle, JSON, CSV, TSV; gzipped too) or a mapping, for data whose
        genes are Ensembl ids alone.
    dtype
        Of weights and activations: torch.float32, bfloat16 or float16.

    Raises
    ------
    FileNotFoundError
        When one of the three files is missing.
    ValueError
        When weights are missing, extra or of another shape, or the files contradict each other.
    TypeError
        When ``dtype`` is none of the three.

    Examples
    --------
    With the published files in a folder::

        import scfast
        source = scfast.models.load("scgpt", "scGPT_human", seed=1)
        tokens = source.tokenize(adata.X, adata.var)
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype} cannot be run; use one of {', '.join(map(str, DTYPES))}")
    args = checkpoint.read_config(folder, "args.json")
    vocabulary = check_vocabulary(checkpoint.read_config(folder, "vocab.json"), str(folder / "vocab.json"))
    shape = ScgptShape.from_args(args, len(vocabulary), str(folder / "args.json"))
    weights = folder / "best_model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} holds no best_model.pt, the weights of an scGPT")
    network = ScgptNetwork.from_checkpoint(shape, checkpoint.read_state_dict(weights), dtype, str(weights))
    rules = Rules(
        cls=vocabulary["<cls>"],
        cls_value=float(args.get("pad_value", PAD_VALUE) if cls_value is None else cls_value),
        n_bins=args.get("n_bins", N_BINS),
        max_tokens=args.get("max_seq_len", MAX_TOKENS) if max_tokens is None else max_tokens,
        seed=seed,
    )
    names = {} if gene_names is None else dictionaries.read_names(gene_names)
    return ScgptSource(f"scgpt:{folder.resolve().name}", network, genes_of(vocabulary, names), rules)


def genes_of(vocabulary: Mapping[str, int], gene_names: Mapping[str, str]) -> Dictionaries:
    """The genes of a vocabulary as :func:`match_genes` looks them up, with the Ensembl ids of their symbols."""
    tokens = {gene: row for gene, row in vocabulary.items() if gene not in SPECIAL}
    ids = {ensembl: symbol for symbol, ensembl in gene_names.items() if symbol in tokens}
    return Dictionaries(tokens=tokens, medians=dict.fromkeys(tokens, 1.0), ensembl_mapping=ids)


class ScgptSource(PackedSource):
    """An scGPT, ready to tokenise counts and to run under a recorder. Made by :func:`load`.

    Attributes
    ----------
    network
        The weights.
    dictionaries
        Genes and their rows of the gene table.
    rules
        How a cell becomes tokens.
    block_tokens
        Tokens of a block where it runs :meth:`in_blocks`, else None.
    """

    distinct_genes = True

    default_readout = "cls"
    cls_position = 0

    def __init__(
        self,
        name: str,
        network: ScgptNetwork,
        genes: Dictionaries,
        rules: Rules,
        block_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.n_layers = network.shape.n_layers
        self.n_heads = network.shape.n_heads
        self.head_dim = network.packed.head_dim
        self.hidden_size = network.shape.hidden
        self.max_tokens = rules.max_tokens
        self.genes = genes.genes
        self.dtype = network.dtype
        self.device = network.device
        self.network = network
        self.dictionaries = genes
        self.rules = rules
        self.block_tokens = block_tokens
        self._match = Matcher(partial(match_genes, dictionaries=genes), name)

    def match(self, var: pd.DataFrame) -> GeneMatch:
        """Which columns of the data the vocabulary knows, and how their names were read."""
        return self._match(var)

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """<cls> and the expressed genes of every cell, each with the bin of its count (Cui et al. 2024).

        Bins are quantiles of the cell's own non-zero counts; a count that several of them share gets any of those, at
        random. A cell with more genes than the model takes keeps a random choice of them, whose bins are those that
        they have among all. Columns of one gene are added up.

        Parameters
        ----------
        counts
            Raw counts [cells, genes]. Values that were only scaled within a cell have the same bins.
        var
            Describes the columns; gene symbols in the index or in a usual column.
        n_counts
            Total counts of each cell, which no bin depends on.

        Raises
        ------
        ValueError
            When no gene is in the vocabulary, a count is negative or not finite, or shapes do not agree.
        """
        counts = as_csr(counts, var, "bins")
        check_counts(counts, var)
        match = self.match(var)
        known = match.token_ids >= 0
        columns = np.full(self.network.shape.vocabulary, -1, dtype=np.int64)
        columns[match.token_ids[known]] = match.target[known]
        return tokens_of(counts, match.token_ids, columns, self.rules)

    def encode(self, tokens: Tokens, recorder: Recorder) -> torch.Tensor | None:
        """Embed the tokens and run the layers over them."""
        return self.network.forward(tokens, recorder, self.block_tokens)

    def to(self, device: torch.device | str) -> ScgptSource:
        """The same model with its weights on ``device``, itself where they are there already; else a copy."""
        network = self.network.to(device)
        return self if network is self.network else self._with(self.name, network, self.block_tokens)

    def in_blocks(self, tokens: int) -> ScgptSource:
        """The same model run in blocks of so many tokens: less memory, and no other result."""
        return self._with(self.name, self.network, tokens)

    def untrained(self, seed: int = 0) -> ScgptSource:
        """The same architecture, vocabulary and device with weights initialised as before training."""
        network = ScgptNetwork.initialised(self.network.shape, self.dtype, seed).to(self.device)
        return self._with(f"{self.name}:untrained", network, self.block_tokens)

    def _with(self, name: str, network: ScgptNetwork, block_tokens: int | None) -> ScgptSource:
        return ScgptSource(name, network, self.dictionaries, self.rules, block_tokens)

    def bytes_per_token(self) -> TokenBytes:
        """What one token costs in memory, whole or in blocks (:meth:`PackedEncoder.bytes_per_token`)."""
        return self.network.packed.bytes_per_token(self.block_tokens)
