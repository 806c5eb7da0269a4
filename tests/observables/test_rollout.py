"""Rollout: the sweep against materialised products, and against the authors' own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import scfast
from scfast.attention import LayerAttention, Recorder, ScoreOptions
from scfast.observables import Observable, Received, Rollout
from scfast.observables.rollout import SUM_TOLERANCE
from scfast.reference._maps import prob_maps
from scfast.reference.rollout import rollout_matrices
from tests.attention.helpers import run_maps

LENGTHS = (5, 0, 1, 33, 12)
N_LAYERS = 4
#: float32 column sums over a few layers against float64
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def layers(
    lengths: tuple[int, ...] = LENGTHS,
    n_layers: int = N_LAYERS,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[LayerAttention]:
    generator = torch.Generator().manual_seed(seed)
    packing = scfast.Packing.from_lengths(lengths)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(packing.total_q, heads, 16, generator=generator).mul(1.5).to(dtype)

    return [LayerAttention(layer, draw(4), draw(2), None, packing) for layer in range(n_layers)]


def run(attentions: list[LayerAttention], *observables: Observable, **options: object) -> Recorder:
    context = {name: options.pop(name) for name in ("kind", "gene_index", "cls_position") if name in options}
    recorder = Recorder(observables, **options)  # type: ignore[arg-type]
    recorder.begin(len(attentions), attentions[0].packing, **{"cls_position": 0, **context})  # type: ignore[arg-type]
    assert all(recorder.attend(attention) is None for attention in attentions)
    recorder.finish()
    return recorder


def maps_of(attentions: list[LayerAttention]) -> list[list[torch.Tensor]]:
    """Per cell, per layer [H, n, n] float64."""
    per_layer = ([p for p, _ in prob_maps(a.q, a.k, a.packing, **a.options.kwargs())] for a in attentions)
    return [list(cell) for cell in zip(*per_layer, strict=True)]


def weights_of(readout: str, n: int) -> torch.Tensor:
    weights = torch.zeros(n, dtype=torch.float64)
    if n:
        weights[0 if readout == "cls" else slice(None)] = 1.0 if readout == "cls" else 1.0 / n
    return weights


@pytest.mark.parametrize("readout", ["cls", "mean"])
@pytest.mark.parametrize("heads", ["mean", "max", "min", "sum"])
@pytest.mark.parametrize("residual", [0.5, 0.2, 1.0])
def test_equals_the_product_of_maps(readout: str, heads: str, residual: float, backend: str) -> None:
    attentions = layers()
    rec = run(attentions, Rollout(readout, residual=residual, heads=heads), backend=backend)
    for scores, maps in zip(rec["rollout"], maps_of(attentions), strict=True):
        joint = rollout_matrices(maps, residual=residual, heads=heads).joint[-1]
        assert_close(scores.double(), weights_of(readout, len(scores)) @ joint, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_prefix_suffix_and_part_of_the_model(readout: str, causal: bool, backend: str) -> None:
    attentions = [
        LayerAttention(
            a.layer, a.q, a.k, None, a.packing, ScoreOptions(scale=0.3, softcap=4.0, causal=causal)
        )
        for a in layers()
    ]
    observables = (
        Rollout(readout), Rollout(readout, layers="prefix", name="prefix"),
        Rollout(readout, layers="suffix", name="suffix"), Rollout(readout, layers=(1, 2), name="part"),
        Rollout(readout, layers=(-2, -1), name="top"), Rollout(readout, layers=(0, N_LAYERS - 1), name="all"),
    )  # fmt: skip
    rec = run(attentions, *observables, backend=backend)
    for cell, maps in enumerate(maps_of(attentions)):
        w = weights_of(readout, LENGTHS[cell])

        def expected(first: int, last: int, maps: list = maps, w: torch.Tensor = w) -> torch.Tensor:
            return w @ rollout_matrices(maps[first : last + 1]).joint[-1]

        last = N_LAYERS - 1
        prefix = torch.stack([expected(0, k) for k in range(N_LAYERS)])
        suffix = torch.stack([expected(k, last) for k in range(N_LAYERS)])
        assert_close(rec["prefix"][cell].double(), prefix, **CLOSE)
        assert_close(rec["suffix"][cell].double(), suffix, **CLOSE)
        assert_close(rec["part"][cell].double(), expected(1, 2), **CLOSE)
        assert_close(rec["top"][cell].double(), expected(2, 3), **CLOSE)
        assert torch.equal(rec["all"][cell], rec["rollout"][cell])
    for name, row in (("prefix", -1), ("suffix", 0)):
        assert_close(rec.batch[name][row], rec.batch["rollout"], **CLOSE)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    n_layers=st.integers(1, 3),
    rows=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_weights_keep_their_sum(lengths: list[int], n_layers: int, rows: int, seed: int) -> None:
    attentions = layers(tuple(lengths), n_layers, seed=seed)
    packing = attentions[0].packing
    weights = torch.rand(rows, packing.total_q, generator=torch.Generator().manual_seed(seed))
    rec = run(attentions, Rollout(weights), Rollout(weights, layers="prefix", name="prefix"))
    expected_shape = (rows, packing.total_q) if rows > 1 else (packing.total_q,)
    assert rec.batch["rollout"].shape == expected_shape
    assert rec.batch["prefix"].shape == (n_layers, *expected_shape)
    for scores, given_weights in zip(rec["rollout"], packing.split_q(weights, dim=1), strict=True):
        assert_close(scores.sum(-1), given_weights.sum(-1).reshape(scores.shape[:-1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", ["mean", "max"])
def test_half_precision_sums_to_one(dtype: torch.dtype, heads: str, backend: str) -> None:
    attentions = layers((700, 31), 3, dtype)
    rec = run(attentions, Rollout("mean", heads=heads), backend=backend)
    for scores, maps in zip(rec["rollout"], maps_of(attentions), strict=True):
        error = abs(scores.double().sum().item() - 1)
        assert error < 3 * SUM_TOLERANCE[dtype]
        expected = rollout_matrices(maps, heads=heads).joint[-1].mean(0)
        assert_close(scores.double(), expected, rtol=2e-2, atol=1e-5)


def test_mean_leaves_special_tokens_out_and_gene_finds_its_tokens(backend: str) -> None:
    attentions = layers((4, 3))
    kind = torch.tensor([1, 0, 0, 3, 1, 1, 2], dtype=torch.uint8)
    gene_index = torch.tensor([-1, 2, 2, -1, -1, -1, 0])
    given_rows = torch.zeros(2, 7)
    given_rows[:, 1:3] = 0.5
    given_rows[1, 6] = 1.0
    rec = run(
        attentions, Rollout("mean"), Rollout("gene:CD3D", name="cd3d"), Rollout("gene:LYZ", name="lyz"),
        Rollout(given_rows, name="given"),
        backend=backend, kind=kind, gene_index=gene_index, gene_names=["LYZ", "CD8A", "CD3D"],
    )  # fmt: skip
    assert torch.equal(rec.batch["rollout"], rec.batch["given"][0])
    assert torch.equal(rec.batch["cd3d"], rec.batch["given"][0])
    assert not rec["rollout"][1].any()  # the second cell has no gene token
    assert not rec["lyz"][0].any()
    assert_close(rec["lyz"][1], rec["given"][1][1], **CLOSE)


def test_the_readout_is_exactly_sparse(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    seen = []
    op = scfast.ops.attention_colsum
    monkeypatch.setattr(
        scfast.ops, "attention_colsum", lambda q, k, p, w, **o: seen.append(w) or op(q, k, p, w, **o)
    )
    run(layers(), Rollout("cls"), backend=backend)
    assert [int(w.count_nonzero()) for w in seen[:1]] == [4]  # one row per cell that has tokens


def golden(shared: Path) -> np.lib.npyio.NpzFile:
    return np.load(shared / "golden" / "rollout_a.npz")


def test_golden_abnar(shared: Path, backend: str) -> None:
    arrays = golden(shared)
    maps = torch.from_numpy(arrays["maps"])
    n = maps.shape[-1]
    every_row = torch.eye(n).repeat(1, len(maps))
    for residual, name in ((0.5, "joint_residual"), (1.0, "joint_noresidual")):
        rec = run_maps(maps, Rollout(every_row, layers="prefix", residual=residual), backend=backend)
        got = torch.stack(rec["rollout"])  # [B, N, n, n]: each row of the joint matrix after each layer
        assert_close(got.double(), torch.from_numpy(arrays[f"abnar/{name}"]), **CLOSE)
    for head in range(maps.shape[2]):
        rec = run_maps(maps[:, :, head : head + 1], Rollout(every_row, layers="prefix"), backend=backend)
        expected = torch.from_numpy(arrays["abnar/joint_residual_perhead"])[:, head]
        assert_close(torch.stack(rec["rollout"]).double(), expected, **CLOSE)


def test_golden_chefer(shared: Path, backend: str) -> None:
    arrays = golden(shared)
    maps = torch.from_numpy(arrays["maps"])
    every_row = torch.eye(maps.shape[-1]).repeat(1, len(maps))
    for start in (0, 1, 3):
        rec = run_maps(maps, Rollout(every_row, layers=(start, -1)), backend=backend)
        expected = torch.from_numpy(arrays[f"chefer/rollout_start{start}"])
        assert_close(torch.stack(rec["rollout"]).double(), expected, **CLOSE)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_golden_vit_explain(shared: Path, heads: str, ratio: float) -> None:
    arrays, key = golden(shared), f"vit/{heads}_{ratio}"
    maps = torch.from_numpy(arrays["maps_f32"])
    rollout = Rollout("cls", heads=heads, convention="vit-explain", discard_ratio=ratio)
    rec = run_maps(maps, rollout, backend="reference")
    for sample, layer_maps in enumerate(maps):
        matrices = rollout_matrices(
            list(layer_maps), heads=heads, convention="vit-explain", discard_ratio=ratio
        )
        assert_close(matrices.layers.float().numpy(), arrays[f"{key}/layer_matrix"][sample], **CLOSE)
        assert_close(matrices.joint[-1].float().numpy(), arrays[f"{key}/joint"][sample], **CLOSE)
        scores = rec["rollout"][sample]
        assert_close(scores.numpy(), arrays[f"{key}/joint"][sample][0], **CLOSE)
        mask = scores[1:].reshape(4, 4)
        assert_close((mask / mask.max()).numpy(), arrays[f"{key}/mask"][sample], **CLOSE)


def test_vit_explain_needs_the_reference() -> None:
    with pytest.raises(ValueError, match="backend='reference'"):
        run(layers(), Rollout(convention="vit-explain"))


def test_broken_attention_is_reported(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    attentions = layers((3, 2))
    attentions[1].q[4, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"cell 1 are NaN"):
        run(attentions, Rollout("mean"), backend=backend)
    op = scfast.ops.attention_colsum
    monkeypatch.setattr(scfast.ops, "attention_colsum", lambda *a, **o: op(*a, **o) * 1.00002)
    with pytest.raises(ValueError, match=r"cell 0 sum to 1\.0000[0-9]*, expected 1 within 8e-06"):
        run(layers((3, 2)), Rollout("mean"), backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "first"}, "readout='first' is unknown"),
        ({"layers": "middle"}, "layers='middle' is unknown"),
        ({"residual": 1.5}, r"residual must lie in \[0, 1\], got 1.5"),
        ({"heads": "none"}, "heads='none' is not a fusion"),
        ({"convention": "chefer"}, "convention='chefer' is unknown"),
        ({"convention": "vit-explain", "layers": "prefix"}, "vit-explain"),
        ({"discard_ratio": 0.5}, "belongs to convention='vit-explain'"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rollout(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rollout", "options", "message"),
    [
        (Rollout(), {"cls_position": None}, "no cls token: use readout='mean'"),
        (Rollout(), {"cls_position": 3}, "outside cell 1, which has 2 tokens"),
        (Rollout("gene:LYZ"), {}, "give gene_names"),
        (
            Rollout("gene:LYZ"),
            {"gene_index": torch.zeros(7).long(), "gene_names": ["A"]},
            "'LYZ' occurs 0 times",
        ),
        (Rollout(torch.ones(6)), {}, r"must be \[R, 7\] for this batch, got \(6,\)"),
        (Rollout(torch.full((7,), torch.nan)), {}, "must be finite"),
        (Rollout(layers=(2, 1)), {}, r"layers=\(2, 1\) must name a first and a last of the 4 layers"),
        (Rollout(layers=(0, 4)), {}, "0 to 3"),
    ],
)
def test_batches_that_do_not_fit(rollout: Rollout, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(layers((5, 2)), rollout, backend="reference", **options)


def test_a_key_value_cache_is_refused() -> None:
    recorder = Recorder([Rollout()])
    with pytest.raises(ValueError, match="as many queries as keys"):
        recorder.begin(1, scfast.Packing.from_lengths([1], [4]), cls_position=0)


def test_identity_of_received_and_rollout_without_residual(backend: str) -> None:
    """One layer, residual 1, even weights: rollout is attention received over heads and queries."""
    attentions = layers((33,), 1)
    rec = run(attentions, Rollout("mean", residual=1.0), Received(), backend=backend)
    assert_close(rec["rollout"][0] * 33 * 4, rec["received"][0], **CLOSE)
