"""Cells that do not fit as a whole are run in blocks of tokens: the same results, in less memory."""

from __future__ import annotations

import re
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import scfast
from scfast import Packing, models
from scfast.attention import LayerAttention, LayerBlocks, Recorder, query_blocks
from scfast.models.base import Tokens
from scfast.models.geneformer import GeneformerSource
from scfast.observables import Entropy, HiddenStates, Observable, Received, Rollout
from scfast.run.memory import BLOCK_TOKENS, bytes_per_token, fit
from scfast.tl import _batches
from tests.models import fixtures
from tests.ops.helpers import assert_by_rule
from tests.toy import toy_source

LENGTHS = (17, 1, 64, 33, 0, 7)


def made_tokens(lengths: tuple[int, ...]) -> Tokens:
    total = sum(lengths)
    return Tokens(
        ids=torch.randint(4, 42, (total,), generator=torch.Generator().manual_seed(0)),
        positions=torch.cat([torch.arange(n) for n in (*lengths, 0)]),
        packing=Packing.from_lengths(lengths),
        gene_index=torch.arange(total),
        kind=torch.zeros(total, dtype=torch.uint8),
        lost_vocabulary=torch.zeros(len(lengths), dtype=torch.int64),
        lost_truncation=torch.zeros(len(lengths), dtype=torch.int64),
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GeneformerSource:
    return models.load("geneformer", fixtures.write_v2(tmp_path_factory.mktemp("v2"), hidden_act="gelu"))


def observables() -> list[Observable]:
    rollouts = [Rollout("cls", heads=heads, name=heads) for heads in ("mean", "max", "min", "sum")]
    layers = [Rollout("mean", layers=which, name=which) for which in ("prefix", "suffix")]
    statistics = [Received(), Received(per_layer=True, name="each"), Entropy()]
    states = [HiddenStates(), HiddenStates(-1, pool="mean", name="vectors")]
    return [*rollouts, *layers, Rollout("mean", residual=0.3, name="third"), *statistics, *states]


def recorded(
    source: GeneformerSource, tokens: Tokens, wanted: list[Observable], backend: str = "auto"
) -> dict[str, torch.Tensor]:
    recorder = Recorder(wanted, backend=backend)
    source.forward(tokens, recorder)
    return recorder.batch


def assert_as_exact(name: str, blocks: torch.Tensor, whole: torch.Tensor, exact: torch.Tensor) -> None:
    """The error rule, the whole run in the place of plain torch: both against attention in float64.

    Scores are their own size; a state's numbers have the size of its largest, since they are sums that cancel.
    """
    exact = exact.double()
    size = exact if (exact >= 0).all() else exact.abs().amax(-1, keepdim=True).expand_as(exact)
    assert_by_rule(name, blocks, exact, whole, size)


@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (40,), (0, 0), ()], ids=str)
@pytest.mark.parametrize("size", [1, 16, 30, 500])
def test_blocks_change_no_result(source: GeneformerSource, lengths: tuple[int, ...], size: int) -> None:
    if size == 1 and sum(lengths) > 40:
        size = 7
    tokens = made_tokens(lengths)
    whole, blocks = (recorded(form, tokens, observables()) for form in (source, source.in_blocks(size)))
    assert set(whole) == set(blocks)
    exact = recorded(source, tokens, observables(), "reference")
    for name in whole:
        assert_as_exact(name, blocks[name], whole[name], exact[name])


@pytest.mark.parametrize("observable", [Rollout("cls"), Received(), Entropy(), HiddenStates(0)])
def test_the_model_stops_early_in_blocks_too(source: GeneformerSource, observable: Observable) -> None:
    """Each alone: whether the last layer gives an output depends on who asks."""
    tokens = made_tokens(LENGTHS)
    whole, blocks = (recorded(form, tokens, [observable]) for form in (source, source.in_blocks(20)))
    exact = recorded(source, tokens, [observable], "reference")[observable.name]
    assert_as_exact(observable.name, blocks[observable.name], whole[observable.name], exact)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("offsets", [None, [1, 0, -2]], ids=str)
def test_query_blocks_see_what_their_queries_see(causal: bool, offsets: list[int] | None) -> None:
    lengths = [9, 0, 14]
    packing = Packing.from_lengths(lengths, causal_offset=offsets)
    q, k, v = torch.randn(3, 23, 2, 8).unbind(0)
    whole = scfast.ops.attention_forward(q, k, v, packing, causal=causal)
    for size in (1, 4, 23, 99):
        parts = query_blocks(packing, size)
        assert [rows.stop - rows.start for rows, _ in parts] == [part.total_q for _, part in parts]
        out = [scfast.ops.attention_forward(q[rows], k, v, part, causal=causal).out for rows, part in parts]
        torch.testing.assert_close(torch.cat(out), whole.out)
    with pytest.raises(ValueError, match="a block must hold a token or more, got 0"):
        query_blocks(packing, 0)


def test_what_needs_whole_layers_is_refused_by_name(source: GeneformerSource) -> None:
    class Whole(Observable):
        name = "whole"

    for observable in (Whole(), Rollout("cls", convention="vit-explain")):
        recorder = Recorder([observable], backend="reference")
        with pytest.raises(ValueError, match=f"{type(observable).__name__} needs whole layers"):
            source.in_blocks(8).forward(made_tokens((9,)), recorder)


