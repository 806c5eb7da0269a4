"""Norm-based analysis against vectors materialised in full, and against the authors' own code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import scfast
from scfast.attention import Recorder
from scfast.observables import HeadNorms, MixingRatio
from scfast.observables.vectors import KINDS, self_weights, vectors
from tests.observables.golden_bert import CLOSE, GoldenBert
from tests.observables.norm_maps import CellVectors, both, materialised, random_layer, run
from tests.ops.helpers import assert_by_rule

LENGTHS = (7, 0, 1, 33)
OPTIONS = [
    {},
    {"n_shared": 4, "scale": 0.7},
    {"n_shared": 1, "softcap": 1.5, "key_bias": True},
    {"causal": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_mixing_ratio(options: dict[str, object], backend: str) -> None:
    layers = [random_layer(number, LENGTHS, **options) for number in range(2)]  # type: ignore[arg-type]
    rec = run(layers, MixingRatio(KINDS), backend=backend)
    for number, layer in enumerate(layers):
        for k, kind in enumerate(KINDS):
            for cell, (exact, plain) in enumerate(both(layer, kind)):
                got, ratio = rec["mixing_ratio"][cell][number, k], exact.mixing_ratio
                assert_by_rule(kind, got, ratio, plain.mixing_ratio, torch.ones_like(ratio))
                assert got.numel() == 0 or (got.min() >= 0 and got.max() <= 1)


def numbers_of_heads(cell: CellVectors, states: torch.Tensor) -> torch.Tensor:
    """|P|, |P x| and P|f| of every head, [H, 3]."""
    norms = cell.transformed.norm(dim=-1)  # [H, n]
    weighted = (cell.maps * norms[:, None]).sum((1, 2)) / max(len(states), 1)
    numbers = [cell.maps.flatten(1).norm(dim=1), (cell.maps @ states).flatten(1).norm(dim=1), weighted]
    return torch.stack(numbers, dim=-1)


@pytest.mark.parametrize("options", OPTIONS)
def test_head_norms(options: dict[str, object], backend: str) -> None:
    layers = [random_layer(number, LENGTHS, **options) for number in range(2)]  # type: ignore[arg-type]
    rec = run(layers, HeadNorms(["prob", "mixed", "weighted"]), backend=backend)
    for number, layer in enumerate(layers):
        assert layer.attention.hidden_in is not None
        states = layer.attention.packing.split_q(layer.attention.hidden_in)
        for cell, pair in enumerate(both(layer, "attn-n")):
            exact, plain = (numbers_of_heads(x, states[cell].to(x.maps.dtype)) for x in pair)
            sizes = numbers_of_heads(pair[0], states[cell].double().abs())
            assert_by_rule("head norms", rec["head_norms"][cell][number], exact, plain, sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    layer = random_layer(0, LENGTHS, dtype=dtype)
    rec = run([layer], MixingRatio(KINDS), HeadNorms(["prob", "weighted"]), backend=backend)
    for k, kind in enumerate(KINDS):
        for cell, expected in enumerate(materialised(layer, kind)):
            got = rec["mixing_ratio"][cell][0, k].double()
            # the attention output is rounded to the model's dtype before it is measured
            assert_close(got, expected.mixing_ratio, rtol=0, atol=2 * torch.finfo(dtype).eps)
    for cell, expected in enumerate(materialised(layer, "attn-n")):
        prob = rec["head_norms"][cell][0, :, 0].double()
        assert_close(prob, expected.maps.flatten(1).norm(dim=1), rtol=1e-5, atol=0)  # q and k as they are


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 2**22])
def test_gram_matrices_are_those_of_the_vectors(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfast.observables.vectors._BLOCK_FLOATS", block)
    layer = random_layer(3, (9, 4))
    its = layer.attention.parts
    assert its is not None
    sigma = {
        "attention": its.attention_norm.sigma(layer.norm_inputs["attention"]),
        "output": its.output_norm.sigma(layer.norm_inputs["output"]),
    }
    terms = vectors(layer.attention, kind, sigma)
    f, plain = (
        torch.einsum("thd,hde->the", terms.values.to(dtype), terms.projection.to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    norms = f.norm(dim=-1)
    products, by_torch = (torch.einsum("the,tge->thg", x, x) for x in (f, plain))
    assert_by_rule("gram", terms.gram(), products, by_torch, norms[:, :, None] * norms[:, None])
    assert_by_rule("head norms", terms.head_norms(), norms, plain.norm(dim=-1))
    assert torch.equal(terms.gram(), terms.gram().mT)


def test_own_weights_are_the_diagonal() -> None:
    layer = random_layer(1, (8, 3), softcap=2.0, key_bias=True, causal=True)
    result = scfast.ops.attention_forward(
        layer.attention.q, layer.attention.k, layer.attention.v, layer.attention.packing,
        **layer.attention.options.kwargs(),
    )  # fmt: skip
    own = self_weights(replace(layer.attention, lse=result.lse))
    exact, plain = (
        torch.cat([cell.maps.diagonal(dim1=1, dim2=2).T for cell in materialised(layer, "attn-n", dtype)])
        for dtype in (torch.float64, torch.float32)
    )  # [T, H]
    assert_by_rule("own weights", own, exact, plain)


@pytest.mark.parametrize("by", ["transformers", "scfast"])
def test_golden_mixing_ratios(shared: Path, by: str, backend: str) -> None:
    for name, kinds in (
        ("kobayashi2021_a", KINDS[:3]),
        ("globenc_a", KINDS),
    ):
        golden = GoldenBert(shared, name)
        rec = golden.run(by, MixingRatio(kinds), backend=backend)
        keys = ("attn_n", "attnres_n", "attnresln_n", "attnresln2_n")
        for layer in range(golden.n_layers):
            for k, key in enumerate(keys[: len(kinds)]):
                expected = golden.expected(f"{key}_mixing_ratio_{layer}", dims=1)
                for got, ratios in zip(rec["mixing_ratio"], expected, strict=True):
                    assert_close(got[layer, k].double(), ratios, **CLOSE)


@pytest.mark.parametrize("name", ["kobayashi2020_a", "kobayashi2021_a"])
@pytest.mark.parametrize("by", ["transformers", "scfast"])
def test_golden_head_norms(shared: Path, name: str, by: str, backend: str) -> None:
    golden = GoldenBert(shared, name)
    rec = golden.run(by, HeadNorms(["weighted", "prob"]), backend=backend)
    for layer in range(golden.n_layers):
        weighted = golden.expected(f"weighted_norm_{layer}")  # [H, n, n]
        for cell, norms in enumerate(weighted):
            got = rec["head_norms"][cell][layer]
            assert_close(got[:, 0].double(), norms.sum((1, 2)) / golden.lengths[cell], **CLOSE)
            if name == "kobayashi2020_a":
                maps = golden.expected(f"attention_{layer}")[cell]
                assert_close(got[:, 1].double(), maps.flatten(1).norm(dim=1), **CLOSE)


def test_norms_of_a_pre_norm_model_are_refused_by_name() -> None:
    layer = random_layer(0, (5,), post_norm=False)
    assert run([layer], MixingRatio(["attn-n", "attnres-n"]))["mixing_ratio"][0].shape == (1, 2, 5)
    with pytest.raises(ValueError, match=r"attnresln-n is undefined for a pre-norm model.*'attnres-n'"):
        run([layer], MixingRatio())


def test_models_that_do_not_say_enough() -> None:
    layer = random_layer(0, (5,))
    for missing in ("parts", "hidden_in", "v"):
        recorder = Recorder([MixingRatio()])
        recorder.begin(1, layer.attention.packing)
        assert recorder.needs_output
        with pytest.raises(ValueError, match="MixingRatio needs the values, the layer's input, projection"):
            recorder.attend(replace(layer.attention, **{missing: None}))
    layer.norm_inputs.pop("attention")
    with pytest.raises(RuntimeError, match="did not report the inputs of the norms of layer 0"):
        run([layer], MixingRatio())
    with pytest.raises(ValueError, match="norm='first' is unknown"):
        run([replace(layer, norm_inputs={"first": torch.zeros(5, 24)})], MixingRatio())
    with pytest.raises(ValueError, match=r"inputs of norms must be packed as \[5, d\]"):
        run([replace(layer, norm_inputs={"attention": torch.zeros(4, 24)})], MixingRatio())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixingRatio(["attnn"]), "'attnn' is no norm-based measure; there are 'attn-n'"),
        (lambda: MixingRatio([]), "at least one measure"),
        (lambda: MixingRatio(["attn-n", "attn-n"]), "none twice"),
        (lambda: HeadNorms(["max"]), r"quantities=\['max'\]"),
    ],
)
def test_options_that_do_not_exist(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
