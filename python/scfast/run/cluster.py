"""A run whose shards are computed by the workers of a Dask cluster."""

from __future__ import annotations

import hashlib
import logging
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from scfast.run.atomic import publish
from scfast.run.ledger import PARCEL, Ledger, OtherRunError
from scfast.run.plan import surroundings
from scfast.run.stopping import stop_on_signal

if TYPE_CHECKING:
    from distributed import Client, Future

    from scfast.run.shards import ShardedRun

_LOG = logging.getLogger(__name__)

#: Seconds between two looks at the workers.
LOOK = 0.2
#: Seconds until another machine sees a file that was just written: file servers let names be remembered.
SEEN = 30.0


@dataclass(frozen=True)
class Parcel:
    """A run on its way to the workers: a file in its folder, and what only Dask tells them.

    The model goes through the file system, because it must be the same for all and may be gigabytes. A worker unpacks
    the file only where it holds the bytes that were announced to it: what anybody else puts there is never unpickled.

    Attributes
    ----------
    path
        The file.
    sha256
        Of its bytes.
    n_shards
        Of the run.
    alike
        What the worker's machine and packages must be.
    """

    path: str
    sha256: str
    n_shards: int
    alike: Mapping[str, str]


def share(run: ShardedRun, ledger: Ledger, shards: Sequence[int], tries: int, client: Client) -> None:
    """Have shards run by the workers of a cluster, each of which has one at a time, until none is left to try.

    A worker that comes takes part, and a shard whose worker is lost is given to another one.

    Parameters
    ----------
    run
        What is run.
    ledger
        Of the run, in a folder that the workers see under the same path.
    shards
        Which.
    tries
        A shard that failed, or whose worker was lost, so often is left.
    client
        Of the cluster.

    Raises
    ------
    FileNotFoundError
        When a worker does not see the folder.
    OtherRunError
        When a worker's machine or packages would give other bits.
    Stopped
        When this process was asked to stop.
    """
    cells = np.diff(run.plan.shard_starts)
    ready = run.plan.n_cells - int(cells[list(shards)].sum())
    disable = None if run.progress is None else not run.progress
    waiting, running = deque(shards), dict[str, tuple[int, Any]]()
    with (
        stop_on_signal() as stop,
        sent(run, ledger) as parcel,
        tqdm(total=run.plan.n_cells, initial=ready, unit="cell", desc=run.label, disable=disable) as bar,
    ):

        def again(shard: int, reason: str, lost: bool) -> None:
            if lost:
                ledger.lost(shard)
            attempts = ledger.attempts(shard)
            _LOG.warning("shard %d failed (attempt %d): %s", shard, attempts, reason)
            if attempts < tries:
                waiting.append(shard)

        try:
            while waiting or running:
                workers = client.nthreads()
                for address, (shard, future) in list(running.items()):
                    if future.done():
                        del running[address]
                        reason, lost = _outcome(future)
                        if reason:
                            again(shard, reason, lost)
                        else:
                            bar.update(int(cells[shard]))
                    elif address not in workers:
                        del running[address]
                        future.cancel()
                        again(shard, f"its worker {address} was lost", True)
                for address in workers:
                    if waiting and address not in running:
                        shard = waiting.popleft()
                        running[address] = (
                            shard,
                            client.submit(run_shard, parcel, shard, workers=[address], pure=False, retries=0),
                        )
                stop.check()
                _wait([future for _, future in running.values()])
        except BaseException:
            for shard, future in running.values():
                future.cancel()
                ledger.take_back(shard, whose="")
            raise
        client.run(forget, parcel.sha256, on_error="ignore")


def _outcome(future: Future) -> tuple[str, bool]:
    """Why a shard failed, or nothing; whether its worker was lost. What is wrong with the run as a whole is raised."""
    from distributed import KilledWorker

    try:
        return future.result(), False
    except (KilledWorker, CancelledError):
        return "its worker was lost", True


def _wait(futures: Sequence[Future]) -> None:
    """Until one of them is done, or it is time for another look."""
    from distributed import wait

    if not futures:  # no worker is there yet, or any more
        time.sleep(LOOK)
        return
    try:
        wait(futures, timeout=LOOK, return_when="FIRST_COMPLETED")
    except TimeoutError:
        return


@contextmanager
def sent(run: ShardedRun, ledger: Ledger) -> Iterator[Parcel]:
    """The run in a file, as long as the block runs."""
    import cloudpickle

    content = cloudpickle.dumps(run.to("cpu"))
    sha256 = hashlib.sha256(content).hexdigest()
    path = (ledger.folder / f"{PARCEL}-{sha256[:16]}").absolute()
    publish(path, [content])
    del content
    try:
        yield Parcel(str(path), sha256, ledger.n_shards, _alike(run.source.device))
    finally:
        path.unlink(missing_ok=True)


def _alike(device: torch.device) -> dict[str, str]:
    """What all processes of a run must have in common; functions travel only to a Python of the same version."""
    return {**surroundings(device), "python": ".".join(platform.python_version_tuple()[:2])}


# What follows runs in the workers.

#: A worker may have many threads; the model takes them all, for one shard at a time.
_ONE_AT_A_TIME = threading.Lock()
#: sha256 of a parcel -> the run in it: the model is unpacked once in each worker.
_UNPACKED: dict[str, ShardedRun] = {}


def run_shard(parcel: Parcel, shard: int) -> str:
    """Run one shard in a worker; why it failed, or nothing."""
    with _ONE_AT_A_TIME:
        run = _unpack(parcel)
        threads = torch.get_num_threads()
        torch.set_num_threads(run.plan.threads)
        try:
            return run.run_shard(Ledger(Path(parcel.path).parent, parcel.n_shards), shard)
        finally:
            torch.set_num_threads(threads)


def forget(sha256: str) -> None:
    """Let go of a run that is finished."""
    _UNPACKED.pop(sha256, None)


def _unpack(parcel: Parcel) -> ShardedRun:
    import cloudpickle

    if parcel.sha256 in _UNPACKED:
        return _UNPACKED[parcel.sha256]
    on_gpu = parcel.alike["device"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    here = _alike(device)
    differs = [
        f"{name} is {here[name]}, not {value}" for name, value in parcel.alike.items() if here[name] != value
    ]
    if differs:
        raise OtherRunError(
            f"a Dask worker on {socket.gethostname()} would give other bits: {'; '.join(differs)}. Use workers of one"
            " kind, with the packages of the process that started the run"
        )
    content = _read(Path(parcel.path))
    if hashlib.sha256(content).hexdigest() != parcel.sha256:
        raise ValueError(
            f"{parcel.path}, as a Dask worker on {socket.gethostname()} sees it, is not what was sent: is its folder"
            " on a file system that all share?"
        )
    _UNPACKED.clear()  # one model at a time
    _UNPACKED[parcel.sha256] = run = cloudpickle.loads(content).to(device)
    return run


def _read(path: Path) -> bytes:
    """The content of a file, once this machine sees it."""
    until = time.monotonic() + SEEN
    while not path.exists():
        if time.monotonic() > until:
            raise FileNotFoundError(
                f"a Dask worker on {socket.gethostname()} does not see {path}: give an output folder on a file system"
                " that all workers share, under the same path"
            )
        time.sleep(LOOK)
    return path.read_bytes()
