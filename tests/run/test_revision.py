"""A run keeps the conditions that it began with: smaller batches where memory ran out, its memory, its machine."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scfast
from scfast import _kernels, models
from scfast.run import Ledger, OtherRunError, PartDone, granted_memory, make_plan, resumable, shards
from scfast.run import memory as budget
from scfast.run.array_files import DamagedFileError
from scfast.run.ledger import standing
from scfast.run.memory import bytes_per_token
from tests.models import fixtures
from tests.run.test_shards import COUNTS, N_SHARDS, bits, go, sharded

PLAN = sharded().plan
GPU = torch.device("cuda")
#: The shard in which memory runs out here, and the cell that has to be in a batch for that.
SHARD, CELL = 2, int(PLAN.shard(2).rows[1])


class Short:
    """Memory for one cell at a time wherever a batch holds ``CELL``; ``ends`` after so many batches of the shard."""

    def __init__(self, *, ends: int = 0) -> None:
        self.left, self.errors = ends, 0

    def __call__(self, rows: np.ndarray) -> None:
        if CELL in rows and len(rows) > 1:
            self.errors += 1
            raise MemoryError("no room")
        if np.isin(rows, PLAN.shard(SHARD).rows).all():
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """What a run gives in which memory ran out, and how often it did."""
    spoil = Short()
    results = go(tmp_path_factory.mktemp("short"), spoil=spoil)
    assert spoil.errors
    assert results.plan.n_batches > PLAN.n_batches
    return results


def test_what_follows_after_a_kill_is_run_in_the_same_batches(short, tmp_path):
    for ends in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, spoil=Short(ends=ends))
    ledger = Ledger(tmp_path, N_SHARDS)
    assert ledger.revised() == [SHARD]
    assert SHARD in ledger.missing()
    results = go(tmp_path)  # there is memory enough now
    assert results.plan.hash == short.plan.hash
    assert bits(results) == bits(short)


def test_a_damaged_shard_is_run_again_in_the_same_batches(short, tmp_path):
    go(tmp_path, spoil=Short())
    path = Ledger(tmp_path, N_SHARDS).path(SHARD)
    path.write_bytes(path.read_bytes()[:-1])
    results = go(tmp_path)
    assert results.plan.hash == short.plan.hash
    assert bits(results) == bits(short)


def test_a_damaged_revision_is_named_and_set_aside(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, spoil=Short(ends=2))
    (path,) = tmp_path.glob("revision-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert go(tmp_path).plan.hash == sharded().plan.hash  # with as many threads as there are now
    assert f"{path.name} is damaged" in caplog.text
    assert [aside.name for aside in tmp_path.glob("damaged-*")] == [f"damaged-1-{path.name}"]


def test_smaller_blocks_of_one_cell_are_kept(tmp_path):
    ledger = Ledger(tmp_path, N_SHARDS)
    ledger.revise(1, [9, 7, 9], {})
    ledger.revise(1, [7, 9], {12: 512, 8: 1024})
    assert ledger.revision(1) == ([7, 9], {8: 1024, 12: 512})
    assert ledger.revision(0) == ([], {})


def test_a_cell_that_does_not_fit_says_what_it_needs_and_the_rest_is_run(tmp_path):
    def spoil(rows):
        if CELL in rows:
            raise MemoryError("no room")

    results = go(tmp_path, spoil=spoil, tries=2)
    (reason,) = results.left_out.values()
    assert f"MemoryError: the cell in row {CELL} has " in reason
    assert "tokens, for which toy needs about 1 MB on cpu" in reason
    vectors = results["vectors"]
    rows = PLAN.shard(SHARD).rows
    assert np.isnan(vectors[rows]).all()
    assert not np.isnan(np.delete(vectors, rows, axis=0)).any()


def test_another_instruction_set_is_refused_in_a_part_and_in_a_continued_run(tmp_path, monkeypatch):
    with pytest.raises(PartDone):
        go(tmp_path, part=(0, 2))
    monkeypatch.setattr(_kernels, "instruction_set", lambda: "vax")
    for part in ((1, 2), (0, 1)):
        with pytest.raises(
            OtherRunError, match=r"instruction_set was \w+, now vax; .*again on the same kind of machine"
        ):
            go(tmp_path, part=part)


def test_another_gpu_is_refused(tmp_path, monkeypatch):
    names = iter(["NVIDIA A", "NVIDIA A", "NVIDIA B"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))

    def open_ledger():
        run = sharded()
        lengths = np.ones(COUNTS.n_cells, dtype=np.int64)
        plan = make_plan(lengths, token_budget=60, device=GPU)
        return Ledger.open(tmp_path, {**run.identity(), **plan.conditions()}, N_SHARDS)

    open_ledger()
    open_ledger()
    with pytest.raises(
        OtherRunError, match=r"device was NVIDIA A, now NVIDIA B.*on the same kind of machine"
    ):
        open_ledger()


def test_what_was_free_on_a_gpu_when_the_run_began_stays(tmp_path, monkeypatch):
    free = iter([8 * 10**9, 5 * 10**9, 3 * 10**9])
    monkeypatch.setattr(budget, "free_device_memory", lambda device: next(free))
    for _ in range(2):  # begun, continued
        with resumable(tmp_path):
            assert granted_memory(None, GPU) == 8 * 10**9
            assert granted_memory("4GB", GPU) == 4 * 10**9  # who names it knows
            assert granted_memory(None, torch.device("cpu")) == 2 * 10**9
    assert granted_memory(None, GPU) == 5 * 10**9  # of another run
    assert json.loads((tmp_path / "memory.json").read_text()) == {"memory": 8 * 10**9}
    assert standing(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"memory": "8GB"}', '{"memory": -1}', "[" * 10**5])
def test_a_damaged_note_of_the_memory_is_named(text, tmp_path):
    (tmp_path / "memory.json").write_text(text)
    with resumable(tmp_path), pytest.raises(DamagedFileError, match=r"memory\.json is damaged: remove"):
        granted_memory(None, GPU)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model, cells of 42 tokens, and a memory in which they are run in blocks of tokens."""
    source = models.load("geneformer", fixtures.write_v2(tmp_path_factory.mktemp("v2"), hidden_act="gelu"))
    genes = source.genes
    counts = sparse.csr_matrix(np.random.default_rng(0).integers(1, 9, (9, len(genes))).astype(np.float32))
    adata = AnnData(counts, var=pd.DataFrame(index=genes))
    need = bytes_per_token(source, layers_kept=0, hidden_kept=1) * (len(genes) + 2)
    return source, adata, int((need + 4 * source.hidden_size * adata.n_obs) / 0.8) - 10


