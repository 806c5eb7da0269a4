"""What each analysis means to a reader: its title, how its numbers are read, what they must beat, what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A plot of :mod:`scfast.pl`, and its caption.

    Attributes
    ----------
    by_group
        It has a panel for each group.
    of
        It draws other results, whose key is this argument of the tool.
    """

    plot: str
    caption: str
    by_group: bool = False
    of: str | None = None


@dataclass(frozen=True)
class Top:
    """How a table is digested for each group: names, value, its error, and the columns beside it."""

    names: tuple[str, ...]
    value: str
    error: str | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """A table of the results, by its path in them."""

    title: str
    about: str
    top: Top | None = None
    first: tuple[str, ...] = ()  # columns that stand first


@dataclass(frozen=True)
class Chapter:
    """An analysis, by the name of its tool; ``subject`` names the arguments that say what it is about."""

    title: str
    meaning: str
    caveat: str
    pictures: tuple[Picture, ...]
    tables: Mapping[str, Listing]
    subject: tuple[str, ...] = ()


_BESIDE = ("expression", "detection", "null")
_SCORES = Top(("gene",), "mean", "se", _BESIDE)
_GENES = (
    "A row per group and gene. mean: over the group's cells, se: its standard error; null: the untrained model's mean;"
    " expression: mean log1p of counts per ten thousand; detection: share of cells with a count; rank: its mean place"
    " in the encoding; cells: that have the gene, and mean_detecting: over these alone."
)
_GENES_FIRST = ("group", "gene", "mean", "se", "null", "expression", "detection", "rank", "rank_sd", "cells")
_GROUPS = (
    "A row per group. spearman_...: rank correlation over all genes of the score with what it may merely restate: mean"
    " expression, detection, rank in the encoding, the untrained model (null). mass_...: tokens that the score goes to;"
    " lost_...: genes per cell that the vocabulary lacks or the longest input cuts off; replicates: 0: none were named."
)
_GROUPS_FIRST = (
    "cells",
    "replicates",
    *(f"spearman_{name}" for name in ("expression", "detection", "rank", "null")),
)
_CAVEAT = (
    "A ranking is worth what it adds to expression, detection and the same network before training: their rank"
    " correlations stand in the table of groups. Attention says what a model reads, not what causes what in a cell."
)


def _scores(
    title: str, meaning: str, plot: str, caption: str, subject: tuple[str, ...] = (), **more: Listing
) -> Chapter:
    """An analysis that gives every gene a score in every group."""
    picture = Picture(plot, caption, by_group=plot != "attention_norms")
    tables = {
        "table": Listing("Genes", _GENES, _SCORES, _GENES_FIRST),
        "groups": Listing("Groups", _GROUPS, None, _GROUPS_FIRST),
        **more,
    }
    return Chapter(title, meaning, _CAVEAT, (picture,), tables, subject)


