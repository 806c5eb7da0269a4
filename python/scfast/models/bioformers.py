"""BioFormers (Amara-Belgadi et al. 2023): genes, the bins of their counts, and conditions, encoder or decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from scipy import sparse

from scfast.models import checkpoint, dictionaries
from scfast.models.base import TokenBytes, TokenKind, Tokens
from scfast.models.bioformers_conditions import OfCell, condition_rows, external_of, marked_ids
from scfast.models.bioformers_network import BioformersNetwork, BioformersShape, shape_from_config
from scfast.models.bioformers_tokens import CLS, Binning, Inputs, tokens_of
from scfast.models.cards import Card, Shape
from scfast.models.counts import as_csr, totals_of
from scfast.models.gene_ids import GeneMatch, Matcher, match_genes
from scfast.models.packed import PackedSource
from scfast.models.targets import gene_column
from scfast.models.text_files import shown
from scfast.observables.target import Target, TargetLike

if TYPE_CHECKING:
    from scfast.attention import Recorder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

CARD = Card(
    title="BioFormers",
    files=(
        ("config.json", "sizes, binning, conditions"),
        ("vocab.json", "<cls> and genes -> row of the gene table"),
        ("model.safetensors", "weights"),
    ),
    shapes=(Shape("paper, 1,000 genes", 8, 8, 64, 1001),),
    notes=("Genes that a cell does not express are tokens too, unless config.json says otherwise.",),
)

#: Layers, heads, width and width of the feed-forward part. ``paper`` has those of the paper.
PRESETS = {"small": (4, 4, 128, 256), "paper": (8, 8, 512, 2048), "tiny": (2, 2, 64, 128)}


def load(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> BioformersSource:
    """Load a BioFormers: ``config.json``, ``vocab.json`` and ``model.safetensors``.

    Parameters
    ----------
    folder
        What :meth:`BioformersSource.save` has written.
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
        source = scfast.models.load("bioformers", "blood_model")
        tokens = source.tokenize(adata.X, adata.var)
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype} cannot be run; use one of {', '.join(map(str, DTYPES))}")
    config, origin = checkpoint.read_config(folder), str(folder / "config.json")
    genes = _genes_of(folder / "vocab.json")
    binning = Binning.from_config(config.get("binning", {}), origin)
    shape = shape_from_config(config, len(genes), binning.n_bins, origin)
    max_tokens = config.get("max_tokens")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise ValueError(
            f"{origin}: max_tokens must be a whole number above 0 or null, got {shown(max_tokens)}"
        )
    inputs = Inputs(
        genes, binning, bool(config.get("zero_genes", True)), max_tokens, tuple(config.get("conditions", ())),
        bool(config.get("mark_targets", False)),
    )  # fmt: skip
    network = BioformersNetwork.from_checkpoint(shape, checkpoint.read_tensors(folder), dtype, str(folder))
    return BioformersSource(f"bioformers:{folder.resolve().name}", network, inputs)


