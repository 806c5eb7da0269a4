"""What is asked of ``scfast run`` and of ``scfast plan``: which cells, which models, which analysis, how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from scfast.cli.analyses import ANALYSES, check_models, check_needed, check_options, run
from scfast.cli.keeping import Keeping, keeping_options
from scfast.cli.parsing import (
    parse_layers,
    parse_length,
    parse_model,
    parse_model_options,
    parse_names,
    parse_positions,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from scfast.io.carried import CellsOnDisk
    from scfast.models import AttentionSource


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that was asked for, checked and loaded.

    Attributes
    ----------
    analysis
        Its name.
    adata
        The cells.
    sources
        The models on their device, by name; that of ``--model`` is the first.
    options
        Of the analysis.
    common
        Arguments of every tool, but for ``progress``.
    on_disk
        Where the cells are, when their counts stay on disk: only the columns of obs that are asked for are read.
    keeping
        How the run is kept and shared.
    described
        What will be done, in words.
    """

    analysis: str
    adata: AnnData
    sources: Mapping[str, AttentionSource]
    options: Mapping[str, Any]
    common: Mapping[str, Any]
    on_disk: CellsOnDisk | None
    keeping: Keeping
    described: dict[str, str]

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Request:
        """Check what :func:`request_options` took, and load cells and models."""
        from scfast import models
        from scfast.cli.data import load
        from scfast.io.carried import CellsOnDisk
        from scfast.run import DEFAULT_MEMORY, default_device, parse_memory, resolve_device

        data, out, analysis, memory = (options.pop(name) for name in ("data", "out", "analysis", "memory"))
        model, model_options, device = (options.pop(name) for name in ("model", "model_options", "device"))
        stream, counts_layer, cells = (options.pop(name) for name in ("stream", "counts_layer", "where"))
        keeping = Keeping.from_options(out, options)
        check_options(analysis, _typed())
        check_needed(analysis, options)
        parsed = options | {
            "layers": parse_layers(options["layers"]),
            "genes": parse_names(options["genes"]),
            "sources": parse_names(options["sources"]),
            "highlight": parse_names(options["highlight"]),
            "labels": parse_names(options["labels"]),
            "positions": parse_positions(options["positions"]),
            "equal_length": parse_length(options["equal_length"]),
        }
        if memory is not None:
            parse_memory(memory)
        where = default_device() if device is None else resolve_device(device)
        wanted = [
            parse_model("--model", model),
            *(parse_model("--against", text) for text in options["against"]),
        ]
        check_models(analysis, len(wanted))
        loading = parse_model_options(model_options)
        of_obs = [parsed["groupby"], parsed["replicate_key"], *(parsed["labels"] or [])]
        columns = None if parsed["cell"] else [name for name in of_obs if name]  # a cell is found by its name
        adata = load(data, stream=stream, counts_layer=counts_layer, where=cells, obs=columns)
        on_disk = CellsOnDisk(data, getattr(adata.X, "rows", None)) if hasattr(adata.X, "group") else None
        counts_layer = None if stream else counts_layer
        for option in ("groupby", "replicate_key"):
            if options[option] is not None and options[option] not in adata.obs:
                flag = f"--{option.replace('_', '-')} {options[option]}"
                raise KeyError(f"{flag} is no column of obs; there are {', '.join(adata.obs.columns)}")
        loaded = (models.load(kind, folder, **loading).to(where) for kind, folder in wanted)
        sources = dict(zip(_called(wanted), loaded, strict=True))
        source, groupby = next(iter(sources.values())), options["groupby"]
        groups = (
            f"{adata.obs[groupby].nunique()} groups of {groupby}" if groupby else "all cells as one group"
        )
        described = {
            "data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes",
            "model": f"{source.name}: {source.n_layers} layers, {source.n_heads} heads, up to "
            f"{source.max_tokens} tokens",
            "genes": source.gene_report(adata.var) or "as the tokeniser says",
            "analysis": ANALYSES[analysis].describe(options | {"groups": groups}, source),
            "device": str(source.device),
            "memory": memory
            or (DEFAULT_MEMORY if source.device.type == "cpu" else "what is free on the GPU"),
            "output": str(out),
            "kept": keeping.describe(),
        }
        common = {"counts_layer": counts_layer, "memory": memory}
        return cls(analysis, adata, sources, parsed, common, on_disk, keeping, described)

    @property
    def device(self) -> str:
        """The kind of device on which the models are."""
        return next(iter(self.sources.values())).device.type

    def compute(self, progress: bool | None) -> None:
        """Run the tool; the results are in ``adata``."""
        run(self.analysis, self.adata, self.sources, self.options, {**self.common, "progress": progress})


