"""Devices: which one is taken, and that nothing of a batch is left behind on the host."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import scfast
from scfast import Packing
from scfast.attention.recorder import Recorder
from scfast.models.base import Tokens
from scfast.models.bert import BertEncoder
from scfast.models.bert_shape import BertShape
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from scfast.run import default_device, granted_memory, make_plan, resolve_device
from scfast.run.memory import free_device_memory
from scfast.run.out_of_memory import cell_too_large
from tests.toy import toy_adata, toy_source

GPU = torch.device("cuda", 0)
SHAPE = BertShape(
    n_layers=2, n_heads=2, hidden=16, intermediate=32, vocabulary=50, positions=20, token_types=2, eps=1e-12,
    activation="relu", initializer_range=0.02, pad=0,
)  # fmt: skip


@pytest.fixture
def any_device(monkeypatch):
    """The ops take tensors of any device: fake ones have shapes and places, and no content."""
    for op in ("attention_forward", "attention_colsum", "attention_rowstats"):
        monkeypatch.setattr(sys.modules[f"scfast.ops.{op}"], "choose", lambda *a, **k: "cpu")


def made_tokens(lengths):
    total = sum(lengths)
    return Tokens(
        ids=torch.arange(total),
        positions=torch.zeros(total, dtype=torch.int64),
        packing=Packing.from_lengths(lengths),
        gene_index=torch.arange(total),
        kind=torch.zeros(total, dtype=torch.uint8),
        lost_vocabulary=torch.zeros(len(lengths), dtype=torch.int64),
        lost_truncation=torch.zeros(len(lengths), dtype=torch.int64),
    )


class IndexedByOperations(TorchFunctionMode):
    """x[...] of a fake GPU tensor asks torch for a real GPU, where the same by operations does not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        x, index = args
        dim = 0
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, int):
                x = x.select(dim, part)
                continue
            if part is None:
                x = x.unsqueeze(dim)
            elif isinstance(part, slice):
                start, stop, _ = part.indices(x.shape[dim])
                x = x.narrow(dim, start, stop - start)
            else:
                x = x.index_select(dim, part)
            dim += 1
        return x


@pytest.mark.parametrize(
    "observables",
    [
        [Rollout("mean", layers="prefix"), Received(), Entropy()],
        [Rollout("cls", layers="suffix", name="other"), HiddenStates()],
        [Rollout("gene:b", heads="max"), Received(per_layer=True)],
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_batch_stays_on_its_gpu_and_the_host_does_not_wait(observables, keep, any_device):
    """Fake tensors have a place and no content: they refuse to meet the host's, and to tell what they hold."""
    recorder = Recorder(observables, gene_names=["a", "b", *"cdefgh"], keep=keep, check=False)
    with FakeTensorMode(), IndexedByOperations():
        encoder = BertEncoder.initialised(SHAPE, torch.float32, 0).to(GPU)
        tokens = made_tokens([3, 0, 5]).to(GPU)
        recorder.begin(2, tokens.packing, kind=tokens.kind, gene_index=tokens.gene_index, cls_position=0)
        encoder.forward(tokens, recorder)
        recorder.finish()
    for group in (recorder.batch, encoder.tensors):
        assert {x.device for x in group.values()} == {GPU}


def test_moving_the_encoder_moves_it_whole_and_changes_no_bit():
    encoder = BertEncoder.initialised(SHAPE, torch.float32, 0)
    assert encoder.to("cpu") is encoder
    moved = encoder.to("meta")
    assert moved.device.type == "meta"
    assert {x.device.type for layer in moved.layers for affine in layer for x in affine} == {"meta"}
    assert encoder.device.type == "cpu"


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu")])
def test_a_device_that_is_there(name):
    assert resolve_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "", 7.5, "mps"])
def test_no_device(name):
    with pytest.raises(ValueError, match="is no device that models run on: use 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device(name)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs of 80 GB, as far as questions about it go."""
    facts = {"free": 50 * 10**9, "allocated": 20 * 10**9, "reserved": 24 * 10**9, "fraction": 1.0}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (facts["free"], 80 * 10**9))
    for name in ("allocated", "reserved"):
        monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda device, name=name: facts[name])
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: facts["fraction"])
    return facts


def test_gpus_that_are_there(gpus):
    assert default_device() == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device='cuda:2', but torch sees 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(monkeypatch):
    assert default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="was built without CUDA: install a CUDA build"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="torch sees 0 GPUs: `scfast doctor` shows the driver"):
        resolve_device("cuda")


