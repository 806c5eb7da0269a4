"""``scfast run --analysis similarity`` and ``layers_report``: what they compute, print and draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scfast.cli.console import Console
    from scfast.models import AttentionSource

Options = Mapping[str, Any]
Models = Mapping[str, "AttentionSource"]


def describe_similarity(options: Options, model: AttentionSource) -> str:
    """What will be compared."""
    genes = f", {options['genes']} by their mean states" if options["genes"] else ""
    return (
        f"how alike {model.n_layers + 1} layers and the tokens of each cell are{genes}; {options['groups']}"
    )


def describe_layers_report(options: Options, model: AttentionSource) -> str:
    """What will be put together."""
    probes = f", probes of {options['labels']}" if options["labels"] else ""
    shift = f", shift of attention to {options['against'][0]}" if options["against"] else ""
    return f"what each of {model.n_layers} layers adds: similarity{probes}{shift}"


def run_similarity(adata: AnnData, models: Models, options: Options, common: dict[str, Any]) -> None:
    """The tool, with ``--genes all`` as it takes it."""
    from scfast import tl

    names = ("readout", "groupby", "replicate_key", "cell", "gene_symbols", "min_cells")
    genes = "all" if options["genes"] == ["all"] else options["genes"]
    tl.similarity(
        adata, next(iter(models.values())), genes=genes, **{name: options[name] for name in names}, **common
    )


def run_layers_report(adata: AnnData, models: Models, options: Options, common: dict[str, Any]) -> None:
    """Similarity, probes where there are labels, shift where there is another model; then the report."""
    from scfast import tl

    model, *others = models.values()
    replicates = {"replicate_key": options["replicate_key"]}
    tl.similarity(adata, model, readout=options["readout"], tokens=False, **replicates, **common)
    if options["labels"]:
        asked = {name: options[name] for name in ("folds", "seed")}
        tl.probe(adata, model, options["labels"], **asked, **replicates, **common)
    for other in others:
        tl.attention_shift(adata, model, other, **replicates, **common)
    tl.layers_report(
        adata, probe="probe" if options["labels"] else None, shift="attention_shift" if others else None
    )


def draw_similarity(adata: AnnData, out: Path) -> list[Path]:
    """Layers, tokens, and genes and a cell where they were asked for."""
    from scfast import pl

    results = adata.uns["similarity"]
    symbols = results["params"].get("gene_symbols")
    files = [out / "layers.png", out / "token_similarity.png"]
    pl.layer_map(adata, show=False, save=files[0])
    pl.similarity_distribution(adata, groups=list(results["token_groups"]), show=False, save=files[1])
    if "similarity" in results.get("genes", {}):
        files.append(out / "gene_similarity.png")
        pl.clustermap(adata, gene_symbols=symbols, show=False, save=files[-1])
    if "cell" in results:
        files.append(out / "cell_similarity.png")
        pl.similarity_heatmap(adata, of="cell", gene_symbols=symbols, show=False, save=files[-1])
    return files


def draw_layers_report(adata: AnnData, out: Path) -> list[Path]:
    """The map of layers, and the probes."""
    from scfast import pl

    files = [out / "layers.png"]
    pl.layer_map(adata, show=False, save=files[0])
    if "probe" in adata.uns["layers_report"]["params"]:
        files.append(out / "probe.png")
        pl.probe(adata, show=False, save=files[-1])
    return files


def show_similarity(console: Console, adata: AnnData) -> None:
    """Blocks of layers in each group, and how alike tokens are at each layer."""
    results = adata.uns["similarity"]
    rows = []
    for name, about in results["groups"].iterrows():
        values = {column: int(about[column]) for column in ("cells", "blocks", "last_block")}
        rows.append(
            [
                name,
                f"{values['cells']:,}",
                values["blocks"],
                f"{about['silhouette']:.2f}",
                values["last_block"],
            ]
        )
        console.event("group", None, group=str(name), silhouette=float(about["silhouette"]), **values)
    console.title("Blocks of layers")
    console.table(["group", "cells", "blocks", "silhouette", "last block from layer"], rows)
    tokens: pd.DataFrame = results["tokens"]
    whole = tokens[(tokens["group"] == "all").to_numpy()]
    kinds = list(tokens["pair"].cat.categories)
    rows = []
    for layer, part in whole.groupby("layer"):
        mean = {str(row.pair): float(row.mean) for row in part.itertuples()}
        zeros = int(part["zeros"].max())
        rows.append([layer, *(f"{mean[kind]:.3f}" for kind in kinds), zeros])
        console.event("tokens", None, layer=int(layer), zeros=zeros, **mean)  # type: ignore[call-overload]
    console.title("Mean cosine of two tokens of a cell, all cells")
    console.table(["layer", *kinds, "tokens of 0"], rows)
    near = results.get("genes", {}).get("neighbors")
    if near is not None:
        last = near[(near["layer"] == near["layer"].iloc[-1]).to_numpy() & (near["rank"] == 1).to_numpy()]
        top = last.sort_values("similarity", ascending=False, kind="stable").head(6)
        console.title("Most similar genes, last layer")
        console.table(
            ["gene", "nearest", "cosine"],
            [[row.gene, row.neighbor, f"{row.similarity:.3f}"] for row in top.itertuples()], left=2,
        )  # fmt: skip


def show_layers_report(console: Console, adata: AnnData) -> None:
    """What each layer adds, which could go, and where gain stops."""
    results = adata.uns["layers_report"]
    table: pd.DataFrame = results["table"]
    gains = [name for name in table if str(name).startswith("gain_") and not str(name).startswith("gain_se_")]
    numbers = ["change", "to_last", *gains, *(["shift"] if "shift" in table else [])]
    rows = []
    for row in table.to_dict("records"):
        values = {str(name): float(row[name]) for name in numbers}
        candidate = bool(row["candidate"])
        shown = [f"{x:+.3f}" if name in gains else f"{x:.3f}" for name, x in values.items()]
        rows.append([int(row["layer"]), int(row["block"]), *shown, "could go" if candidate else ""])
        console.event(
            "layer", None, layer=int(row["layer"]), block=int(row["block"]), candidate=candidate, **values
        )
    console.title("What each layer adds")
    console.table(["layer", "block", *(str(name).replace("_", " ") for name in numbers), ""], rows)
    if "labels" in results:
        for label, about in results["labels"].iterrows():
            best, stops = int(about["best"]), int(about["stops"])
            console.event("label", None, label=str(label), best=best, stops=stops, f1=float(about["f1_best"]))
            console.note(
                f"{label}: F1 is best after layer {best} ({about['f1_best']:.2f}); within its error from layer {stops}"
                f" on ({about['f1_stops']:.2f})"
            )
