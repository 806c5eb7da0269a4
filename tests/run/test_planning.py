"""What a run would be, told beforehand: the same plan, all of the memory, times that follow from a few pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scfast
from scfast import models
from scfast.run import ShardedRun, make_plan, planning, resumable
from scfast.run import cost as costs
from scfast.run.budget import weights_bytes
from scfast.run.cost import Sample, calibrate, fit_cost, pieces
from tests.models import fixtures
from tests.run.test_shards import COUNTS, observe
from tests.toy import toy_adata, toy_source

TRUTH = (0.02, 3e-4, 2e-7)


def true_seconds(lengths: np.ndarray) -> float:
    return TRUTH[0] + TRUTH[1] * lengths.sum() + TRUTH[2] * (lengths**2).sum()


def sample(lengths: np.ndarray) -> Sample:
    return Sample(int(lengths.sum()), int((lengths**2).sum()), true_seconds(lengths))


def test_the_cost_that_made_the_times_is_found():
    rng = np.random.default_rng(0)
    found = fit_cost([sample(rng.integers(50, 2000, size)) for size in (1, 2, 3, 5, 8)])
    np.testing.assert_allclose(found[:3], TRUTH, rtol=1e-6)
    assert found.error < 1e-6
    assert fit_cost([Sample(100, 5000, 2.0)])[:3] == (0.0, 0.02, 0.0)


@given(
    times=st.lists(
        st.tuples(st.integers(1, 10**5), st.integers(1, 2048), st.floats(1e-6, 1e4)), min_size=1, max_size=8
    )
)
def test_no_part_of_a_cost_is_negative(times):
    found = fit_cost([Sample(tokens, tokens * length, seconds) for tokens, length, seconds in times])
    assert min(found[:3]) >= 0
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found.error) == (len(times) < 3)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    budget=st.integers(3000, 20_000),
    shard=st.integers(1, 60),
)
def test_pieces_grow_and_are_no_larger_than_batches(lengths, budget, shard):
    lengths = np.array(lengths)
    plan = make_plan(lengths, token_budget=budget, shard_cells=shard)
    parts = [(piece.rows, lengths[piece.rows].sum()) for piece in pieces(plan, lengths)]
    assert 1 <= len(parts) <= 3 * 7
    assert len({(rows[0], len(rows)) for rows, _ in parts}) == len(parts)
    for rows, tokens in parts:
        assert len(rows) == 1 or tokens <= plan.token_budget
        assert (np.diff(lengths[rows]) <= 0).all()
    assert lengths[parts[0][0]].min() <= lengths[parts[-1][0]].min()  # the shortest first


@pytest.mark.parametrize("seconds", [0.5, 5.0, 500.0])
def test_a_calibration_keeps_to_its_time(seconds, monkeypatch):
    lengths = np.random.default_rng(1).integers(100, 2000, 400)
    plan = make_plan(lengths, token_budget=16384)
    now = [0.0]

    def visit(source, counts, analyses, piece, observables, **options):
        now[0] += true_seconds(lengths[piece.rows])

    monkeypatch.setattr(costs, "visit", visit)
    run = ShardedRun(toy_source(), COUNTS, {}, plan, observe, {}, "toy")
    monkeypatch.setattr(type(COUNTS), "tokenize", lambda *_: None)
    found = calibrate(run, lengths, seconds, clock=lambda: now[0])
    assert len(found.samples) == 3 if seconds == 0.5 else now[0] < seconds
    if seconds == 500:
        assert max(x.tokens for x in found.samples) > 8192
        whole = sum(true_seconds(lengths[rows]) for rows in plan.batches())
        told = found.seconds(plan.n_batches, lengths.sum(), (lengths**2).sum())
        assert told == pytest.approx(whole, rel=1e-3)


def rollout(adata, **more):
    scfast.tl.rollout(adata, toy_source(), groupby="type", null="untrained", progress=False, **more)


def test_the_plan_is_that_of_the_run(tmp_path):
    adata = toy_adata()
    with planning(tmp_path / "run", shard_cells=7, seconds=0.05) as planned:
        rollout(adata)
    assert not adata.layers
    assert not adata.uns
    assert not (tmp_path / "run").exists()
    assert [run.name for run in planned.runs] == ["1-rollout", "2-untrained"]
    assert planned.ended_by is None
    with resumable(tmp_path / "run", shard_cells=7):
        rollout(adata)
    for run in planned.runs:
        manifest = json.loads((tmp_path / "run" / run.name / "run.json").read_text())
        assert manifest["plan"] == run.plan.hash
        assert manifest["about"] == {"memory": 2 * 10**9, "parts": run.parts}
        assert run.mine == [0, 1, 2, 3]
        assert run.finished == run.differs == []
        assert run.seconds > 0
    assert planned.seconds == planned.preparation + sum(run.seconds for run in planned.runs)
    assert planned.runs[0].cost is planned.runs[1].cost  # models of one shape by one plan
    json.dumps([run.as_dict() for run in planned.runs])


def test_what_is_finished_is_not_counted(tmp_path):
    with resumable(tmp_path, shard_cells=7):
        rollout(toy_adata())
    (tmp_path / "1-rollout" / "shard-000002").unlink()
    with planning(tmp_path, shard_cells=7, seconds=0.05) as planned:
        rollout(toy_adata())
    first, second = planned.runs
    assert (first.finished, first.mine) == ([0, 1, 3], [2])
    assert (second.mine, second.seconds) == ([], 0.0)
    with planning(tmp_path, shard_cells=7, part=(1, 2), seconds=0) as planned:
        rollout(toy_adata())
    assert planned.runs[0].mine == []
    assert planned.seconds is None
    assert np.isnan(planned.error)
    with planning(tmp_path, shard_cells=7, seconds=0) as planned:
        rollout(toy_adata(), residual=0.3)
    assert planned.runs[0].mine == [0, 1, 2, 3]
    assert [text.partition(" ")[0] for text in planned.runs[0].differs] == ["analysis"]


@pytest.mark.parametrize(("memory", "more"), [("1MB", {}), ("2GB", {"layers": "prefix"}), ("0.1MB", {})])
def test_the_parts_of_the_budget_are_all_of_it(memory, more):
    with planning(seconds=0) as planned:
        rollout(toy_adata(), memory=memory, **more)
    parts = planned.runs[0].parts
    assert sum(parts.values()) == scfast.run.parse_memory(memory)
    assert min(parts.values()) >= 0
    reserve = parts.get("reserve", 0) + parts["tokens made ahead"]
    assert reserve == pytest.approx(0.2 * sum(parts.values()), abs=1)
    assert {
        "activations of the model",
        "q and k kept of layers",
        "tokens and their places",
        "results",
    } <= set(parts)


def test_the_weights_of_a_model(tmp_path):
    source = models.load("geneformer", fixtures.write_v2(tmp_path))
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 0.8 * stored < weights_bytes(source) < 1.2 * stored


TOOLS = {
    "embed": lambda adata, model: scfast.tl.embed(adata, model, progress=False),
    "received": lambda adata, model: scfast.tl.received(adata, model, by="layer", progress=False),
    "rollout_matrix": lambda adata, model: scfast.tl.rollout_matrix(
        adata, model, genes=["G1"], progress=False
    ),
    "rank_profile": lambda adata, model: scfast.tl.rank_profile(
        adata, {"a": model, "b": model.untrained(1)}, progress=False
    ),
    "attention_shift": lambda adata, model: scfast.tl.attention_shift(
        adata, model, model.untrained(1), progress=False
    ),
    "key_genes": lambda adata, model: scfast.tl.key_genes(adata, model, null="untrained", progress=False),
    "probe": lambda adata, model: scfast.tl.probe(adata, model, "donor", folds=3, progress=False),
    "similarity": lambda adata, model: scfast.tl.similarity(adata, model, progress=False),
}
RUNS = {"rank_profile": 2, "key_genes": 2}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_can_be_planned(tool):
    adata = toy_adata()
    with planning(seconds=0.01) as planned:
        TOOLS[tool](adata, toy_source())
    assert len(planned.runs) == RUNS.get(tool, 1)
    assert all(run.seconds > 0 for run in planned.runs)
    assert not any((adata.uns, adata.obsm, adata.varm, adata.layers))


def test_an_error_of_the_arguments_is_one_and_an_error_for_want_of_results_is_noted():
    with pytest.raises(KeyError, match="groupby='colour' is not in"), planning():
        scfast.tl.rollout(toy_adata(), toy_source(), groupby="colour")
    with planning(seconds=0) as planned:
        rollout(toy_adata())
        raise RuntimeError("no results")
    assert str(planned.ended_by) == "no results"
    with pytest.raises(ValueError, match="seconds=-1 must not be negative"), planning(seconds=-1):
        pass