def test_memory_of_a_gpu_is_what_is_free_there(gpus):
    assert free_device_memory(GPU) == 54 * 10**9  # 50 that the driver has, 4 that the allocator keeps unused
    assert granted_memory(None, GPU) == 54 * 10**9
    assert granted_memory("3GB", GPU) == 3 * 10**9
    assert granted_memory(None, torch.device("cpu")) == 2 * 10**9
    gpus["fraction"] = 0.5  # 40 GB for this process, 20 of them taken
    assert free_device_memory(GPU) == 20 * 10**9
    gpus["fraction"] = 0.2
    assert free_device_memory(GPU) == 0


def test_plans_for_a_gpu_have_larger_batches_and_its_name(gpus):
    lengths = np.full(200, 1000)
    plan = make_plan(lengths, token_budget=10**6, device=GPU)
    assert plan.token_budget == 65536
    assert plan.conditions()["device"] == "NVIDIA X"
    host = make_plan(lengths, token_budget=10**6)
    assert host.token_budget == 16384
    assert host.conditions()["device"] == "cpu"


def test_a_cell_too_large_for_a_gpu_is_told_what_is_free(gpus):
    source = toy_source()
    source.device = GPU
    text = str(cell_too_large(source, 3, 4000, 10**6, "CUDA out of memory."))
    assert "needs about 5000 MB on cuda:0, where 54000 MB are free" in text
    assert "or use device='cpu'" in text


@pytest.mark.parametrize("tool", [scfast.tl.rollout, scfast.tl.embed])
def test_tools_take_a_device(tool):
    with_it, without = toy_adata(), toy_adata()
    tool(with_it, toy_source(), device="cpu")
    tool(without, toy_source())
    key = "rollout" if tool is scfast.tl.rollout else "X_toy"
    params = [adata.uns[key]["params"] for adata in (with_it, without)]
    assert params[0] == params[1] if key == "X_toy" else params[0]["plan"] == params[1]["plan"]
    assert params[0]["plan"]["device"] == "cpu"
    with pytest.raises(ValueError, match="device='tpu' is no device"):
        tool(toy_adata(), toy_source(), device="tpu")
    with pytest.raises(ValueError, match="device='cuda:9', but torch"):
        tool(toy_adata(), toy_source(), device="cuda:9")


def test_the_model_goes_where_it_is_sent_and_tools_leave_the_users_alone(monkeypatch):
    sent = []

    class Mover(type(toy_source())):
        def to(self, device):
            sent.append(torch.device(device))
            return super().to(device)

    source = Mover(toy_source().genes)
    scfast.tl.embed(toy_adata(), source, device="cpu")
    assert sent == [torch.device("cpu")]
    scfast.tl.embed(toy_adata(), source)
    assert len(sent) == 1  # it stays where it is
    monkeypatch.setattr("scfast.models.load", lambda name, folder: source)
    scfast.tl.embed(toy_adata(), "toy:anywhere")
    assert sent[1:] == [default_device()]


def test_a_plan_that_was_halved_is_recorded_as_it_was_run(monkeypatch):
    plain, halved = toy_adata(), toy_adata()
    scfast.tl.rollout(plain, toy_source(), null="untrained")
    calls = []

    class Small(type(toy_source())):
        def forward(self, tokens, recorder):
            calls.append(tokens.n_tokens)
            if tokens.n_tokens > 200:
                raise MemoryError("Unable to allocate")
            super().forward(tokens, recorder)

        def untrained(self, seed=0):
            return Small(self.genes, seed=seed + 1000)

    scfast.tl.rollout(halved, Small(toy_source().genes), null="untrained")
    plans = [adata.uns["rollout"]["params"]["plan"] for adata in (plain, halved)]
    assert plans[0]["batches"] == 1
    assert plans[1]["batches"] > 1
    assert plans[0]["hash"] != plans[1]["hash"]
    assert sum(n > 200 for n in calls) < len(calls) // 2
    assert (
        calls[-plans[1]["batches"] :] == [n for n in calls if n <= 200][: plans[1]["batches"]]
    )  # no retry twice
    np.testing.assert_allclose(plain.varm["rollout"], halved.varm["rollout"], rtol=1e-4)
    np.testing.assert_allclose(plain.varm["rollout_null"], halved.varm["rollout_null"], rtol=1e-4)
