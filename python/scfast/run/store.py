"""Where the runs inside a ``with`` block are kept, so that they can be continued."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scfast.run import memory as budget
from scfast.run.array_files import DamagedFileError
from scfast.run.atomic import publish
from scfast.run.cluster import share
from scfast.run.ledger import Ledger
from scfast.run.runner import Results
from scfast.run.shards import ShardedRun

if TYPE_CHECKING:
    from distributed import Client

#: Rows of the data in a shard: minutes of a model's work.
SHARD_CELLS = 4096
#: Attempts at a shard before it is left out.
TRIES = 3
#: What was free on a GPU when the first run began.
MEMORY = "memory.json"


@dataclass
class Store:
    """A folder with a ledger for each run of a tool, in the order of the runs.

    Attributes
    ----------
    folder
        Where.
    shard_cells
        Rows of the data in a shard.
    part
        (i, n): run shards i, i + n, ... only.
    tries, wait
        See :meth:`~scfast.run.shards.ShardedRun.execute`.
    dask
        Client of the cluster whose workers run the shards; None: this process does.
    left_out
        What could not be run, so far: the run's name, (first, last + 1) of the rows, and why.
    """

    folder: Path
    shard_cells: int = SHARD_CELLS
    part: tuple[int, int] = (0, 1)
    tries: int = TRIES
    wait: bool = False
    dask: Client | None = None
    left_out: list[tuple[str, tuple[int, int], str]] = field(default_factory=list)
    _runs: int = field(default=0, repr=False)

    @property
    def plans_only(self) -> bool:
        """Whether nothing is run here, so that there are no results to write."""
        return False

    def execute(self, run: ShardedRun) -> Results:
        """Run, or continue, the next of this folder's runs."""
        name = self._name_next(run)
        about = {"memory": run.budget and run.budget.granted, "parts": run.parts()}
        ledger = Ledger.open(self.folder / name, run.identity(), run.plan.n_shards, about)
        elsewhere = None if self.dask is None else partial(share, client=self.dask)
        results = run.execute(ledger, self.part, self.tries, wait=self.wait, elsewhere=elsewhere)
        self.left_out += [(name, rows, reason) for rows, reason in results.left_out.items()]
        return results

    def _name_next(self, run: ShardedRun) -> str:
        """The folder of the next run."""
        self._runs += 1
        return f"{self._runs}-{re.sub(r'[^A-Za-z0-9]+', '-', run.label).strip('-')}"

    def granted_memory(self, memory: str | int | None, device: torch.device) -> int:
        """As :func:`scfast.run.granted_memory`; what is free on a GPU is asked once, and noted in the folder.

        Raises
        ------
        DamagedFileError
            When it was noted, and cannot be read.
        """
        if memory is not None or device.type != "cuda":
            return budget.granted_memory(memory, device)
        path = self.folder / MEMORY
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            free = {"memory": budget.granted_memory(None, device)}
            publish(path, [json.dumps(free).encode()], keep=True)  # of several processes, the first one says
        try:
            noted = json.loads(path.read_bytes())["memory"]
        except (ValueError, KeyError, TypeError, RecursionError):
            noted = None
        if not isinstance(noted, int) or noted < 0:
            raise DamagedFileError(f"{path} is damaged: remove {self.folder} to begin the run again")
        return noted


_CURRENT: ContextVar[Store | None] = ContextVar("scfast_store", default=None)


def current_store() -> Store | None:
    """The store of the innermost :func:`resumable` block.

    Returns
    -------
    Store or None
        None outside of such a block: then nothing is kept.

    Examples
    --------
    >>> import tempfile
    >>> current_store() is None
    True
    >>> with resumable(tempfile.mkdtemp()) as store:
    ...     current_store() is store
    True
    """
    return _CURRENT.get()


@contextmanager
def using(store: Store) -> Iterator[None]:
    """Make a store the current one."""
    token = _CURRENT.set(store)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def granted_memory(memory: str | int | None, device: torch.device) -> int:
    """Bytes that batches may use: what is given, else 2 GB on a CPU and all that is free on a GPU.

    Inside :func:`resumable`, what was free on the GPU when the run began stays, however much is when it is continued:
    another budget makes other batches.

    Parameters
    ----------
    memory
        An amount as :func:`parse_memory` takes it, or None.
    device
        Where the model is already.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> import torch
    >>> granted_memory(None, torch.device("cpu")), granted_memory("500MB", torch.device("cpu"))
    (2000000000, 500000000)
    """
    store = current_store()
    return (budget if store is None else store).granted_memory(memory, device)


@contextmanager
def resumable(
    folder: str | Path,
    *,
    shard_cells: int = SHARD_CELLS,
    part: tuple[int, int] = (0, 1),
    tries: int = TRIES,
    wait: bool = False,
    dask: Client | None = None,
) -> Iterator[Store]:
    """Keep what the tools in this block compute, shard by shard; the same block run again goes on where it ended.

    The results do not depend on how often, or where, a run was stopped: shards are merged in their order, and their
    bits are the same on the same kind of machine with the same number of threads. A run that differs in its cells,
    model, arguments, threads, instruction set or versions is refused.

    Parameters
    ----------
    folder
        Where; made when it is missing. Remove it when the results are written.
    shard_cells
        Rows of the data in a shard, which is what is lost when a process is killed.
    part
        (i, n), of n processes with the same ``folder``: this one runs shards i, i + n, ... of each run and ends with
        ``PartDone`` where others' are missing.
    tries
        A shard that failed so often, or whose process ended so often, is left out; a warning names its rows.
    wait
        Where others' shards are missing, wait for them, and go on.
    dask
        A :class:`distributed.Client`: the shards are run by the workers of its cluster, each of which takes one at a
        time with ``torch.get_num_threads()`` threads of this process, and must see ``folder`` under the same path.
        Counts in memory, and the model, are written there once; those of :func:`scfast.io.open` are read where
        they are. Workers may come and go.

    Yields
    ------
    Store
        Where results are kept.

    Raises
    ------
    ValueError
        Fewer than one row in a shard, or a part that there is not, or one beside ``dask``.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> adata, model = scfast.datasets.toy()
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "rollout.run"
    >>> with scfast.run.resumable(folder, shard_cells=20):
    ...     scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> len(list(folder.rglob("shard-*")))  # the same block, run again, reads these three
    3
    """
    if shard_cells < 1:
        raise ValueError(f"shard_cells={shard_cells} must be at least 1")
    if tries < 1:
        raise ValueError(f"tries={tries} must be at least 1")
    index, count = part
    if not 0 <= index < count:
        raise ValueError(f"part={part} must be (i, n) with 0 <= i < n")
    if dask is not None and count > 1:
        raise ValueError(f"part={part} and dask exclude each other: a cluster runs all shards")
    store = Store(Path(folder).expanduser(), shard_cells, part, tries, wait, dask)
    with using(store):
        yield store
