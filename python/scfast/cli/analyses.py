"""What ``scfast run --analysis`` offers: which options each takes, and what it says, prints and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfast.cli import concepts, tables

if TYPE_CHECKING:
    from anndata import AnnData

    from scfast.cli.console import Console
    from scfast.io.carried import CellsOnDisk
    from scfast.models import AttentionSource

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Analysis:
    """One analysis of the command line; its name is that of the tool, of the plot, and of the results in ``uns``.

    Attributes
    ----------
    takes
        Options that mean something to it, beside those of every analysis: the tool's arguments of the same names, and
        ``against`` for tools that take several models.
    n_models
        Models that the tool takes as its first arguments; None: any number, as one mapping.
    describe
        What will be done; ``groups`` among the options says over which cells.
    show
        Prints the gist.
    files
        Tables in the results (a slash: in a part of them) -> stem of a CSV file, and whether the index is written too.
    figure
        File of its plot.
    compute
        Runs it, where it is more than the tool of its name with these options.
    draw
        Draws it, where it is more than one plot of its name; returns the files.
    """

    takes: frozenset[str]
    describe: Callable[[Options, AttentionSource], str]
    show: Callable[[Console, AnnData], None] | None = None
    files: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    figure: str | None = None
    n_models: int | None = 1
    compute: Callable[[AnnData, Mapping[str, AttentionSource], Options, dict[str, Any]], None] | None = None
    draw: Callable[[AnnData, Path], list[Path]] | None = None


def check_options(name: str, given: Iterable[str]) -> None:
    """Refuse options that mean nothing to an analysis: they would be overlooked in silence.

    Examples
    --------
    >>> check_options("embed", ["quantiles"])
    Traceback (most recent call last):
    ValueError: --quantiles means nothing to --analysis embed; it belongs to rank_profile
    """
    for option in given:
        owners = [other for other, analysis in ANALYSES.items() if option in analysis.takes]
        if owners and name not in owners:
            flag = option.replace("_", "-")
            raise ValueError(
                f"--{flag} means nothing to --analysis {name}; it belongs to {', '.join(owners)}"
            )


def check_models(name: str, given: int) -> None:
    """Refuse more or fewer models than an analysis compares.

    Examples
    --------
    >>> check_models("attention_shift", 1)
    Traceback (most recent call last):
    ValueError: --analysis attention_shift compares 2 models and 1 is named: --model is one, --against the other
    """
    wanted = ANALYSES[name].n_models
    if wanted == 2 and given != wanted:
        raise ValueError(
            f"--analysis {name} compares 2 models and {given} {'is' if given == 1 else 'are'} named: --model is one,"
            " --against the other"
        )
    if name == "layers_report" and given > 2:
        raise ValueError(
            f"--analysis {name} takes one --against, to which attention shifts, and {given - 1} are named"
        )


def check_needed(name: str, options: Options) -> None:
    """Refuse a gradient without a target, a matrix without genes, and probes of nothing."""
    if name == "relevance" and options["target"] is None:
        raise ValueError("--analysis relevance needs --target class:NAME or gene:NAME")
    if name == "rollout_matrix" and options["genes"] is None:
        raise ValueError("--analysis rollout_matrix needs --genes, as A,B,C or a file of names")
    if name == "probe" and not options["labels"]:
        raise ValueError("--analysis probe needs --labels A,B, columns of obs")


def run(
    name: str, adata: AnnData, models: Mapping[str, AttentionSource], options: Options, common: dict[str, Any]
) -> None:
    """Run the tool of that name with the options that it takes; the first model is ``--model``."""
    from scfast import tl

    if (compute := ANALYSES[name].compute) is not None:
        compute(adata, models, options, common)
        return
    takes = ANALYSES[name].takes
    arguments = {option: options[option] for option in takes - {"against"}}
    if "null" in takes:
        arguments["null"] = "untrained" if options["null"] else None
    wanted = ANALYSES[name].n_models
    taken = [models] if wanted is None else list(models.values())[:wanted]
    getattr(tl, name)(adata, *taken, **arguments, **common)


def write(name: str, adata: AnnData, out: Path, cells: CellsOnDisk | None = None) -> list[Path]:
    """Write the cells, with what else is known of them on disk, and the analysis' tables and figure."""
    from scfast import io, pl

    analysis = ANALYSES[name]
    files = [io.write_h5ad(adata, out / "cells.h5ad", cells=cells)]
    for table, (stem, index) in analysis.files.items():
        *folders, last = table.split("/")
        results = reduce(lambda part, folder: part.get(folder, {}), folders, adata.uns[name])
        if last in results:
            files.append(out / f"{stem}.csv")
            results[last].to_csv(files[-1], index=index, float_format="%.6g")
    if analysis.figure is not None:
        files.append(out / analysis.figure)
        getattr(pl, name)(adata, show=False, save=files[-1])
    return files if analysis.draw is None else [*files, *analysis.draw(adata, out)]


def _beside(options: Options) -> str:
    return ", beside the untrained model" if options["null"] else ""


def _rollout(options: Options, model: AttentionSource) -> str:
    readout, layers = options["readout"] or model.default_readout, options["layers"] or "all"
    return f"rollout of {readout} through {layers} layers; {options['groups']}{_beside(options)}"


def _rollout_matrix(options: Options, model: AttentionSource) -> str:
    layers, genes = options["layers"] or "all", options["genes"].count(",") + 1
    genes = f"{genes} genes" if genes > 1 else options["genes"]
    return f"what {genes} read through {layers} layers; {options['groups']}{_beside(options)}"


