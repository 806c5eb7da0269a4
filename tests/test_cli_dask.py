"""``scfast run --dask``."""

from __future__ import annotations

import sys

import dask
import pytest

from scfast.cli.clusters import connect, parse_dask
from tests.run.test_cluster import client, workers
from tests.test_cli import data, failure, invoke, model
from tests.test_cli_keeping import arguments, same_results, shards

__all__ = ["client", "data", "model", "workers"]  # fixtures


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory, workers):
    out = tmp_path_factory.mktemp("whole")
    invoke(*arguments(data, model, out))
    return out


def test_a_cluster_by_its_address(data, model, whole, client, tmp_path):
    address = client.scheduler.address
    said = invoke(*arguments(data, model, tmp_path, "--dask", address), "--text")
    assert f"every 10 cells; Dask, {address}" in said
    assert same_results(whole, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_cluster_by_its_scheduler_file_goes_on_with_what_is_there(data, model, whole, client, tmp_path):
    invoke(*arguments(data, model, tmp_path, "--part", "1/2"))
    assert shards(tmp_path) == 2
    client.write_scheduler_file(tmp_path / "scheduler.json")
    invoke(*arguments(data, model, tmp_path, "--dask", str(tmp_path / "scheduler.json")))
    assert same_results(whole, tmp_path)


def test_workers_on_this_machine(workers):
    with connect(2, None, "cpu") as (client, threads):
        assert set(client.nthreads().values()) == {threads}
        assert len(client.nthreads()) == 2


def test_threads_are_those_of_the_smallest_worker(client):
    with connect(client.scheduler.address, None, "cpu") as (_, threads):
        assert threads == 2
    with connect(client.scheduler.address, 1, "cpu") as (_, threads):
        assert threads == 1


def test_local_workers_have_no_gpu_of_their_own():
    with pytest.raises(
        ValueError, match="use --workers, which gives each worker one, the address of a dask-cuda"
    ):
        connect(2, None, "cuda").__enter__()


@pytest.mark.parametrize("text", ["", "local:", "local:0", "local:x", "host", "missing.json"])
def test_clusters_that_there_are_not(text):
    with pytest.raises(ValueError, match=f"--dask {text} must be local, local:N"):
        parse_dask(text)


@pytest.mark.parametrize("more", [["--workers", "2"], ["--part", "0/2"]])
def test_one_way_to_share_a_run(more, data, model, capsys, tmp_path):
    message = failure(capsys, *arguments(data, model, tmp_path, "--dask", "local:2", *more))
    assert "--dask, --workers and --part exclude each other" in message


def test_without_the_package(data, model, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = failure(capsys, *arguments(data, model, tmp_path, "--dask", "local:2"))
    assert "--dask needs the package distributed: pip install 'scfast[dask]'" in message


def test_a_scheduler_that_does_not_answer(data, model, capsys, tmp_path):
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        message = failure(capsys, *arguments(data, model, tmp_path, "--dask", "tcp://127.0.0.1:9"))
    assert "tcp://127.0.0.1:9" in message