def create(
    genes: Sequence[str],
    *,
    preset: str = "small",
    binning: Binning | None = None,
    architecture: str = "encoder",
    value_embedding: str = "linear",
    zero_genes: bool = True,
    conditions: Sequence[str] = (),
    mark_targets: bool = False,
    seed: int = 0,
) -> BioformersSource:
    """A BioFormers with fresh weights.

    Parameters
    ----------
    genes
        The vocabulary.
    preset
        ``"tiny"`` (2 layers, 2 heads, width 64), ``"small"`` (4, 4, 128) or ``"paper"`` (8, 8, 512).
    binning
        How counts become values. Default: value binning to 30 bins, of counts as they are.
    architecture
        ``"encoder"``, <cls> first; or ``"decoder"``, causal, genes by falling count, <cls> last, so that it sees them.
    value_embedding
        ``"linear"`` or ``"table"``.
    zero_genes
        Whether genes that a cell lacks are tokens too.
    conditions
        Names of the external tokens that cells can be given.
    mark_targets
        Whether genes that conditions act on can be marked.
    seed
        Of the weights.

    Raises
    ------
    ValueError
        An unknown preset or kind, or names that occur twice.

    Examples
    --------
    >>> source = create(["CD3D", "MS4A1", "NKG7"])
    >>> tokens = source.tokenize(sparse.csr_matrix([[0, 3]]), pd.DataFrame(index=["CD3D", "NKG7"]))
    >>> tokens.ids.tolist(), tokens.values.tolist()
    ([0, 3, 1], [0.0, 3.0, 0.0])
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; use one of {', '.join(map(repr, PRESETS))}")
    for what, names in (("genes", genes), ("conditions", conditions)):
        if len(set(names)) != len(names):
            raise ValueError(f"{what} holds {len(names) - len(set(names))} names more than once")
    binning = Binning() if binning is None else binning
    layers, heads, width, ffn = PRESETS[preset]
    inputs = Inputs(tuple(genes), binning, zero_genes, None, tuple(conditions), mark_targets)
    shape = BioformersShape(
        layers,
        heads,
        width,
        ffn,
        len(genes),
        binning.n_bins,
        inputs.n_conditions,
        architecture,
        value_embedding,
    )
    network = BioformersNetwork.initialised(shape, torch.float32, seed)
    return BioformersSource("bioformers:untrained", network, inputs)


def _genes_of(path: Path) -> tuple[str, ...]:
    """Genes in order of their rows, which follow that of <cls>."""
    table = dictionaries.read_table(path)
    numbered = all(type(row) is int for row in table.values())
    genes = sorted((gene for gene in table if gene != "<cls>"), key=table.__getitem__) if numbered else []
    if "<cls>" not in table or [table[token] for token in ("<cls>", *genes)] != list(range(len(table))):
        raise ValueError(
            f"{path} must number <cls> 0 and its genes from 1, each once; it is not the vocab.json of a "
            "BioFormers"
        )
    return tuple(genes)


class BioformersSource(PackedSource):
    """A BioFormers, ready to tokenise counts and to run under a recorder. Made by :func:`load` or :func:`create`.

    Attributes
    ----------
    network
        The weights.
    inputs
        What a cell becomes before it is embedded.
    block_tokens
        Tokens of a block where it runs :meth:`in_blocks`, else None.
    """

    distinct_genes = True

    default_readout = "cls"

    def __init__(
        self, name: str, network: BioformersNetwork, inputs: Inputs, block_tokens: int | None = None
    ) -> None:
        self.name = name
        self.n_layers = network.shape.n_layers
        self.n_heads = network.shape.n_heads
        self.head_dim = network.packed.head_dim
        self.hidden_size = network.shape.hidden
        self.max_tokens = inputs.longest
        self.genes = list(inputs.genes)
        self.dtype = network.dtype
        self.device = network.device
        self.cls_position = -1 if network.shape.causal else 0
        self.network = network
        self.inputs = inputs
        self.block_tokens = block_tokens
        self._match = Matcher(partial(match_genes, dictionaries=inputs.tables), name)

    def match(self, var: pd.DataFrame) -> GeneMatch:
        """Which columns of the data the vocabulary knows, and how their names were read."""
        return self._match(var)

    def tokenize(
        self,
        counts: sparse.csr_matrix,
        var: pd.DataFrame,
        n_counts: np.ndarray | None = None,
        conditions: Sequence[OfCell] | None = None,
        targets: Sequence[OfCell] | None = None,
    ) -> Tokens:
        """<cls>, and the genes of every cell by falling count, each with the bin of its count.

        Columns of one gene are added up.

        Parameters
        ----------
        counts
            Raw counts [cells, genes].
        var
            Describes the columns; gene names of the vocabulary's kind in the index or in a usual column.
        n_counts
            Total counts of each cell, for binning that normalises. Default: its sum over all genes.
        conditions
            Condition of each cell, or several, which are added to all its tokens; None for a cell without. Default:
            none has any.
        targets
            Genes of each cell that conditions act on: their tokens are marked where the vocabulary holds them.
            Default: no marks.

        Raises
        ------
        ValueError
            When no gene is in the vocabulary, a count is negative or not finite, a condition is unknown, the model
            has no mark, or shapes do not agree.
        """
        counts = as_csr(counts, var, "bins")
        match = self.match(var)
        tokens = tokens_of(
            counts, match.token_ids, match.target, totals_of(counts, n_counts), self.inputs.binning,
            n_genes=len(self.genes), zero_genes=self.inputs.zero_genes, cls_last=self.network.shape.causal,
            max_tokens=self.max_tokens,
        )  # fmt: skip
        if not self.inputs.n_conditions and conditions is None and targets is None:
            return tokens
        return self.with_conditions(tokens, conditions, targets)

    def with_conditions(
        self, tokens: Tokens, conditions: Sequence[OfCell] | None, targets: Sequence[OfCell] | None = None
    ) -> Tokens:
        """The cells of ``tokens`` under other conditions, as :meth:`tokenize` takes them."""
        n, inputs = tokens.n_cells, self.inputs
        if targets is not None and not inputs.mark_targets:
            raise ValueError(
                f"{self.name} has no mark for the genes that conditions act on: leave targets out"
            )
        rows = condition_rows(
            [None] * n if conditions is None else conditions, inputs.conditions, n, self.name
        )
        marked = [] if targets is None else marked_ids(targets, inputs.tables.tokens, n)
        return replace(tokens, external=external_of(tokens, rows, marked, inputs.n_conditions))

    def encode(self, tokens: Tokens, recorder: Recorder) -> torch.Tensor | None:
        """Embed the tokens and run the layers over them."""
        return self.network.forward(tokens, recorder, self.block_tokens)

    def check_target(self, target: TargetLike, gene_names: Sequence[str] | None = None) -> Target:
        """The target with the column of its gene.

        Raises
        ------
        ValueError
            Anything but a gene of the data.
        """
        if not isinstance(target, Target) or target.kind != "gene":
            raise ValueError(
                f"target={str(target)!r}: {self.name} predicts values of genes: use target='gene:NAME'"
            )
        return gene_column(target, gene_names)

    def target_values(self, target: Target, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """The bin of a gene that the head expects in every cell, float32 [B]; 0 for cells without the gene."""
        own = (tokens.gene_index == target.gene) & (tokens.kind == int(TokenKind.GENE))
        shares = self.network.bin_logits(states[own]).float().softmax(-1)
        expected = shares @ torch.arange(shares.shape[1], dtype=torch.float32, device=shares.device)
        values = torch.zeros(tokens.n_cells, device=states.device)
        return values.index_add(0, tokens.packing.cell_of_query()[own], expected)

    def to(self, device: torch.device | str) -> BioformersSource:
        """The same model with its weights on ``device``, itself where they are there already; else a copy."""
        network = self.network.to(device)
        return self if network is self.network else self._with(self.name, network, self.block_tokens)

    def in_blocks(self, tokens: int) -> BioformersSource:
        """The same model run in blocks of so many tokens: less memory, and no other result."""
        return self._with(self.name, self.network, tokens)

    def untrained(self, seed: int = 0) -> BioformersSource:
        """The same architecture, vocabulary and device with weights initialised as before training."""
        network = BioformersNetwork.initialised(self.network.shape, self.dtype, seed).to(self.device)
        return self._with(f"{self.name}:untrained", network, self.block_tokens)

    def with_network(self, network: BioformersNetwork) -> BioformersSource:
        """The same model with other weights."""
        return self._with(self.name, network, self.block_tokens)

    def _with(self, name: str, network: BioformersNetwork, block_tokens: int | None) -> BioformersSource:
        return BioformersSource(name, network, self.inputs, block_tokens)

    def bytes_per_token(self) -> TokenBytes:
        """What one token costs in memory, whole or in blocks (:meth:`PackedEncoder.bytes_per_token`)."""
        return self.network.packed.bytes_per_token(self.block_tokens)

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        shape, inputs = self.network.shape, self.inputs
        return {
            "model_type": "bioformers",
            "architecture": shape.architecture,
            "num_hidden_layers": shape.n_layers,
            "num_attention_heads": shape.n_heads,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "hidden_act": shape.activation,
            "value_embedding": shape.value_embedding,
            "binning": asdict(inputs.binning),
            "zero_genes": inputs.zero_genes,
            "max_tokens": self.max_tokens,
            "conditions": list(inputs.conditions),
            "mark_targets": inputs.mark_targets,
        }

    def save(self, folder: str | Path) -> None:
        """Write what :func:`load` reads; weights as they are, each file in one atomic step.

        Parameters
        ----------
        folder
            Created when missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = {"<cls>": CLS} | self.inputs.tables.tokens
        for name, content in (("config.json", self.config()), ("vocab.json", vocabulary)):
            part = folder / f".{name}.part"
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")
            part.replace(folder / name)
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in self.network.tensors.items()}
        part = folder / ".model.safetensors.part"
        save_file(weights, part, metadata={"format": "pt"})
        part.replace(folder / "model.safetensors")