def _received(options: Options, model: AttentionSource) -> str:
    by = f", by {options['by']}" if options["by"] else ""
    return f"attention received by each gene{by}; {options['groups']}{_beside(options)}"


def _attention_norms(options: Options, model: AttentionSource) -> str:
    readout = options["readout"] or model.default_readout
    return f"GlobEnc of {readout}, mixing ratios and norms per head; {options['groups']}{_beside(options)}"


def _relevance(options: Options, model: AttentionSource) -> str:
    return f"{options['method']} relevance of genes for {options['target']}; {options['groups']}"


def _rank_profile(options: Options, model: AttentionSource) -> str:
    against = f", and its change to {', '.join(options['against'])}" if options["against"] else ""
    return f"attention received at each rank{against}; {options['groups']}"


def _attention_shift(options: Options, model: AttentionSource) -> str:
    return (
        f"how attention shifts to {options['against'][0]}, by layer, head, gene and rank; {options['groups']}"
    )


def _key_genes(options: Options, model: AttentionSource) -> str:
    return f"genes that receive most attention over all cells; ranks in {options['groups']}{_beside(options)}"


def _probe(options: Options, model: AttentionSource) -> str:
    return f"probes of {options['labels']} after each of {model.n_layers} layers, in {options['folds']} folds"


_SCORED = {"table": ("genes", False), "groups": ("groups", True)}
ANALYSES = {
    "rollout": Analysis(
        frozenset({"readout", "groupby", "replicate_key", "layers", "null", "seed"}),
        _rollout,
        lambda console, adata: tables.show_top_genes(
            console, adata.uns["rollout"], "Genes with the largest share of attention"
        ),
        _SCORED,
        "top_genes.png",
    ),
    "rollout_matrix": Analysis(
        frozenset({"genes", "sources", "gene_symbols", "groupby", "layers", "null", "seed"}),
        _rollout_matrix,
        lambda console, adata: tables.show_pairs(console, adata.uns["rollout_matrix"]),
        {"table": ("gene_pairs", False), "targets": ("targets", False)},
        "rollout_matrix.png",
    ),
    "received": Analysis(
        frozenset({"groupby", "replicate_key", "by", "null", "seed"}),
        _received,
        lambda console, adata: tables.show_top_genes(
            console, adata.uns["received"], "Genes that receive most attention"
        ),
        _SCORED,
        "top_genes.png",
    ),
    "attention_norms": Analysis(
        frozenset({"readout", "groupby", "replicate_key", "null", "seed"}),
        _attention_norms,
        lambda console, adata: tables.show_top_genes(
            console, adata.uns["attention_norms"], "Genes whose vectors are carried furthest"
        ),
        {**_SCORED, "heads": ("heads", False), "layers": ("layers", False)},
        "heads.png",
    ),
    "relevance": Analysis(
        frozenset({"target", "method", "readout", "groupby", "replicate_key", "by", "seed"}),
        _relevance,
        lambda console, adata: tables.show_top_genes(
            console, adata.uns["relevance"], "Genes that the prediction depends on"
        ),
        _SCORED,
        "top_genes.png",
    ),
    "rank_profile": Analysis(
        frozenset({"against", "groupby", "genes", "gene_symbols", "quantiles", "equal_length", "seed"}),
        _rank_profile,
        lambda console, adata: tables.show_rank_profile(console, adata.uns["rank_profile"]),
        {"table": ("ranks", False), "lengths": ("lengths", False), "genes": ("marked_genes", False)},
        "rank_profile.png",
        n_models=None,
    ),
    "attention_shift": Analysis(
        frozenset({"against", "groupby", "replicate_key"}),
        _attention_shift,
        None,
        {
            "cosine": ("cosines", False),
            "genes": ("genes", False),
            "ranks": ("ranks", False),
            "groups": ("groups", True),
        },
        "attention_shift.png",
        n_models=2,
    ),
    "key_genes": Analysis(
        frozenset({"groupby", "highlight", "gene_symbols", "null", "seed"}),
        _key_genes,
        lambda console, adata: tables.show_key_genes(console, adata.uns["key_genes"]),
        {
            "table": ("key_genes", False),
            "correlations": ("correlations", True),
            "highlight": ("highlight", True),
        },
        "key_genes.png",
    ),
    "probe": Analysis(
        frozenset({"labels", "positions", "genes", "gene_symbols", "replicate_key", "folds", "seed"}),
        _probe,
        lambda console, adata: tables.show_probes(console, adata.uns["probe"]),
        {
            "table": ("probes", False),
            "classes": ("classes", False),
            "tokens": ("tokens", False),
            "transfer": ("transfer", False),
        },
        "probe.png",
    ),
    "similarity": Analysis(
        frozenset({"readout", "groupby", "replicate_key", "genes", "gene_symbols", "cell", "min_cells"}),
        concepts.describe_similarity,
        concepts.show_similarity,
        {
            "table": ("layers", False),
            "groups": ("groups", True),
            "tokens": ("tokens", False),
            "genes/neighbors": ("nearest_genes", False),
        },
        compute=concepts.run_similarity,
        draw=concepts.draw_similarity,
    ),
    "layers_report": Analysis(
        frozenset({"readout", "labels", "replicate_key", "folds", "against", "seed"}),
        concepts.describe_layers_report,
        concepts.show_layers_report,
        {"table": ("layers_report", False), "labels": ("gain_stops", True)},
        n_models=None,
        compute=concepts.run_layers_report,
        draw=concepts.draw_layers_report,
    ),
    "embed": Analysis(frozenset(), lambda options, model: "one vector per cell"),
}
