"""What ``scfast run`` does to survive: shards on disk, several processes, and words about where it stands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scfast.cli.clusters import connect, parse_dask
from scfast.cli.console import Console

if TYPE_CHECKING:
    from scfast.run import Clock, Planned, Times

#: Folder of the run's shards within that of the results, while it is unfinished.
FOLDER = "run"
#: File of seconds by stage, beside the results.
STAGES = "stages.json"
#: Exit codes beside 0 and, for errors, 1 and 2.
ROWS_LEFT_OUT, STOPPED = 3, 75
#: Killed workers that are started again.
RESTARTS = 20


@dataclass(frozen=True)
class Keeping:
    """How a run is kept and shared; the options of the same names.

    Attributes
    ----------
    out
        Folder of the results.
    shard_cells, workers, threads, fresh, retry, dask
        As given.
    part
        (i, n), of one of n processes that share the folder.
    worker
        Whether this process was started by another one, waits for the others, and writes nothing.
    """

    out: Path
    shard_cells: int
    workers: int
    threads: int | None
    fresh: bool
    retry: bool
    dask: str | None
    part: tuple[int, int] | None
    worker: bool

    @classmethod
    def from_options(cls, out: Path, options: dict[str, Any]) -> Keeping:
        """Takes its options out of ``options``."""
        part, worker = options.pop("part"), options.pop("worker")
        names = ("shard_cells", "workers", "threads", "fresh", "retry", "dask")
        mine = {name: options.pop(name) for name in names}
        if part and mine["workers"] > 1:
            raise ValueError("--part and --workers exclude each other: a part of a run is one process")
        if part and mine["fresh"]:
            raise ValueError(
                "--fresh and --part exclude each other: remove the folder before the parts are started"
            )
        if part and mine["retry"]:
            raise ValueError(
                "--retry and --part exclude each other: the command without --part runs what is missing"
            )
        if mine["dask"] is not None:
            if part or mine["workers"] > 1:
                raise ValueError(
                    "--dask, --workers and --part exclude each other: name one way to share the run"
                )
            parse_dask(mine["dask"])
        if mine["threads"] is None and mine["workers"] > 1:
            mine["threads"] = max(1, (os.cpu_count() or 1) // mine["workers"])
        return cls(out, part=parse_part(worker or part), worker=worker is not None, **mine)

    @property
    def processes(self) -> int:
        """How many share the run on this machine, as far as that is known; 1 where a scheduler is named."""
        local = None if self.dask is None else parse_dask(self.dask)
        return local if isinstance(local, int) else self.workers

    def describe(self) -> str:
        """Where the run is kept, and who runs it."""
        who = ""
        if self.part:
            who = f"; part {self.part[0]} of {self.part[1]}"
        elif self.dask:
            who = f"; Dask, {self.dask}"
        elif self.workers > 1:
            who = f"; {self.workers} workers"
        return f"{self.out / FOLDER}, every {self.shard_cells:,} cells{who}"

    def compute(self, go: Callable[[], None], console: Console, device: str) -> list[Any]:
        """Run ``go``, a tool, under a store; with workers after they have run its shards.

        Returns
        -------
        list
            What could not be run: see :class:`scfast.run.Store`.

        Raises
        ------
        SystemExit
            When the run was stopped, or this part of it is done.
        """
        import torch

        from scfast.run import PartDone, Stopped, resumable
        from scfast.run.disk import output_folder
        from scfast.run.ledger import ledgers

        folder, threads = self.out / FOLDER, self.threads
        if self.fresh and not self.worker:
            shutil.rmtree(folder, ignore_errors=True)
        if self.retry and not self.worker:
            for ledger in ledgers(folder):
                ledger.forgive()
        try:
            options: dict[str, Any] = {"part": self.part or (0, 1), "wait": self.worker}
            with ExitStack() as stack:
                stack.enter_context(output_folder(self.out))
                if self.workers > 1 and not self.worker:
                    self._share(folder, console, device)
                if self.dask is not None:
                    cluster = connect(parse_dask(self.dask), threads, device)
                    options["dask"], threads = stack.enter_context(cluster)
                if threads is not None:
                    torch.set_num_threads(threads)
                store = stack.enter_context(resumable(folder, shard_cells=self.shard_cells, **options))
                go()
        except Stopped as stopped:
            click.echo(f"{stopped}; the same command goes on from there", err=True)
            raise SystemExit(STOPPED) from None
        except PartDone as done:
            console.event("part", f"This part is done; {done}", message=str(done))
            raise SystemExit(0) from None
        return store.left_out

    def plan(self, go: Callable[[], None], seconds: float) -> Planned:
        """What ``go``, a tool, would run under :meth:`compute`; pieces of it are timed for so long."""
        import torch

        from scfast.run import planning

        threads = self.threads
        if threads is None and self.dask is not None:
            threads = max(1, (os.cpu_count() or 1) // self.processes)
        if threads is not None:
            torch.set_num_threads(threads)
        # what --fresh forgets is there until it does
        folder = None if self.fresh else self.out / FOLDER
        part = self.part or (0, 1)
        with planning(folder, shard_cells=self.shard_cells, part=part, seconds=seconds) as planned:
            go()
        return planned

    def stages(self, clock: Clock) -> Times:
        """Seconds of this command, and of the shards that other processes ran, by stage; kept beside the results."""
        from scfast.run.stages import noted_times

        others = sorted(folder for folder in (self.out / FOLDER).glob("*") if folder.is_dir())
        times = sum((noted_times(folder, by_others=True) for folder in others), clock.times())
        (self.out / STAGES).write_text(json.dumps(times.as_dict(), indent=1) + "\n")
        return times

    def finish(self) -> None:
        """The results are written: the shards are not needed any more.

        They go in one step, so that a process that runs the same command sees all of them or none.
        """
        gone = self.out / f".{FOLDER}-{os.getpid()}"
        with suppress(FileNotFoundError):
            (self.out / FOLDER).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _share(self, folder: Path, console: Console, device: str) -> None:
        """Start workers with the command line of this process, and wait for them."""
        import torch
        from tqdm import tqdm

        from scfast.run.ledger import standing
        from scfast.run.workers import supervise

        arguments = click.get_current_context().find_root().obj or sys.argv[1:]
        command = [sys.executable, "-m", "scfast", *map(str, arguments), "--threads", str(self.threads)]
        commands = [[*command, "--worker", f"{i}/{self.workers}"] for i in range(self.workers)]
        if device == "cuda":  # one GPU each, as far as there are
            gpus = max(1, torch.cuda.device_count())
            commands = [[*words, "--device", f"cuda:{i % gpus}"] for i, words in enumerate(commands)]
        with tqdm(unit="shard", desc=f"{self.workers} workers", disable=not console.interactive) as bar:

            def tick() -> None:
                runs = standing(folder)
                bar.total, bar.n = sum(run.n_shards for run in runs), sum(run.n_finished for run in runs)
                bar.refresh()

            threads = {"OMP_NUM_THREADS": str(self.threads)}
            supervise(commands, restarts=RESTARTS, tick=tick, environments=[threads] * self.workers)


def keeping_options(function: Any) -> Any:
    """The options of :class:`Keeping`."""
    options = (
        click.option(
            "--workers", type=click.IntRange(1), default=1, show_default=True,
            help="Processes that share the run, one per GPU or sharing the cores.",
        ),
        click.option(
            "--threads", type=click.IntRange(1),
            help="Threads of each process; a run is continued with the number it began with. [default: the cores,"
            " shared among the workers]",
        ),
        click.option(
            "--part", help="I/N, from 0: as one of N processes with the same -o, as in a job array, run shards I, I+N,"
            " ...; the same command without it merges them.",
        ),
        click.option(
            "--dask", help="Have the workers of a Dask cluster run it: tcp://HOST:8786, a scheduler file, or local:N"
            " for N processes here.",
        ),
        click.option(
            "--shard-cells", type=click.IntRange(1), default=4096, show_default=True,
            help="Cells that are kept together when they are finished: what is lost when the run is killed.",
        ),
        click.option("--fresh", is_flag=True, help="Forget an unfinished run in the output folder."),
        click.option(
            "--retry", is_flag=True, help="Try cells again that an earlier run left out, as often as if it were new."
        ),
        click.option("--worker", hidden=True),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def parse_part(text: str | None) -> tuple[int, int] | None:
    """The value of ``--part``.

    Examples
    --------
    >>> parse_part("3/8"), parse_part(None)
    ((3, 8), None)
    """
    if text is None:
        return None
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"--part {text} must be I/N with I from 0 to N - 1, such as 0/8")
    return int(first), int(second)
