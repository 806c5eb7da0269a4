"""Norm-weighted column sums against vectors materialised in full, and against the authors' own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from scfast.observables import AttentionNorms
from scfast.observables.vectors import KINDS
from tests.observables.golden_bert import CLOSE, GoldenBert
from tests.observables.norm_maps import both, random_layer, run
from tests.ops.helpers import assert_by_rule

LENGTHS = (7, 0, 1, 33)
OPTIONS = [
    {},
    {"n_shared": 4, "scale": 0.7},
    {"n_shared": 1, "softcap": 1.5, "key_bias": True},
    {"causal": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_sums_over_queries(options: dict[str, object], backend: str) -> None:
    layers = [random_layer(number, LENGTHS, **options) for number in range(2)]  # type: ignore[arg-type]
    rec = run(layers, AttentionNorms(KINDS), AttentionNorms(per_head=True, name="heads"), backend=backend)
    for number, layer in enumerate(layers):
        for k, kind in enumerate(KINDS):
            for cell, (exact, plain) in enumerate(both(layer, kind)):
                got = rec["attention_norms"][cell][number, k]
                assert_by_rule(kind, got, exact.norms.sum(0), plain.norms.sum(0), exact.sizes.sum(0))
        for cell, pair in enumerate(both(layer, "attn-n")):
            exact, plain = (((x.maps * x.transformed.norm(dim=-1)[:, None]).sum(1)) for x in pair)
            assert_by_rule("per head", rec["heads"][cell][number], exact, plain)


def test_readouts_weigh_the_queries(backend: str) -> None:
    layer = random_layer(0, (7, 4))
    weights = torch.rand(2, 11, generator=torch.Generator().manual_seed(0))
    rec = run(
        [layer], AttentionNorms(["attnres-n"], readout=weights), AttentionNorms(readout="mean", name="mean"),
        backend=backend,
    )  # fmt: skip
    given = layer.attention.packing.split_q(weights, dim=1)
    for cell, (exact, plain) in enumerate(both(layer, "attnres-n")):
        got, rows = rec["attention_norms"][cell], given[cell]
        assert got.shape == (1, 1, 2, len(exact.norms))
        sums, sizes = (rows.double() @ x for x in (exact.norms, exact.sizes))
        assert_by_rule("weights", got[0, 0], sums, rows @ plain.norms, sizes)
    for cell, (exact, plain) in enumerate(both(layer, "attn-n")):
        assert_by_rule(
            "mean", rec["mean"][cell][0, 0], exact.norms.mean(0), plain.norms.mean(0), exact.sizes.mean(0)
        )


@pytest.mark.parametrize("by", ["transformers", "scfast"])
def test_golden_maps_row_by_row(shared: Path, by: str, backend: str) -> None:
    for name, kinds, keys in (
        ("kobayashi2020_a", KINDS[:1], ("summed_weighted_norm",)),
        ("kobayashi2021_a", KINDS[:3], ("summed_weighted_norm", "residual_weighted_norm", "post_ln_norm")),
        ("globenc_a", KINDS, ("summed_weighted_norm", "residual_weighted_norm", "post_ln_norm", "post_ln2_norm")),
    ):  # fmt: skip
        golden = GoldenBert(shared, name)
        rows = golden.every_row()
        rec = golden.run(
            by, AttentionNorms(kinds, readout=rows), AttentionNorms(readout=rows, per_head=True, name="heads"),
            backend=backend,
        )  # fmt: skip
        for layer in range(golden.n_layers):
            for k, key in enumerate(keys):
                for got, expected in zip(
                    rec["attention_norms"], golden.expected(f"{key}_{layer}"), strict=True
                ):
                    assert_close(got[layer, k, : len(expected)].double(), expected, **CLOSE)
            for got, expected in zip(rec["heads"], golden.expected(f"weighted_norm_{layer}"), strict=True):
                assert_close(got[layer, :, : expected.shape[1]].double(), expected, **CLOSE)


def test_golden_toolkit(shared: Path, backend: str) -> None:
    golden = GoldenBert(shared, "toolkit_a")
    rec = golden.run("scfast", AttentionNorms(KINDS, readout=golden.every_row()), backend=backend)
    for k, key in enumerate(("attention_norm", "attention_norm_res", "attention_norm_res_ln", "globenc")):
        for got, expected in zip(rec["attention_norms"], golden.expected(key), strict=True):
            assert_close(got[:, k, : expected.shape[1]].double(), expected, **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["norm"]}, "'norm' is no norm-based measure"),
        ({"kinds": ["attnres-n"], "per_head": True}, r"per_head=True belongs to kinds=\['attn-n'\]"),
        ({"readout": "first"}, "readout='first' is unknown"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionNorms(**options)  # type: ignore[arg-type]
