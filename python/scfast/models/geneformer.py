"""Geneformer V1 and V2, as published or trained by ``scfast pretrain``: rank-value tokens, packed BERT."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast import ops
from scfast.models import checkpoint, dictionaries
from scfast.models.base import TokenBytes, TokenKind, Tokens
from scfast.models.bert import BertEncoder
from scfast.models.bert_shape import BertShape
from scfast.models.cards import Card, Shape
from scfast.models.counts import as_csr, totals_of
from scfast.models.dictionaries import Dictionaries, Table
from scfast.models.gene_ids import GeneMatch, Matcher, match_genes
from scfast.models.heads import sequence_classes, to_transformers
from scfast.models.packed import PackedSource
from scfast.models.targets import check_target, target_values
from scfast.observables.target import Target, TargetLike
from scfast.packing import Packing

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, BertForSequenceClassification

    from scfast.attention import Recorder

_LOG = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Counts per cell that Geneformer normalises to.
TARGET_SUM = 1e4

Version = Literal["V1", "V2"]

CARD = Card(
    title="Geneformer V1 and V2",
    files=(
        ("config.json", "of a BERT"),
        ("model.safetensors or pytorch_model.bin", "weights, also sharded"),
        ("token_dictionary*", "gene -> token, as pickle, JSON or CSV"),
        ("gene_median_dictionary*", "gene -> non-zero median, or a column of the token table"),
        ("gene_name_id_dict*", "symbol -> Ensembl id; may be absent"),
        ("ensembl_mapping_dict*", "old Ensembl id or alias -> Ensembl id; V2, may be absent"),
    ),
    shapes=(
        Shape("V1-10M", 6, 4, 64, 2048),
        Shape("V1-40M", 12, 8, 64, 2048),
        Shape("gc95M, 12 layers", 12, 8, 64, 4096),
        Shape("gc95M, 20 layers", 20, 14, 64, 4096),
        Shape("V2-104M", 12, 12, 64, 4096),
        Shape("V2-316M", 18, 18, 64, 4096),
    ),
    notes=("Also what scfast pretrain and scfast finetune write.",),
)


def load(
    folder: str | Path,
    *,
    version: Version | None = None,
    dtype: torch.dtype = torch.float32,
    token_dictionary: Table | None = None,
    gene_medians: Table | None = None,
    gene_names: Table | None = None,
    ensembl_mapping: Table | None = None,
) -> GeneformerSource:
    """Load a Geneformer checkpoint: ``config.json``, weights, and the dictionaries beside them.

    Parameters
    ----------
    folder
        The checkpoint. Weights as ``model.safetensors`` or ``pytorch_model.bin`` (also sharded). The
        masked-gene head may be absent, and a sequence classifier (with its pooler) present; other heads and
        ``position_ids`` are left unused.
    version
        "V1" or "V2", to insist on one. Default: V2 when the token dictionary has <cls> and <eos>, else V1.
    dtype
        Of weights and activations: torch.float32, bfloat16 or float16.
    token_dictionary, gene_medians, gene_names, ensembl_mapping
        Each a path (pickle, JSON, CSV, TSV; gzipped too) or a mapping. Default: the file in ``folder`` that
        has the published name. Names and mapping may be absent: then symbols are not translated, and old
        Ensembl ids not brought up to date. A token table as CSV with a column nonzero_median brings the
        medians.

    Raises
    ------
    FileNotFoundError
        When config, weights, tokens or medians are missing.
    UnsafePickleError
        When a pickled dictionary asks for more than plain values. Nothing in it is run.
    ValueError
        When weights are missing, extra or of another shape, or the files contradict each other.
    TypeError
        When ``dtype`` is none of the three.

    Examples
    --------
    With the published files in a folder::

        import scfast
        source = scfast.models.load("geneformer", "Geneformer-V2-104M")
        tokens = source.tokenize(adata.X, adata.var)
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype} cannot be run; use one of {', '.join(map(str, DTYPES))}")
    config = checkpoint.read_config(folder)
    shape = BertShape.from_config(config, str(folder / "config.json"))
    tables = dictionaries.read(
        folder,
        token_dictionary=token_dictionary,
        gene_medians=gene_medians,
        gene_names=gene_names,
        ensembl_mapping=ensembl_mapping,
    )
    detected: Version = "V2" if "<cls>" in tables.tokens else "V1"
    if version not in (None, detected):
        raise ValueError(
            f"version={version!r}, but {tables.sources['token_dictionary']} is a {detected} dictionary (V2 "
            "has <cls> and <eos>, V1 neither): give this checkpoint's token_dictionary=, or leave version out"
        )
    largest = max(tables.tokens.values())
    if largest >= shape.vocabulary:
        raise ValueError(
            f"{tables.sources['token_dictionary']} has tokens up to {largest}, but the checkpoint's token "
            f"table has {shape.vocabulary} rows (vocab_size): they belong to different models"
        )
    if (
        detected == "V2"
        and not tables.ensembl_mapping
        and tables.genes
        and tables.genes[0].startswith("ENSG")
    ):
        _LOG.warning(
            "%s has no Ensembl mapping: old ids are lost, which the published V2 tokeniser adds to their "
            "present ones. Give ensembl_mapping=PATH",
            folder,
        )
    encoder = BertEncoder.from_checkpoint(shape, checkpoint.read_tensors(folder), dtype, str(folder))
    return GeneformerSource(f"geneformer:{folder.resolve().name}", encoder, tables, config)


