"""``scfast run``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from scfast.cli.analyses import ANALYSES, check_models, check_needed, check_options, run, write
from scfast.cli.console import Console, json_option
from scfast.cli.keeping import ROWS_LEFT_OUT, Keeping, keeping_options


@click.command("run")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="KIND:FOLDER, such as geneformer:models/V2-104M.")
@click.option(
    "--model-option",
    "model_options",
    multiple=True,
    help="NAME=VALUE: how models are loaded, such as species=mouse.  [scfast.models.load]",
)
@click.option(
    "--analysis",
    type=click.Choice(list(ANALYSES)),
    default="rollout",
    show_default=True,
    help="What to compute.",
)
@click.option("--groupby", help="Column of obs: a ranking of genes for each group.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option("--readout", help="cls, mean or gene:NAME.  [default: as the model's authors]")
@click.option("--layers", help="prefix, suffix, or FIRST-LAST such as 0-2.  [default: all]")
@click.option(
    "--by", type=click.Choice(["layer", "head"]), help="received, relevance: also for each layer or head."
)
@click.option("--target", help="relevance: class:NAME of a fine-tuned model, or gene:NAME.")
@click.option(
    "--method",
    type=click.Choice(["chefer-mm", "row-normalised", "gradient-attention", "attribution"]),
    default="chefer-mm",
    show_default=True,
    help="relevance: how gradients weigh attention.",
)
@click.option(
    "--against",
    multiple=True,
    help="rank_profile, attention_shift, layers_report: KIND:FOLDER of another model, compared with --model.",
)
@click.option(
    "--genes",
    help="rollout_matrix: genes that read; rank_profile: whose rank is marked; probe: whose tokens are read;"
    " similarity: whose mean states are compared, or the word all; as A,B,C"
    " or a file of names.",
)
@click.option(
    "--sources", help="rollout_matrix: genes that are read from, as A,B,C or a file of names.  [default: all]"
)
@click.option(
    "--quantiles", type=int, help="rank_profile: a profile for each of so many bins of cell length."
)
@click.option(
    "--equal-length", help="rank_profile: thin every cell to so many genes, or to the shortest cell's."
)
@click.option("--labels", help="probe, layers_report: columns of obs to be read from the states, as A,B,C.")
@click.option("--positions", help="probe: places in the encoding to read alone, from 1, as 1,5,20.")
@click.option(
    "--folds", default=5, show_default=True, help="probe, layers_report: folds of cross-validation."
)
@click.option("--cell", help="similarity: one cell, by its name in obs, of which all tokens are compared.")
@click.option(
    "--min-cells", default=10, show_default=True, help="similarity: genes in fewer cells are left out."
)
@click.option("--highlight", help="key_genes: a gene set to mark, as A,B,C or a file of names.")
@click.option("--gene-symbols", help="Column of var with the names in --genes, --sources and --highlight.")
@click.option("--replicate-key", help="Column of obs (donor, batch): errors are between replicates.")
@click.option(
    "--null/--no-null", "null", default=True, help="Also run the untrained model beside.  [default: yes]"
)
@click.option("--stream", is_flag=True, help="Leave the counts on disk and read 4,096 cells at a time.")
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--device", help="cuda, cuda:N or cpu.  [default: cuda where there is a GPU, else cpu]")
@click.option(
    "--memory", help="What the run may use beyond the data.  [default: 2GB; on a GPU, what is free there]"
)
@click.option("--seed", default=0, show_default=True, help="Of the untrained model.")
@keeping_options
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and stop.")
@json_option
def command(
    data: Path,
    model: str,
    model_options: tuple[str, ...],
    analysis: str,
    out: Path,
    counts_layer: str | None,
    stream: bool,
    device: str | None,
    memory: str | None,
    dry_run: bool,
    as_json: bool | None,
    **options: Any,
) -> None:
    """Analyse the cells of DATA (.h5ad or .zarr, raw counts, or the word pbmc68k) with a model.

    Writes DATA with the results as h5ad, the tables as CSV and a figure as PNG. Nothing is truncated to
    fit attention maps into memory, because no map is ever held.

    What is finished is kept in the output folder: a run that was killed goes on when the same command is
    given again, and its results are the same to the bit. Exit codes: 0 done, 1 an error that its message
    explains, 3 done without cells that could not be run, 75 stopped by SIGTERM or SIGUSR1.

    \b
    Examples:
      scfast run cells.h5ad --model geneformer:Geneformer-V2-104M --groupby cell_type -o results
      scfast run cells.h5ad --model geneformer:my_model --groupby cell_type --replicate-key donor -o results
      scfast run cells.h5ad --model scgpt:scGPT_human --groupby cell_type -o results
      scfast run cells.h5ad --model geneformer:my_model --readout gene:TP53 --no-null -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis rollout_matrix --genes tfs.txt -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis received --by layer -o results
      scfast run cells.h5ad --model geneformer:base --analysis rank_profile --against geneformer:tuned -o results
      scfast run cells.h5ad --model geneformer:base --analysis attention_shift --against geneformer:tuned -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis key_genes --highlight p53.txt -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis attention_norms -o results
      scfast run cells.h5ad --model geneformer:tuned --analysis relevance --target class:high -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis probe --labels cell_type,donor -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis similarity --groupby cell_type -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis similarity --genes markers.txt -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis layers_report --labels cell_type -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis embed -o results
      scfast run cells.h5ad --model uce:UCE --model-option species=mouse --model-option seed=1 -o results
      scfast run cells.h5ad --model geneformer:my_model --device cuda:1 --memory 20GB -o results
      scfast run atlas.h5ad --model geneformer:my_model --workers 4 -o results
      scfast run atlas.h5ad --model geneformer:my_model --part $SLURM_ARRAY_TASK_ID/16 -o results
      scfast run cells.h5ad --model geneformer:my_model -o results --dry-run
    """  # noqa: D301
    from scfast import models
    from scfast.cli.data import load
    from scfast.run import DEFAULT_MEMORY, default_device, parse_memory, resolve_device

    console = Console(as_json)
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
    wanted = [parse_model("--model", model), *(parse_model("--against", text) for text in options["against"])]
    check_models(analysis, len(wanted))
    loading = parse_model_options(model_options)
    adata = load(data, stream=stream, counts_layer=counts_layer)
    counts_layer = None if stream else counts_layer
    for option in ("groupby", "replicate_key"):
        if options[option] is not None and options[option] not in adata.obs:
            flag = f"--{option.replace('_', '-')} {options[option]}"
            raise KeyError(f"{flag} is no column of obs; there are {', '.join(adata.obs.columns)}")
    sources = dict(
        zip(
            _called(wanted),
            (models.load(kind, folder, **loading).to(where) for kind, folder in wanted),
            strict=True,
        )
    )
    source, groupby = next(iter(sources.values())), options["groupby"]
    groups = f"{adata.obs[groupby].nunique()} groups of {groupby}" if groupby else "all cells as one group"
    described = {
        "data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes",
        "model": f"{source.name}: {source.n_layers} layers, {source.n_heads} heads, up to "
        f"{source.max_tokens} tokens",
        "genes": source.gene_report(adata.var) or "as the tokeniser says",
        "analysis": ANALYSES[analysis].describe(options | {"groups": groups}, source),
        "device": str(source.device),
        "memory": memory or (DEFAULT_MEMORY if source.device.type == "cpu" else "what is free on the GPU"),
        "output": str(out),
        "kept": keeping.describe(),
    }
    if not keeping.worker:
        console.title("Dry run" if dry_run else "Run")
        console.fields(described)
        console.event("start", command="run", dry_run=dry_run, **described)
    if dry_run:
        return
    progress = console.interactive and not keeping.worker
    common: dict[str, Any] = {"counts_layer": counts_layer, "memory": memory, "progress": progress}
    left_out = keeping.compute(
        lambda: run(analysis, adata, sources, parsed, common), console, source.device.type
    )
    if keeping.worker:
        return
    if stream:
        adata.X = None  # the results alone: the counts are on disk already
    files = write(analysis, adata, out)
    show = ANALYSES[analysis].show
    if show is not None:
        show(console, adata)
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=list(map(str, files)), left_out=left_out)
    if left_out:
        console.note(f"{len(left_out)} shards could not be run; `scfast status {out}` says why")
        raise SystemExit(ROWS_LEFT_OUT)
    keeping.finish()


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


def parse_layers(text: str | None) -> tuple[int, int] | str | None:
    """The value of ``--layers``.

    Examples
    --------
    >>> parse_layers("prefix"), parse_layers("0-2"), parse_layers(None)
    ('prefix', (0, 2), None)
    """
    if text is None or text in ("prefix", "suffix"):
        return text
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise ValueError(f"--layers {text} must be prefix, suffix, or FIRST-LAST counted from 0, such as 0-2")
    return int(match[1]), int(match[2])


def parse_names(text: str | None) -> list[str] | None:
    """Names separated by commas, or the names in a file.

    Examples
    --------
    >>> parse_names("CD3E, LYZ"), parse_names(None)
    (['CD3E', 'LYZ'], None)
    """
    if text is None:
        return None
    if Path(text).is_file():
        from scfast import io

        return io.read_vocabulary(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_positions(text: str | None) -> list[int]:
    """The value of ``--positions``.

    Examples
    --------
    >>> parse_positions("1, 5,20"), parse_positions(None)
    ([1, 5, 20], [])
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--positions {text} must be places from 1, such as 1,5,20")
    return [int(part) for part in parts]