def test_a_cell_larger_than_the_budget_is_run_in_blocks_and_continued_in_them(large, tmp_path, monkeypatch):
    source, adata, memory = large
    monkeypatch.setattr(budget, "BLOCK_TOKENS", (16, 8, 4))
    real, left = shards.visit, [2]

    def visit(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    def embed(folder):
        done = adata.copy()
        with resumable(folder, shard_cells=3):
            scfast.tl.embed(done, source, memory=memory, progress=False)
        return done

    monkeypatch.setattr(shards, "visit", visit)
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "killed")
    manifest = json.loads((tmp_path / "killed" / "1-embed" / "run.json").read_text())
    assert manifest["block_tokens"] in (16, 8)
    assert manifest["about"]["memory"] == memory
    assert sum(manifest["about"]["parts"].values()) == memory
    continued, whole = embed(tmp_path / "killed"), embed(tmp_path / "whole")
    (key,) = whole.obsm
    assert continued.obsm[key].tobytes() == whole.obsm[key].tobytes()
    assert continued.uns[key]["params"]["plan"]["block_tokens"] == manifest["block_tokens"]


def test_a_cell_that_fits_in_no_block_is_refused_before_anything_is_kept(large, tmp_path):
    source, adata, memory = large
    with (
        resumable(tmp_path / "run", shard_cells=3),
        pytest.raises(ValueError, match=r"the longest cell has 42 tokens, .* pass memory='\d+MB' or more"),
    ):
        scfast.tl.embed(adata, source, memory=memory // 10, progress=False)
    assert not (tmp_path / "run").exists()
