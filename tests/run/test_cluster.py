"""A run whose shards are computed by Dask workers: the bits of a run in one process, whatever happens to a worker."""

from __future__ import annotations

import os
import pickle
import re
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import cloudpickle
import dask
import distributed
import numpy as np
import pytest
import torch
from anndata import AnnData

import scfast
from scfast.run import OtherRunError, cluster, resumable
from scfast.run.ledger import Ledger
from scfast.run.stored import StoredCounts
from tests.run.test_shards import N_SHARDS, bits, go, sharded
from tests.toy import toy_adata, toy_source

PAGE = Path(__file__).parents[2] / "docs" / "long_runs.md"


@pytest.fixture(scope="module")
def workers():
    """A cluster on this machine, of one worker; the packages are imported once, and each worker is a fork."""
    forkserver.set_forkserver_preload([__name__])
    forkserver.ensure_running()  # before Dask names what it would have imported
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit=0, dashboard_address=":0"
        ) as local,
        distributed.Client(local),
    ):
        yield local


@pytest.fixture
def client(workers):
    return distributed.default_client()


def dask_bits(folder: Path, client, *, tries: int = 3, **options) -> bytes:
    run = sharded(**options)
    ledger = Ledger.open(folder, run.identity(), run.plan.n_shards)
    return bits(run.execute(ledger, tries=tries, elsewhere=partial(cluster.share, client=client)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bits(go(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_any_number_of_workers(n_workers, workers, client, whole, tmp_path):
    workers.scale(n_workers)
    client.wait_for_workers(n_workers)
    assert dask_bits(tmp_path, client) == whole
    assert Ledger(tmp_path, N_SHARDS).missing() == []
    assert not list(tmp_path.glob("parcel-*"))


def test_a_worker_that_is_killed_is_replaced(client, whole, tmp_path, caplog):
    killed = tmp_path / "killed"

    def spoil(rows):
        if 7 in rows and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert dask_bits(tmp_path / "run", client, spoil=spoil) == whole
    assert killed.exists()
    assert "was lost" in caplog.text


def test_a_shard_that_kills_every_worker_is_left_out(client, tmp_path):
    first, last = (int(row) for row in sharded().plan.shard_rows[2:4])

    def spoil(rows):
        if first in rows:
            os.kill(os.getpid(), signal.SIGKILL)

    run = sharded(spoil=spoil)
    ledger = Ledger.open(tmp_path, run.identity(), N_SHARDS)
    results = run.execute(ledger, tries=2, elsewhere=partial(cluster.share, client=client))
    assert results.left_out == {(first, last): "its process ended without a word"}


def test_an_error_of_the_run_reaches_the_caller(client, tmp_path):
    def spoil(rows):
        raise RuntimeError("nothing works")

    with pytest.raises(RuntimeError, match="nothing works"):
        dask_bits(tmp_path, client, spoil=spoil)
    assert not list(tmp_path.glob("parcel-*"))


def test_begun_alone_and_continued_by_workers_and_back(client, whole, tmp_path):
    def spoil(rows):
        if 13 in rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, spoil=spoil)
    done = len(Ledger(tmp_path, N_SHARDS).finished())
    assert 0 < done < N_SHARDS
    assert dask_bits(tmp_path, client) == whole
    assert bits(go(tmp_path)) == whole


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_tool_over_counts_on_disk(kind, client, tmp_path):
    path = tmp_path / f"cells.{kind}"
    toy_adata().write_h5ad(tmp_path / "cells.h5ad")
    if kind == "zarr":
        scfast.io.convert(tmp_path / "cells.h5ad", path)

    def rollout(folder: Path, **options) -> AnnData:
        opened = scfast.io.open(path)
        with resumable(folder, shard_cells=7, **options):
            scfast.tl.rollout(opened, toy_source(), groupby="type", progress=False)
        return opened

    threads = torch.get_num_threads()
    alone, shared = rollout(tmp_path / "alone"), rollout(tmp_path / "shared", dask=client)
    np.testing.assert_array_equal(alone.varm["rollout"].to_numpy(), shared.varm["rollout"].to_numpy())
    ours, theirs = (cells.layers["rollout"].to_memory() for cells in (alone, shared))
    assert (ours != theirs).nnz == 0
    assert torch.get_num_threads() == threads


def test_stored_counts_travel_as_their_place(tmp_path):
    toy_adata(n_cells=500).write_h5ad(tmp_path / "cells.h5ad")
    opened = scfast.io.open(tmp_path / "cells.h5ad")
    counts = StoredCounts(opened.X, opened.var, None, 64)
    text = pickle.dumps(counts)
    assert len(text) < 4000
    there = pickle.loads(text)
    assert there.block_cells == 64
    rows = np.array([0, 70, 499])
    assert (there.take(rows)[0] != counts.take(rows)[0]).nnz == 0


@pytest.fixture
def parcel(tmp_path):
    """A run on its way, as a worker is told of it."""
    run = sharded()
    ledger = Ledger.open(tmp_path / "run", run.identity(), N_SHARDS)
    with cluster.sent(run, ledger) as sent:
        yield sent
    cluster.forget(sent.sha256)


def test_a_worker_runs_a_shard_and_remembers_the_model(parcel):
    assert cluster.run_shard(parcel, 1) == ""
    Path(parcel.path).write_bytes(b"no longer needed")
    assert cluster.run_shard(parcel, 3) == ""
    assert Ledger(Path(parcel.path).parent, N_SHARDS).finished() == [1, 3]


def test_a_worker_of_another_kind_refuses(parcel):
    other = replace(parcel, alike={**parcel.alike, "instruction_set": "abacus", "torch": "1.0"})
    with pytest.raises(OtherRunError, match=r"worker on .* other bits: torch is .*, not 1\.0.*not abacus"):
        cluster.run_shard(other, 0)


def test_a_worker_unpacks_only_what_was_announced(parcel, tmp_path):
    Path(parcel.path).write_bytes(cloudpickle.dumps(lambda: None))
    with pytest.raises(ValueError, match="is not what was sent: is its folder on a file system that all"):
        cluster.run_shard(parcel, 0)


def test_a_worker_that_does_not_see_the_folder_says_so(parcel, monkeypatch):
    monkeypatch.setattr(cluster, "SEEN", 0.0)
    Path(parcel.path).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"does not see .*: give an output folder on a file system that all"
    ):
        cluster.run_shard(parcel, 0)


def test_parts_and_a_cluster_exclude_each_other(tmp_path):
    with (
        pytest.raises(ValueError, match="and dask exclude each other"),
        resumable(tmp_path, part=(0, 2), dask=object()),
    ):
        pass


def test_the_page_runs(client, tmp_path, monkeypatch):
    """What docs/long_runs.md says of Python, on the cluster that is there."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "LocalCluster", lambda **options: nullcontext())
    monkeypatch.setattr(distributed, "Client", lambda cluster: nullcontext(client))
    adata = toy_adata().copy()
    adata.obs["cell_type"] = adata.obs["type"]
    exec(compile(code, PAGE.name, "exec"), {"adata": adata, "model": toy_source()})
    assert "rollout" in adata.varm
    assert list((tmp_path / "rollout.run").glob("1-rollout/shard-*"))