def parse_length(text: str | None) -> int | str | None:
    """The value of ``--equal-length``.

    Examples
    --------
    >>> parse_length("200"), parse_length("shortest")
    (200, 'shortest')
    """
    if text is None or text == "shortest":
        return text
    if not text.isdecimal():
        raise ValueError(f"--equal-length {text} must be a number of genes, or shortest")
    return int(text)


def parse_model(option: str, text: str) -> tuple[str, str]:
    """Kind and folder of a model.

    Examples
    --------
    >>> parse_model("--model", "geneformer:models/V1")
    ('geneformer', 'models/V1')
    """
    kind, _, folder = text.partition(":")
    if not kind or not folder:
        raise ValueError(f"{option} {text} must be KIND:FOLDER, such as geneformer:models/V2-104M")
    return kind, folder


def parse_model_options(texts: Sequence[str]) -> dict[str, str | int | float]:
    """The values of ``--model-option``; what reads as a number is one.

    Examples
    --------
    >>> parse_model_options(["species=mouse", "seed=3"])
    {'species': 'mouse', 'seed': 3}
    """
    options: dict[str, str | int | float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value:
            raise ValueError(f"--model-option {text} must be NAME=VALUE, such as species=mouse")
        if re.fullmatch(r"-?\d+", value):
            options[name] = int(value)
        else:
            options[name] = float(value) if re.fullmatch(r"-?\d*\.\d+", value) else value
    return options
