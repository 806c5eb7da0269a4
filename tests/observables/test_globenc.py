"""Rollout over norms: against products of materialised maps, and against the authors' own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from scfast.observables import GlobEnc
from scfast.observables.vectors import KINDS
from tests.observables.golden_bert import CLOSE, GoldenBert
from tests.observables.norm_maps import Layer, materialised, random_layer, run
from tests.ops.helpers import assert_by_rule

LENGTHS = (7, 0, 1, 20)


def joint_maps(
    layers: list[Layer],
    kind: str,
    *,
    normalised: bool,
    residual: float = 1.0,
    dtype: torch.dtype = torch.float64,
    sizes: bool = False,
) -> list[torch.Tensor]:
    """Per cell the product of all layers' maps, [n, n]; or of the sizes of their elements."""
    products: list[torch.Tensor] = []
    for layer in layers:
        for cell, its in enumerate(materialised(layer, kind, dtype)):
            step = its.sizes if sizes else its.norms
            step = step / its.norms.sum(-1, keepdim=True) if normalised else step
            step = residual * step + (1 - residual) * torch.eye(len(step))
            if layer is layers[0]:
                products.append(step)
            else:
                products[cell] = step @ products[cell]
    return products


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", ["globenc", "row-normalised"])
def test_rollout_is_the_product_of_the_maps(kind: str, convention: str, backend: str) -> None:
    layers = [random_layer(number, LENGTHS, softcap=3.0, key_bias=True) for number in range(3)]
    normalised = convention == "row-normalised"
    rec = run(
        layers, GlobEnc("mean", kind=kind, convention=convention),
        GlobEnc("mean", kind=kind, convention=convention, residual=0.3, name="mixed"), backend=backend,
    )  # fmt: skip
    for name, residual in (("globenc", 1.0), ("mixed", 0.3)):
        exact, plain, sizes = (
            joint_maps(layers, kind, normalised=normalised, residual=residual, dtype=dtype, sizes=sizes)
            for dtype, sizes in ((torch.float64, False), (torch.float32, False), (torch.float64, True))
        )
        for got, joint, by_torch, size in zip(rec[name], exact, plain, sizes, strict=True):
            if not len(joint):
                continue
            assert_by_rule(name, got, joint.mean(0), by_torch.mean(0), size.mean(0))
            if normalised:
                assert abs(got.double().sum().item() - 1) < 1e-6


def test_golden_rollouts(shared: Path, backend: str) -> None:
    golden = GoldenBert(shared, "globenc_a")
    rows = golden.every_row()
    rec = golden.run(
        "transformers", GlobEnc(rows), GlobEnc(rows, convention="row-normalised", name="normalised"),
        backend=backend,
    )  # fmt: skip
    for name, key in (("globenc", "rollout_raw"), ("normalised", "rollout_rownormalised")):
        for got, expected in zip(rec[name], golden.expected(key), strict=True):
            joint = expected[-1]  # [N, n, n]: after each layer
            assert_close(got[: len(joint)].double(), joint, **CLOSE)
    for got, expected in zip(rec["globenc"], golden.expected("globenc_attributions"), strict=True):
        assert_close(got[: len(expected)].double(), expected, **CLOSE)


def test_golden_toolkit(shared: Path, backend: str) -> None:
    golden = GoldenBert(shared, "toolkit_a")
    rows = golden.every_row()
    names = dict(
        zip(KINDS, ("attention_norm", "attention_norm_res", "attention_norm_res_ln", "globenc"), strict=True)
    )
    for kind, key in names.items():
        rec = golden.run(
            "scfast", GlobEnc(rows, kind=kind, convention="row-normalised", name="nores"),
            GlobEnc(rows, kind=kind, convention="row-normalised", residual=0.5, name="res"), backend=backend,
        )  # fmt: skip
        for name in ("nores", "res"):
            for got, expected in zip(rec[name], golden.expected(f"{key}_rollout_{name}"), strict=True):
                assert_close(got[: expected.shape[1]].double(), expected[-1], **CLOSE)


def test_scores_that_are_wrong_are_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    layers = [random_layer(number, (5, 3)) for number in range(2)]
    layers[1].attention.q[6, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="GlobEnc scores of cell 1 are NaN"):
        run(layers, GlobEnc("mean", convention="row-normalised"), backend=backend)
    from scfast import ops

    op = ops.attention_colsum
    monkeypatch.setattr(ops, "attention_colsum", lambda *a, **o: op(*a, **o) * 1.0001)
    layers = [random_layer(number, (5, 3)) for number in range(2)]
    with pytest.raises(ValueError, match=r"GlobEnc scores of cell 0 sum to 1\.0002"):
        run(layers, GlobEnc("mean", convention="row-normalised"), backend=backend)
    run(layers, GlobEnc("mean"), backend=backend)  # raw scores have no sum to keep


def test_a_layer_that_does_not_report_its_norms_is_refused(backend: str) -> None:
    layers = [random_layer(number, (5, 3)) for number in range(2)]
    layers[1].norm_inputs.pop("output")
    with pytest.raises(RuntimeError, match="inputs of the norms of layer 1"):
        run(layers, GlobEnc("mean"), backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "first"}, "readout='first' is unknown"),
        ({"kind": "norm"}, "'norm' is no norm-based measure"),
        ({"convention": "chefer"}, "convention='chefer' is unknown; use 'globenc' or 'row-normalised'"),
        ({"residual": 1.5}, r"residual must lie in \[0, 1\], got 1.5"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobEnc(**options)  # type: ignore[arg-type]


def test_pre_norm_models_have_the_kinds_without_norms(backend: str) -> None:
    layers = [random_layer(number, (5, 3), post_norm=False) for number in range(2)]
    run(layers, GlobEnc("mean", kind="attnres-n", convention="row-normalised"), backend=backend)
    with pytest.raises(ValueError, match="enc-n is undefined for a pre-norm model"):
        run(layers, GlobEnc("mean"), backend=backend)
