"""The Dask cluster that a command runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


def parse_dask(text: str) -> int | str:
    """The value of ``--dask``: how many local workers, or the address of a scheduler.

    Examples
    --------
    >>> parse_dask("local:4"), parse_dask("tcp://10.0.0.1:8786")
    (4, 'tcp://10.0.0.1:8786')
    """
    if text == "local":
        return os.cpu_count() or 1
    kind, _, count = text.partition(":")
    if kind == "local" and count.isdecimal() and int(count) > 0:
        return int(count)
    if "://" in text or Path(text).is_file():
        return text
    raise ValueError(
        f"--dask {text} must be local, local:N with N workers, the address of a scheduler such as tcp://HOST:8786, or"
        " its scheduler file"
    )


@contextmanager
def connect(where: int | str, threads: int | None, device: str) -> Iterator[tuple[Client, int]]:
    """A client of the cluster, and the threads of a worker.

    Parameters
    ----------
    where
        As :func:`parse_dask` gives it.
    threads
        Of a worker. Default: of a local one its share of the cores, else as many as the smallest worker offers.
    device
        Type of the device on which the model runs.

    Raises
    ------
    ModuleNotFoundError
        Without the package distributed.
    ValueError
        For local workers beside a GPU, which they would share.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--dask needs the package distributed: pip install 'scfast[dask]'"
        ) from error
    if isinstance(where, int):
        if device == "cuda":
            raise ValueError(
                "--dask local has workers without a GPU of their own: use --workers, which gives each worker one, the"
                " address of a dask-cuda cluster, or --device cpu"
            )
        threads = threads or max(1, (os.cpu_count() or 1) // where)
        cluster = distributed.LocalCluster(  # memory is --memory's business
            n_workers=where, threads_per_worker=threads, memory_limit=0, dashboard_address=":0"
        )
        with cluster, distributed.Client(cluster) as client:
            yield client, threads
        return
    file = Path(where) if Path(where).is_file() else None
    with distributed.Client(
        **({"address": where} if file is None else {"scheduler_file": str(file)})
    ) as client:
        client.wait_for_workers(1)
        yield client, threads or min(client.nthreads().values())