def request_options(function: Any) -> Any:
    """The options of :class:`Request`."""
    options = (
        click.argument("data", type=click.Path(path_type=Path)),
        click.option("--model", required=True, help="KIND:FOLDER, such as geneformer:models/V2-104M."),
        click.option(
            "--model-option",
            "model_options",
            multiple=True,
            help="NAME=VALUE: how models are loaded, such as species=mouse.  [scfast.models.load]",
        ),
        click.option(
            "-o",
            "--output",
            "out",
            type=click.Path(path_type=Path),
            required=True,
            help="Folder for the results.",
        ),
        click.option(
            "--analysis",
            type=click.Choice(list(ANALYSES)),
            default="rollout",
            show_default=True,
            help="What to compute.",
        ),
        click.option("--groupby", help="Column of obs: a ranking of genes for each group."),
        click.option("--readout", help="cls, mean or gene:NAME.  [default: as the model's authors]"),
        click.option("--layers", help="prefix, suffix, or FIRST-LAST such as 0-2.  [default: all]"),
        click.option(
            "--by",
            type=click.Choice(["layer", "head"]),
            help="received, relevance: also for each layer or head.",
        ),
        click.option("--target", help="relevance: class:NAME of a fine-tuned model, or gene:NAME."),
        click.option(
            "--method",
            type=click.Choice(["chefer-mm", "row-normalised", "gradient-attention", "attribution"]),
            default="chefer-mm",
            show_default=True,
            help="relevance: how gradients weigh attention.",
        ),
        click.option(
            "--against",
            multiple=True,
            help="rank_profile, attention_shift, layers_report: KIND:FOLDER of another model, compared with --model.",
        ),
        click.option(
            "--genes",
            help="rollout_matrix: genes that read; rank_profile: whose rank is marked; probe: whose tokens are read;"
            " similarity: whose mean states are compared, or the word all; as A,B,C"
            " or a file of names.",
        ),
        click.option(
            "--sources",
            help="rollout_matrix: genes that are read from, as A,B,C or a file of names.  [default: all]",
        ),
        click.option(
            "--quantiles", type=int, help="rank_profile: a profile for each of so many bins of cell length."
        ),
        click.option(
            "--equal-length",
            help="rank_profile: thin every cell to so many genes, or to the shortest cell's.",
        ),
        click.option(
            "--labels", help="probe, layers_report: columns of obs to be read from the states, as A,B,C."
        ),
        click.option("--positions", help="probe: places in the encoding to read alone, from 1, as 1,5,20."),
        click.option(
            "--folds", default=5, show_default=True, help="probe, layers_report: folds of cross-validation."
        ),
        click.option(
            "--cell", help="similarity: one cell, by its name in obs, of which all tokens are compared."
        ),
        click.option(
            "--min-cells",
            default=10,
            show_default=True,
            help="similarity: genes in fewer cells are left out.",
        ),
        click.option("--highlight", help="key_genes: a gene set to mark, as A,B,C or a file of names."),
        click.option(
            "--gene-symbols", help="Column of var with the names in --genes, --sources and --highlight."
        ),
        click.option("--replicate-key", help="Column of obs (donor, batch): errors are between replicates."),
        click.option(
            "--null/--no-null",
            "null",
            default=True,
            help="Also run the untrained model beside.  [default: yes]",
        ),
        click.option(
            "--stream", is_flag=True, help="Leave the counts on disk and read 2,048 cells at a time."
        ),
        click.option(
            "--where",
            help="Which cells: a condition on columns of obs, such as \"cell_type == 'B'\".  [default: all]",
        ),
        click.option("--counts-layer", help="Layer that holds the counts.  [default: X]"),
        click.option("--device", help="cuda, cuda:N or cpu.  [default: cuda where there is a GPU, else cpu]"),
        click.option(
            "--memory",
            help="What the run may use beyond the data.  [default: 2GB; on a GPU, what is free there]",
        ),
        click.option("--seed", default=0, show_default=True, help="Of the untrained model."),
        keeping_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _called(wanted: list[tuple[str, str]]) -> list[str]:
    """A name for each model: that of its folder, numbered where several have one name."""
    names = [Path(folder).resolve().name for _, folder in wanted]
    return [
        f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _typed() -> list[str]:
    """Options that stand on the command line, rather than at their defaults."""
    context = click.get_current_context()
    return [
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