class GeneformerSource(PackedSource):
    """A Geneformer, ready to tokenise counts and to run under a recorder. Made by :func:`load`.

    Attributes
    ----------
    version
        "V1" (no special tokens around a cell) or "V2" (<cls> first, <eos> last).
    dictionaries
        Tokens, medians, names and mapping.
    encoder
        The weights.
    config
        Content of ``config.json``.
    block_tokens
        Tokens of a block where it runs :meth:`in_blocks`, else None.
    """

    distinct_genes = tokenizes_in_threads = True

    def __init__(
        self,
        name: str,
        encoder: BertEncoder,
        tables: Dictionaries,
        config: dict[str, Any],
        block_tokens: int | None = None,
    ) -> None:
        shape = encoder.shape
        self.name = name
        self.n_layers = shape.n_layers
        self.n_heads = shape.n_heads
        self.head_dim = shape.head_dim
        self.hidden_size = shape.hidden
        self.max_tokens = shape.positions
        self.genes = tables.genes
        self.dtype = encoder.dtype
        self.device = encoder.device
        self.version: Version = "V2" if "<cls>" in tables.tokens else "V1"
        self.default_readout = "cls" if self.version == "V2" else "mean"
        self.cls_position = 0 if self.version == "V2" else None
        self.dictionaries = tables
        self.encoder = encoder
        self.config = config
        self.block_tokens = block_tokens
        self._match = Matcher(partial(match_genes, dictionaries=tables), name)

    def match(self, var: pd.DataFrame) -> GeneMatch:
        """Which columns of the data the vocabulary knows, and how their names were read."""
        return self._match(var)

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """Rank-value encoding of every cell (Theodoris et al. 2023).

        The genes of a cell are ordered by count / n_counts * 10^4 / median, largest first, ties by column,
        and cut at the model's context. V2 puts <cls> first and <eos> last. Columns of one gene are added up.

        Parameters
        ----------
        counts
            Raw counts [cells, genes].
        var
            Describes the columns; gene ids or symbols in the index or in a usual column.
        n_counts
            Total counts of each cell. Default: its sum over all genes.

        Raises
        ------
        ValueError
            When no gene is in the vocabulary, a count is negative or not finite, or shapes do not agree.
        """
        counts = as_csr(counts, var)
        match = self.match(var)
        ranked = ops.rank_values(
            counts.indptr,
            counts.indices,
            counts.data,
            n_counts=totals_of(counts, n_counts),
            token_ids=match.token_ids,
            factors=match.medians,
            max_tokens=self.max_tokens - 2 * (self.version == "V2"),
            target=TARGET_SUM,
            groups=match.target if match.n_collapsed else None,
        )
        kept = np.diff(ranked.offsets)
        tokens = self._with_special(ranked.token_ids, ranked.columns, kept)
        return Tokens(
            **tokens,
            lost_vocabulary=torch.from_numpy(ranked.n_expressed - ranked.n_in_vocabulary),
            lost_truncation=torch.from_numpy(ranked.n_in_vocabulary - kept),
        )

    def _with_special(self, ids: np.ndarray, columns: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
        """Packed fields, with <cls> and <eos> around each cell in V2."""
        lead = int(self.version == "V2")
        lengths = kept + 2 * lead
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(int(lengths.sum()), dtype=np.int64)
        positions -= np.repeat(starts, lengths)
        if lead:
            token = self.dictionaries.tokens
            is_gene = np.ones(len(positions), dtype=bool)
            is_gene[starts] = is_gene[starts + lengths - 1] = False
            all_ids = np.full(len(positions), token["<eos>"], dtype=np.int64)
            all_ids[starts] = token["<cls>"]
            all_columns = np.full(len(positions), -1, dtype=np.int64)
            all_ids[is_gene], all_columns[is_gene] = ids, columns
            kind = np.where(is_gene, TokenKind.GENE, TokenKind.SPECIAL).astype(np.uint8)
        else:
            all_ids, all_columns = ids.astype(np.int64), columns.astype(np.int64)
            kind = np.zeros(len(positions), dtype=np.uint8)
        return {
            "ids": torch.from_numpy(all_ids),
            "positions": torch.from_numpy(positions),
            "gene_index": torch.from_numpy(all_columns),
            "kind": torch.from_numpy(kind),
            "packing": Packing.from_lengths(lengths.tolist()),
        }

    def encode(self, tokens: Tokens, recorder: Recorder) -> torch.Tensor | None:
        """Embed the tokens and run the layers over them."""
        return self.encoder.forward(tokens, recorder, self.block_tokens)

    def target_values(self, target: Target, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """The logit of a class or a gene of every cell, float32 [B], from the last states [T, d]."""
        return target_values(target, self.encoder, self.classes, tokens, states)

    def check_target(self, target: TargetLike, gene_names: Sequence[str] | None = None) -> Target:
        """The target with all that :meth:`forward` needs to know of it.

        Raises
        ------
        ValueError
            A head, a class or a gene that does not exist.
        """
        return check_target(target, self.encoder, self.classes, gene_names, self.name)

    def to(self, device: torch.device | str) -> GeneformerSource:
        """The same model with its weights on ``device``, itself where they are there already; else a copy."""
        encoder = self.encoder.to(device)
        return self if encoder is self.encoder else self._with(self.name, encoder)

    def in_blocks(self, tokens: int) -> GeneformerSource:
        """The same model run in blocks of so many tokens: less memory, and no other result."""
        return GeneformerSource(self.name, self.encoder, self.dictionaries, self.config, tokens)

    def _with(self, name: str, encoder: BertEncoder) -> GeneformerSource:
        return GeneformerSource(name, encoder, self.dictionaries, self.config, self.block_tokens)

    def untrained(self, seed: int = 0) -> GeneformerSource:
        """The same architecture, vocabulary and device with weights initialised as before training."""
        encoder = BertEncoder.initialised(self.encoder.shape, self.dtype, seed).to(self.device)
        return self._with(f"{self.name}:untrained", encoder)

    def bytes_per_token(self) -> TokenBytes:
        """What one token costs in memory, whole or in blocks (:meth:`PackedEncoder.bytes_per_token`)."""
        return self.encoder.packed.bytes_per_token(self.block_tokens)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that a fine-tuned checkpoint tells apart; empty without a classifier."""
        return sequence_classes(self.config, self.encoder.n_classes)

    def hf(self) -> BertForMaskedLM | BertForSequenceClassification:
        """The same model in ``transformers``, in eval mode, with weights of its own, on the same device.

        A ``BertForSequenceClassification`` when the checkpoint is fine-tuned, else a ``BertForMaskedLM``.

        Raises
        ------
        ValueError
            When the checkpoint came without either head.
        """
        return to_transformers(self.encoder, self.config, self.name)