_BARS = "The top genes of each group with standard errors; the orange mark is the untrained model."
CHAPTERS = {
    "rollout": _scores(
        "Attention rollout",
        "How much of the readout comes from each gene, when attention is followed back through all layers with the"
        " residual stream counted (Abnar & Zuidema 2020). The scores of a cell sum to 1.",
        "rollout", _BARS,
    ),
    "received": _scores(
        "Attention received",
        "How much attention each gene receives from all tokens of its cell, summed over layers and heads: columns of"
        " the attention maps. What a gene itself attends to is in the rows, which are not shown here.",
        "received", _BARS,
    ),
    "attention_norms": _scores(
        "Norms of what attention carries",
        "Attention weights do not say how long the vectors are that they carry. Here each weight is multiplied by the"
        " norm of its transformed value vector (Kobayashi et al. 2020, 2021; GlobEnc: Modarressi et al. 2022).",
        "attention_norms", "Norm-weighted attention of each head of each layer, from the least (0) to the most (1).",
        heads=Listing(
            "Heads",
            "A row per group, layer and head, from 0: means over cells and standard errors (se). weighted: norm that a"
            " query takes in; prob: norm of the attention map itself; mixed: norm of what it carries.",
        ),
        layers=Listing(
            "Layers",
            "A row per group and layer, from 0: the mixing ratio, which is the share that comes from other tokens, of"
            " attention alone (attn-n), with the residual stream (attnres-n), and with layer norm (attnresln-n).",
        ),
        norms=Listing("Norms", "A row per group and layer: what a query takes in altogether."),
    ),
    "relevance": _scores(
        "Relevance for a prediction",
        "How much each gene's attention matters to the chosen output, from attention and its gradient (Chefer et al."
        " 2021), over the cells that have that output. Attributions may be negative: such genes speak against the"
        " prediction.",
        "relevance", "The genes that the prediction depends on most, with standard errors.", ("target",),
    ),
    "rollout_matrix": Chapter(
        "What genes read from",
        "Rows of the rollout matrix: each target gene's token, and the share of it that comes from each source gene.",
        "Read by rows: a source that stands high for every target is high in general. Targets themselves are left out.",
        (
            Picture(
                "rollout_matrix",
                "Targets (rows) read from sources (columns). Grey: no cell of the group has both genes.",
                by_group=True,
            ),
        ),
        {
            "table": Listing(
                "Pairs",
                "A row per group, target and source; the largest shares of every target first. null: the untrained"
                " model's; expression and detection are those of the source.",
                Top(("target", "source"), "mean", None, _BESIDE),
            ),
            "targets": Listing("Targets", "A row per group and target: its cells, and what it reads from itself."),
        },
    ),
    "rank_profile": Chapter(
        "Attention by rank",
        "Mean attention received at each place of the encoding, over the cells that have a token there.",
        "Deep ranks exist in long cells only; the table says how many cells each mean is over.",
        (
            Picture(
                "rank_profile",
                "Mean attention received: a dot for every rank, and a smoothed line, pale where few cells are as long.",
                by_group=True,
            ),
        ),
        {
            "table": Listing(
                "Ranks", "A row per model, group, bin of cell length and rank: sum over its cells, mean, error."
            ),
            "lengths": Listing("Lengths", "Gene tokens of the cells in each group and bin."),
            "genes": Listing("Marked genes", "Where the named genes stand, and what they receive."),
        },
    ),
    "attention_shift": Chapter(
        "How attention shifts between two models",
        "The cosine between both models' attention maps of the same cell, for each layer and head: 1 is no change. For"
        " genes and ranks: the change of the attention that they receive.",
        "A head may shift without a change of the answer. Differences of genes are compared with rank, expression and"
        " detection in the table of groups.",
        (Picture("attention_shift", "Mean cosine of both models' maps; 1: no change.", by_group=True),),
        {
            "genes": Listing(
                "Genes",
                "A row per group and gene, the largest change first. before, after: attention received in the first"
                " and in the second model, over the cells that have the gene; change: their difference, with its"
                " standard error; percent: of before.",
                Top(("gene",), "change", "se", ("before", "after", "expression")),
            ),
            "cosine": Listing("Heads", "A row per group, layer and head: mean cosine of the cells, standard error."),
            "ranks": Listing("Ranks", "The same change by place in the encoding."),
            "groups": Listing("Groups", "Mean cosine, and what the genes' change correlates with."),
        },
        ("model_a", "model_b"),
    ),
    "key_genes": Chapter(
        "Key genes",
        "Genes by the attention that they receive from all tokens over all cells; the most attended gene has 1.",
        "Sums over cells favour genes that most cells have; attention_mean is over the cells that have the gene. The"
        " correlations say how far the ranking restates rank, expression and detection.",
        (Picture("key_genes", "The most attended genes: rank in the encoding, cells, detection, expression."),),
        {
            "table": Listing("Genes", "A row per gene, most attended first."),
            "correlations": Listing("Correlations", "Spearman correlation of attention with each confounder."),
            "highlight": Listing(
                "Highlighted set", "Probability that a gene of the set stands above another (0.5: chance)."
            ),
        },
    ),
    "probe": Chapter(
        "What can be read from each layer",
        "Macro-F1 of linear probes on the states after each layer, on cells held out of their training; 0 is the"
        " embeddings. Errors are between folds.",
        "The probes of shuffled labels say what a probe finds where there is nothing; chance is 1 / classes. That a"
        " label can be read does not say that the model uses it.",
        (Picture("probe", "Macro-F1 by layer, a line per readout of the cell; shuffled labels and chance below."),),
        {
            "table": Listing("Probes", "A row per label, layer and readout, with control and chance."),
            "classes": Listing("Classes", "F1 of every class."),
            "tokens": Listing("Single tokens", "Mean F1 of the probes of single tokens beside cls and mean."),
            "transfer": Listing("Transfer", "F1 of a probe trained on one readout and tested on another."),
            "labels": Listing("Labels", "Classes, cells, and cells without the label."),
        },
    ),
    "similarity": Chapter(
        "How alike layers and tokens are",
        "Cosines of the readout vector between layers, and of the tokens of a cell with each other. Blocks are layers"
        " that are more like each other than like the rest.",
        "High cosines between all tokens may come from a few dimensions that are large everywhere.",
        (
            Picture("layer_map", "Cosine between layers; blocks are framed.", by_group=True),
            Picture("similarity_distribution", "Cosines between tokens of a cell, by layer; the tick is their median."),
        ),
        {
            "groups": Listing("Groups", "Blocks of layers and how clear they are (silhouette; 1: clear)."),
            "table": Listing("Layers", "Block of each layer, its change, and its cosine to the last."),
            "tokens": Listing("Tokens", "Cosines of pairs of tokens: mean, spread and quantiles."),
            "genes/neighbors": Listing("Nearest genes", "The genes with the most similar mean states."),
        },
    ),
    "layers_report": Chapter(
        "What each layer adds",
        "Change of the readout vector at each layer, its cosine to the last, and what probes gain over the layer"
        " before.",
        "A candidate could go as far as these numbers say. Whether the model does as well without it is to be tried.",
        (Picture("layer_map", "Cosine between layers; blocks are framed.", of="similarity"),),
        {
            "table": Listing("Layers", "A row per layer, from 1."),
            "labels": Listing("Labels", "The layer of the highest F1, and the first within its standard error."),
        },
    ),
    "prevalence": Chapter(
        "Programs' share of attention",
        "The share of attention that goes to each cluster of genes, minus the share of its genes among the cell's"
        " tokens; intervals by bootstrap.",
        "The null permutes genes among clusters; q-values are over the clusters of a model and group.",
        (Picture("prevalence", "Share of attention minus share of genes.", by_group=True),),
        {
            "table": Listing(
                "Clusters",
                "A row per model, group and cluster, largest difference first: attention, its share; frequency, that of"
                " its genes; low and high, the interval of their difference; null, that of permuted clusters.",
                Top(("cluster",), "difference", None, ("low", "high", "null_mean", "q_value")),
                ("model", "group", "cluster", "difference", "low", "high", "q_value", "attention", "frequency"),
            ),
            "groups": Listing("Groups", "Cells, replicates, and the share of genes that have a cluster."),
        },
    ),
    "enrich": Chapter(
        "Gene sets among the top genes",
        "The overlap of each group's most attended genes with each gene set, against what chance gives"
        " (hypergeometric).",
        "The universe is what could have been attended to, not the genome. Sets of genes expressed highly are found"
        " by any ranking that follows expression.",
        (Picture("enrich", "Gene sets with the smallest p of each group.", by_group=True),),
        {
            "table": Listing(
                "Sets", "A row per group and set, smallest p first.",
                Top(("gene_set",), "ratio", None, ("overlap", "expected", "q_value")),
                ("group", "gene_set", "overlap", "expected", "ratio", "p_value", "q_value"),
            ),
            "groups": Listing("Groups", "Cells, genes of the universe, and sets tested."),
            "top_genes": Listing("Top genes", "The genes that were tested."),
        },
    ),
    "compare_de": Chapter(
        "Attention against differential expression",
        "Whether the most attended genes of a group are those that a Wilcoxon test finds up-regulated in it.",
        "Each baseline's own overlap stands beside; partial correlations hold rank and detection constant.",
        (Picture("compare_de", "Attention against the Wilcoxon score.", by_group=True),),
        {
            "overlap": Listing("Overlap", "A row per group and length of the lists."),
            "groups": Listing("Groups", "Rank correlations of attention and test with each other and the baselines."),
            "table": Listing(
                "Genes", "A row per group and gene, most attended first.",
                Top(("gene",), "attention", None, ("de_score", "expression", "detection")),
            ),
        },
    ),
    "strongest_edges": Chapter(
        "Strongest edges of each cell",
        "The pairs of genes with the largest attention weights, cell by cell.",
        "The largest weights of one cell are noise as much as signal: compare many cells.",
        (),
        {"edges": Listing("Edges", "A row per cell and edge: target reads from source.")},
    ),
    "grn": Chapter(
        "Gene networks",
        "Mean attention between every two genes, group by group: target reads from source. Standard errors by jackknife"
        " over blocks of cells.",
        "Attention is not regulation: read a network beside what it is worth (grn_score), and beside what the model's"
        " training says of it.",
        (Picture("grn", "The strongest edges, as wide as they are strong; arrows come from the gene that is read."),),
        {
            "networks": Listing("Networks", "One per group, and the change between two: cells, edges, place in varp."),
            "changes": Listing(
                "Changes", "The largest first: before, in the first group; after, in the second; 95 % interval; p; q."
            ),
            "strength": Listing("Strength", "Mean weight of the edges from and to every gene."),
        },
    ),
    "grn_score": Chapter(
        "What the networks are worth",
        "Precision and recall of known targets among the strongest edges. AUPRC is the area under that curve; EPR the"
        " precision among as many of the strongest edges as there are known targets. Ratios are over the share of known"
        " pairs: 1 is chance. In brackets: 95 % intervals.",
        "Baselines that know nothing of attention stand beside: co-expression, the product of detection rates, and"
        " references with the same degrees. A network is worth what it adds to them.",
        (Picture("grn_score", "Precision against recall: the network, its baselines, and chance."),),
        {
            "table": Listing("Scores", "A row per network and score, with 95 % intervals; null: equal degrees."),
            "differences": Listing("Differences", "The network's ratio less the baseline's, with 95 % intervals."),
            "curves": Listing("Curves", "Recall and precision."),
        },
    ),
    "gene_programs": Chapter(
        "Gene programs",
        "Clusters (Leiden) of the graph of cosines between gene embeddings, of five genes or more.",
        "Clusters are found in any graph: see whether other seeds find them, and what they are enriched in.",
        (),
        {
            "programs": Listing("Programs", "Genes, edges within, and their mean cosine."),
            "enrichment": Listing("Enrichment", "Gene sets in each program, smallest p first."),
        },
    ),
    "regulator": Chapter(
        "One regulator",
        "The genes that the regulator's token is read by most, in every network, and its strongest edges.",
        "Genes that are read from by all are read from by these too: compare with another regulator.",
        (Picture("regulator", "The most influenced genes in every network; edges with known targets marked."),),
        {
            "influenced": Listing("Influenced genes", "The strongest first, with a column per network."),
            "edges": Listing("Edges", "With standard errors, and whether the reference knows them."),
            "overlap": Listing("Overlap", "Known targets among the top, against chance (hypergeometric)."),
            "enrichment": Listing("Enrichment", "Gene sets and regulons among its edges."),
        },
        ("gene",),
    ),
    "embed": Chapter(
        "Cell embeddings",
        "One vector per cell, in obsm. They are for neighbours and clustering, and have no table.",
        "",
        (),
        {},
    ),
}  # fmt: skip


def chapter_of(key: str) -> Chapter:
    """The chapter of results by their key; else one without words.

    A key begins with the name of its tool, or with ``X_`` where it names vectors in obsm.

    Examples
    --------
    >>> chapter_of("rollout_untuned").title, chapter_of("rollout_matrix").title, chapter_of("mine").title
    ('Attention rollout', 'What genes read from', 'mine')
    """
    if key.startswith("X_"):
        return CHAPTERS["embed"]
    names = [name for name in CHAPTERS if key == name or key.startswith((f"{name}_", f"{name} ", f"{name}-"))]
    return CHAPTERS[max(names, key=len)] if names else Chapter(key, "", "", (), {})
