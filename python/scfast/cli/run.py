"""``scfast run``."""

from __future__ import annotations

from typing import Any

import click

from scfast.cli.analyses import ANALYSES, write
from scfast.cli.console import Console, json_option
from scfast.cli.keeping import ROWS_LEFT_OUT
from scfast.cli.planned import show_plan
from scfast.cli.report import attach, page_option
from scfast.cli.request import Request, request_options


@click.command("run")
@request_options
@page_option
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be run, and stop.")
@json_option
def command(page: bool, dry_run: bool, as_json: bool | None, **options: Any) -> None:
    """Analyse the cells of DATA (.h5ad or .zarr, raw counts, or the word pbmc68k) with a model.

    Writes DATA with the results as h5ad, the tables as CSV, a figure as PNG, and report.html, one page of all
    that. Nothing is truncated to fit attention maps into memory, because no map is ever held.

    What is finished is kept in the output folder: a run that was killed goes on when the same command is
    given again, and its results are the same to the bit. Exit codes: 0 done, 1 an error that its message
    explains, 3 done without cells that could not be run, 73 the output folder is read-only, 74 its disk is
    full, 75 stopped by SIGTERM or SIGUSR1.

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
      scfast run atlas.h5ad --model geneformer:my_model --dask tcp://10.0.0.1:8786 -o results
      scfast run atlas.h5ad --model geneformer:my_model --part $SLURM_ARRAY_TASK_ID/16 -o results
      scfast run cells.h5ad --model geneformer:my_model -o results --dry-run
    """  # noqa: D301
    from scfast.run.disk import writing

    console = Console(as_json)
    out = options["out"]
    request = Request.from_options(options)
    from scfast.run import Clock

    clock = Clock()
    keeping = request.keeping
    if not keeping.worker:
        console.title("Dry run" if dry_run else "Run")
        console.fields(request.described)
        console.event("start", command="run", dry_run=dry_run, **request.described)
    if dry_run:
        show_plan(console, keeping.plan(lambda: request.compute(False), 0.0), keeping.processes)
        return
    progress = console.interactive and not keeping.worker
    left_out = keeping.compute(lambda: request.compute(progress), console, request.device)
    if keeping.worker:
        return
    adata = request.adata
    if request.on_disk is not None:
        adata.X = None  # the results alone: the counts are on disk already
    missing = (
        [f"{len(left_out)} shards of cells could not be run: they are in no result."] if left_out else []
    )
    facts = {name: request.described[name] for name in ("data", "model", "analysis", "device", "memory")}
    with writing(out):
        files = write(request.analysis, adata, out, request.on_disk)
        files += attach(out, console, console.elapsed, facts=facts, warnings=missing, page=page)
    show = ANALYSES[request.analysis].show
    if show is not None:
        show(console, adata)
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    stages = keeping.stages(clock)
    console.note(stages.describe())
    console.event("stages", **stages.as_dict())
    console.event("done", files=list(map(str, files)), left_out=left_out)
    if left_out:
        console.note(
            f"{len(left_out)} shards could not be run; `scfast status {out}` says why, and the same command with"
            " --retry tries them again"
        )
        raise SystemExit(ROWS_LEFT_OUT)
    keeping.finish()