def test_a_layer_out_of_turn_is_an_error() -> None:
    packing = Packing.from_lengths([3])
    q, k = torch.randn(2, 3, 2, 8).unbind(0)
    recorder = Recorder([Rollout("mean")])
    recorder.begin(2, packing)
    layer = LayerBlocks(1, lambda rows: q[rows], lambda: k, None, query_blocks(packing, 2))
    with pytest.raises(RuntimeError, match="layer 1 of 2 was reported where layer 0 was due"):
        list(recorder.attend_blocks(layer))
    recorder.attend(LayerAttention(0, q, k, None, packing))  # whole layers and layers in blocks may follow
    assert list(recorder.attend_blocks(layer)) == [(slice(0, 2), None), (slice(2, 3), None)]
    recorder.finish()
    assert float(recorder.batch["rollout"].sum()) == pytest.approx(1)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that torch's operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            key = storage._cdata
            if key in self._known or key in given:  # the latter are views, of weights too
                continue
            self._known.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("wanted", "kept"), [(Rollout("mean"), 6), (HiddenStates(-1, pool="mean"), 0)])
def test_blocks_take_what_they_are_said_to(
    activation: str, wanted: Observable, kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "max_position_embeddings": 2048,
    }
    folder = fixtures.write_v1(tmp_path_factory.mktemp(activation), hidden_act=activation, **shape)
    whole = models.load("geneformer", folder)
    tokens = made_tokens((2048, 2048))
    peaks = []
    for form in (whole, whole.in_blocks(256)):
        recorder = Recorder([wanted], keep=False)
        with LiveBytes() as memory:
            form.forward(tokens, recorder)
        said = bytes_per_token(form, layers_kept=kept) * 4096 + form.bytes_per_token().get("block", 0)
        assert 0.4 * said < memory.peak <= said, "peak and plan are far apart"
        peaks.append(memory.peak)
    assert peaks[1] < 0.8 * peaks[0]


def cells(source: GeneformerSource, n: int = 6) -> AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (n, len(source.genes))).astype(np.float32) + 1
    return AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=source.genes))


@pytest.mark.parametrize(
    ("tool", "key", "kept"), [(scfast.tl.rollout, "rollout", 3), (scfast.tl.embed, "X_geneformer", 0)]
)
def test_a_budget_too_small_for_whole_cells_is_met_in_blocks(
    tool: Any, key: str, kept: int, source: GeneformerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfast.run.memory.BLOCK_TOKENS", (16, 8, 4))
    plain, tight, exactly = (cells(source) for _ in range(3))
    tool(plain, source)
    tool(exactly, source, backend="reference")
    reserved = []
    monkeypatch.setattr(_batches, "fit", lambda *a, **k: (reserved.append(k["reserved"]), fit(*a, **k))[1])
    need = bytes_per_token(source, layers_kept=kept, hidden_kept=int(not kept)) * (len(source.genes) + 2)
    tool(tight, source)
    tool(tight, source, memory=int((need + reserved[0]) / 0.8) - 10)
    plans = [adata.uns[key]["params"]["plan"] for adata in (plain, tight)]
    assert plans[0]["block_tokens"] == 0
    assert plans[1]["block_tokens"] in (16, 8)
    assert plans[0]["hash"] != plans[1]["hash"]
    slot = "layers" if kept else "obsm"
    name = "rollout" if kept else key
    ours, whole, exact = (
        torch.from_numpy(sparse.csr_matrix(getattr(adata, slot)[name]).toarray())
        for adata in (tight, plain, exactly)
    )
    assert_as_exact(key, ours, whole, exact)
    with pytest.raises(
        ValueError, match=r"the longest cell has 42 tokens, .* in the smallest blocks"
    ) as error:
        tool(tight, source, memory=int((need / 4 + reserved[0]) / 0.8))
    assert re.search(r"pass memory='\d+MB' or more", str(error.value))


def test_the_largest_blocks_that_fit_are_taken(source: GeneformerSource) -> None:
    longest = 10**5
    whole = bytes_per_token(source, layers_kept=3) * longest / 0.8
    assert fit(source, int(whole) + 10, longest, layers_kept=3).block_tokens == 0
    less = fit(source, int(whole) - 10, longest, layers_kept=3)
    assert (less.block_tokens, less.source.block_tokens) == (BLOCK_TOKENS[0], BLOCK_TOKENS[0])
    assert less.token_budget >= longest
    blocked = bytes_per_token(less.source, layers_kept=3) * longest / 0.8
    tight = fit(source, int(blocked * 1.002), longest, layers_kept=3)
    assert tight.block_tokens < BLOCK_TOKENS[0]
    assert tight.token_budget >= longest
    with pytest.raises(ValueError, match="in the smallest blocks"):
        fit(source, int(blocked), longest, layers_kept=3)
    with pytest.raises(ValueError, match="too little") as error:
        fit(source, int(whole) - 10, longest, layers_kept=3, in_blocks=False)
    assert "blocks" not in str(error.value)
    with pytest.raises(ValueError, match="too little") as error:
        fit(toy_source(), 1000, longest, layers_kept=3)
    assert "blocks" not in str(error.value)


def test_the_null_model_runs_in_the_same_blocks(source: GeneformerSource) -> None:
    blocked = source.in_blocks(8)
    assert blocked.untrained(1).block_tokens == blocked.to("cpu").block_tokens == 8
    assert source.block_tokens is None
    counts = scfast.run.Counts(cells(source).X, cells(source).var)
    lengths = np.array([42] * 6)
    plan = scfast.run.make_plan(lengths, token_budget=100, block_tokens=8)
    budget = None  # which is not asked
    batches = _batches.Batches(blocked, counts, None, plan, {}, _batches.Conditions(), lengths, budget)  # type: ignore[arg-type]
    assert batches.again(source.untrained(), plan).source.block_tokens == 8
    with pytest.raises(ValueError, match="run in blocks, which toy cannot: grant more"):
        batches.again(toy_source(), plan)
