"""``scfast bench``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scfast.cli.console import Console, dry_run_option, json_option

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@click.command("bench")
@click.option("--tune", is_flag=True, help="Look for the fastest tiles of this GPU's kernels.")
@click.option("--device", help="cuda, cuda:N or cpu.  [default: cuda where there is a GPU, else cpu]")
@click.option("--cells", default=1, show_default=True, help="Cells of the batch that is timed.")
@click.option("--tokens", default=2048, show_default=True, help="Of each cell.")
@click.option("--heads", default=4, show_default=True)
@click.option(
    "--dim", "dims", type=int, multiple=True, help="Of a head; with --tune several.  [default: 64; 64, 128]"
)
@click.option(
    "--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True,
    help="With --tune several.  [default: float32; bfloat16]",
)  # fmt: skip
@click.option("--visit", "visits", multiple=True, help="With --tune: of these alone.  [default: all]")
@click.option(
    "--seconds", default=1500.0, show_default=True, help="With --tune: begin nothing more after so long."
)
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), help="With --tune: write the rows to this file."
)
@dry_run_option
@json_option
def command(
    tune: bool,
    device: str | None,
    cells: int,
    tokens: int,
    heads: int,
    dims: tuple[int, ...],
    dtypes: tuple[str, ...],
    visits: tuple[str, ...],
    seconds: float,
    out: Path | None,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Time the attention ops on this machine, or look for the fastest tiles of its GPU.

    With --tune, rows for kernels/tiles.toml are printed as they are found, each measured and dated, and beside it
    the time with the tile that is taken now. SCFAST_TILES=FILE makes scfast take the rows of a file.

    \b
    Examples:
      scfast bench
      scfast bench --device cuda --dtype bfloat16 --cells 16 --heads 12
      scfast bench --tune -o tiles.toml
      scfast bench --tune --dry-run
      scfast bench --tune --visit colsum --visit softmax --dim 64
    """  # noqa: D301
    import torch

    from scfast.run import default_device, resolve_device

    where = default_device() if device is None else resolve_device(device)
    console = Console(as_json)
    if tune:
        _tune(
            console, where, visits, dtypes or ("bfloat16",), dims or (64, 128), seconds, out, dry_run=dry_run
        )
        return
    given = {"--visit": bool(visits), "--output": out is not None, "--dry-run": dry_run}
    if wrong := [name for name, there in given.items() if there]:
        raise ValueError(f"{wrong[0]} goes with --tune")
    if len(dims) > 1 or len(dtypes) > 1:
        raise ValueError("one --dim and one --dtype are timed at once; several go with --tune")
    _time_ops(
        console, where, cells=cells, tokens=tokens, heads=heads, dim=dims[0] if dims else 64,
        dtype=getattr(torch, dtypes[0] if dtypes else "float32"),
    )  # fmt: skip


def _time_ops(console: Console, device: torch.device, **batch: object) -> None:
    import torch

    from scfast.bench.micro import PEER, time_ops

    described = {name: str(value).removeprefix("torch.") for name, value in batch.items()}
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console.title(f"Attention on {device} ({on})")
    console.fields(described)
    rows = time_ops(device=device, **batch)  # type: ignore[arg-type]
    header = ("", "ms", f"÷ {PEER}")
    console.table(
        header, [(row["name"], f"{row['seconds'] * 1e3:.3g}", f"{row['ratio']:.2f}") for row in rows]
    )
    console.event("done", device=str(device), **described, rows=rows)


def _tune(
    console: Console,
    device: torch.device,
    visits: tuple[str, ...],
    dtypes: tuple[str, ...],
    dims: tuple[int, ...],
    seconds: float,
    out: Path | None,
    *,
    dry_run: bool,
) -> None:
    import torch

    from scfast.bench import tune

    gpu = tune.gpu_to_tune(device)
    where, rows, started = tune.machine(device), [], time.perf_counter()
    todo = tune.shapes(visits, [getattr(torch, name) for name in dtypes], dims)
    if dry_run:
        facts = {
            "device": str(device),
            "machine": str(where),
            "shapes": len(todo),
            "seconds": f"{seconds:.0f}",
        }
        console.dry_run("bench", facts, [] if out is None else [out])
        return
    console.event("start", f"# Tiles for {where}", command="bench", shapes=len(todo), gpu=gpu)
    for number, shape in enumerate(todo):
        if time.perf_counter() - started > seconds:
            left = len(todo) - number
            console.event("stopped", f"# {left} shapes were not reached in {seconds:.0f} s", left=left)
            break
        with torch.cuda.device(device):
            proposal = tune.tune(shape, gpu, tune.Bench(shape, device), where)
        rows.append(proposal.row())
        console.event(
            "row", rows[-1], row=rows[-1], visit=shape.visit, seconds_now=proposal.present_seconds,
            seconds_best=proposal.seconds, tile=proposal.best._asdict(), refused=len(proposal.refused),
        )  # fmt: skip
        if out is not None:  # after each row: what was measured is not lost
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("\n".join(rows))
    console.event(
        "done", None if out is None else f"# Written to {out}; SCFAST_TILES={out} takes them", rows=len(rows)
    )
