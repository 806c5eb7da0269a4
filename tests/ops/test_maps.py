"""``map=``: the references against vectors held in full and autograd, what is refused, what backends take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from scfast import ops
from scfast.ops import (
    Norm,
    Prob,
    Relevance,
    RowStats,
    attention_colsum,
    attention_forward,
    attention_rowstats,
)
from scfast.ops._dispatch import MAPS, BackendError
from scfast.ops._maps import TAKE_MAPS
from scfast.reference._maps import fuse_heads
from tests.ops.helpers import make_case, row_weights
from tests.ops.materialised_maps import (
    VARIANTS,
    head_norm_maps,
    make_layer,
    norm_maps,
    norm_of,
    relevance_maps,
    relevance_of,
)
from tests.ops.test_attention_colsum import step
from tests.ops.test_attention_rowstats import statistics

#: (lengths, lengths_k, heads, kv_heads, dim) and options.
CASES: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (([7, 0, 33, 1], None, 4, 4, 8), {}),
    (([7, 0, 33, 1], None, 4, 2, 8), {"causal": True, "scale": 0.3}),
    (([5, 0, 3, 9], [0, 4, 9, 12], 6, 2, 5), {"softcap": 2.0}),
    (([9, 4], [14, 4], 3, 1, 8), {"causal": True, "causal_offset": [-3, 1]}),
]
#: Inner products in float32 of vectors of length about 3, and what they leave of a norm.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def check(
    maps: Sequence[torch.Tensor], case: Any, map: Any, heads: str | None, residual: float | None = None
) -> None:
    """Column sums, row sums, rollout steps and statistics of both ops against maps [Hout, nq, nk] held in full."""
    weights = row_weights(case.packing, 3)
    inputs, options = (case.q, case.k, case.packing), {"map": map, "heads": heads, **case.options}
    sums, rho = attention_colsum(
        *inputs, weights, row_sums=True, residual=residual, backend="reference", **options
    )
    expected = step(list(maps), weights, case.packing, residual)
    torch.testing.assert_close(sums, expected[0].float(), **TOLERANCE)
    torch.testing.assert_close(rho, expected[1].float(), **TOLERANCE)
    if heads is None and isinstance(map, Relevance):
        return  # the two ops differ in their own fusion
    stats = attention_rowstats(*inputs, backend="reference", **options)
    for name, exact in statistics(list(maps), case.packing).items():
        if name == "entropy" and getattr(map, "signed", False):
            assert stats.entropy[stats.max != 0].isnan().all()
        else:
            torch.testing.assert_close(getattr(stats, name), exact.float(), **TOLERANCE)


@pytest.mark.parametrize(("size", "options"), CASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_of_vectors_held_in_full(variant: str, size: Any, options: dict[str, Any]) -> None:
    layer = make_layer(*size, **options)
    maps = [norm[None] for norm in norm_maps(layer, variant)]
    check(maps, layer.case, norm_of(layer, variant), None)
    check(maps, layer.case, norm_of(layer, variant), "sum")
    if layer.case.packing.lengths_q == layer.case.packing.lengths_k and not options:
        check(maps, layer.case, norm_of(layer, variant), None, residual=0.5)
        check(maps, layer.case, norm_of(layer, variant), None, residual=1.0)


@pytest.mark.parametrize(("size", "options"), CASES, ids=str)
def test_norms_of_each_head(size: Any, options: dict[str, Any]) -> None:
    layer = make_layer(*size, **options)
    check(head_norm_maps(layer), layer.case, norm_of(layer), "none")


@pytest.mark.parametrize(("size", "options"), CASES, ids=str)
@pytest.mark.parametrize("heads", ["mean", "sum", "max", "min", "none"])
@pytest.mark.parametrize("signed", [False, True])
def test_relevance_is_autograds(signed: bool, heads: str, size: Any, options: dict[str, Any]) -> None:
    case = make_case(*size, **options)
    map = relevance_of(case, signed)
    maps = [fuse_heads(cam, heads, None) for cam in relevance_maps(case, map)]
    check(maps, case, map, heads)
    if not options and not signed:
        check(maps, case, map, heads, residual=0.5)


def test_the_own_fusion_of_each_op() -> None:
    case = make_case([5, 9], heads=3, dim=8)
    inputs, cam = (case.q, case.k, case.packing), relevance_of(case)
    own = attention_colsum(*inputs, map=cam, backend="reference")
    assert torch.equal(own, attention_colsum(*inputs, map=cam, heads="mean", backend="reference"))
    assert attention_rowstats(*inputs, map=cam, backend="reference").max.shape == (14, 3)
    norm = norm_of(make_layer([5, 9], heads=3, dim=8))
    assert attention_colsum(*inputs, map=norm, backend="reference").shape == (1, 1, 14)
    assert attention_rowstats(*inputs, map=norm, backend="reference").max.shape == (14, 1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_prob_is_the_map_of_an_op_that_is_given_none(backend: str) -> None:
    case = make_case([5, 9], heads=3, dim=8)
    options = {"backend": backend}
    same = attention_colsum(case.q, case.k, case.packing, **options)
    assert torch.equal(attention_colsum(case.q, case.k, case.packing, map=Prob(), **options), same)
    stats = attention_rowstats(case.q, case.k, case.packing, **options)
    for ours, other in zip(
        attention_rowstats(case.q, case.k, case.packing, map=Prob(), **options), stats, strict=True
    ):
        assert torch.equal(ours, other)


def test_one_head_of_unit_vectors_is_its_probabilities() -> None:
    case = make_case([49, 0, 7], heads=1, dim=8)
    norm = Norm(torch.ones(56, 1, 1))
    weights = row_weights(case.packing, 2)
    ours = attention_colsum(case.q, case.k, case.packing, weights, map=norm, backend="reference")
    torch.testing.assert_close(ours, attention_colsum(case.q, case.k, case.packing, weights))


def test_signed_relevance_sums_to_the_target() -> None:
    """sum_ij P_ij dP_ij = <d_out, out>."""
    case = make_case([31, 8], heads=2, kv_heads=1, dim=8)
    map = relevance_of(case, signed=True)
    stats = attention_rowstats(case.q, case.k, case.packing, map=map, backend="reference")
    out = attention_forward(case.q, case.k, case.v, case.packing).out
    torch.testing.assert_close(stats.row_sum, (out * map.d_out).sum(-1), rtol=1e-5, atol=1e-5)


OPS = {"attention_colsum": attention_colsum, "attention_rowstats": attention_rowstats}
REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("norm", {"gram": torch.zeros(9, 4)}, ValueError, r"Norm.gram has shape \(9, 4\), expected \(9, 4, 4\)"),
    ("norm", {"gram": torch.zeros(8, 4, 4)}, ValueError, r"Norm.gram has shape \(8, 4, 4\), expected"),
    (
        "norm",
        {"gram": torch.zeros(9, 4, 4, dtype=torch.int32)},
        TypeError,
        "Norm.gram must be floating point, got torch.int32",
    ),
    (
        "norm",
        {"gram": torch.zeros(9, 4, 4, device="meta")},
        ValueError,
        "Norm.gram is on meta and q on cpu: move them together",
    ),
    (
        "norm",
        {"diagonal_linear": torch.zeros(9)},
        ValueError,
        r"Norm.diagonal_linear has shape \(9,\), expected \(9, 4\)",
    ),
    ("norm", {"diagonal_constant": torch.zeros(4)}, ValueError, r"Norm.diagonal_constant has shape \(4,\)"),
    (
        "norm",
        {"row_scale": torch.zeros(9, 1)},
        ValueError,
        r"Norm.row_scale has shape \(9, 1\), expected \(9,\)",
    ),
    ("norm", {"lse": torch.zeros(9)}, ValueError, r"Norm.lse has shape \(9,\), expected \(9, 4\)"),
    (
        "norm",
        {"lse": torch.zeros(9, 4).double()},
        TypeError,
        "Norm.lse is torch.float64, expected torch.float32",
    ),
    ("relevance", {"v": torch.zeros(9, 4, 8)}, ValueError, "k has 2 heads and v has 4"),
    (
        "relevance",
        {"d_out": torch.zeros(9, 4, 7)},
        ValueError,
        r"Relevance.d_out has shape \(9, 4, 7\), expected \(9, 4, 8\): the gradient of what attention_forward",
    ),
    (
        "relevance",
        {"d_out": torch.zeros(9, 4, 8).half()},
        TypeError,
        "q is torch.float32 and Relevance.d_out is torch.float16; cast",
    ),
    ("relevance", {"d_out": torch.zeros(9, 4, 8, device="meta")}, ValueError, "Relevance.d_out is on meta"),
    (
        "relevance",
        {"lse": torch.zeros(4, 9)},
        ValueError,
        r"Relevance.lse has shape \(4, 9\), expected \(9, 4\)",
    ),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("which", "changed", "kind", "text"), REFUSED, ids=[text[:40] for *_, text in REFUSED]
)
def test_refused_by_name(
    op: str, which: str, changed: dict[str, Any], kind: type[Exception], text: str
) -> None:
    case = make_case([5, 4], [6, 3], heads=4, kv_heads=2, dim=8)
    sound = {
        "norm": {"gram": torch.zeros(9, 4, 4)},
        "relevance": {"v": case.v, "d_out": torch.zeros(9, 4, 8)},
    }[which]
    map = {"norm": Norm, "relevance": Relevance}[which](**sound | changed)
    with pytest.raises(kind, match=text):
        OPS[op](case.q, case.k, case.packing, map=map)


@pytest.mark.parametrize("op", OPS)
def test_what_has_no_meaning_is_refused(op: str) -> None:
    case = make_case([5], heads=4, dim=8)
    inputs, gram = (case.q, case.k, case.packing), torch.zeros(5, 4, 4)
    for heads in ("mean", "max", "min", "median"):
        with pytest.raises(ValueError, match=rf"heads='{heads}' has no meaning for the map Norm.*'none'"):
            OPS[op](*inputs, map=Norm(gram), heads=heads)
    with pytest.raises(ValueError, match=r"Norm.diagonal_linear and diagonal_constant belong to the sum"):
        OPS[op](*inputs, map=Norm(gram, diagonal_constant=torch.ones(5)), heads="none")
    with pytest.raises(TypeError, match=r"map must be scfast.ops.Prob\(\), Norm\(...\) or .* got str"):
        OPS[op](*inputs, map="norm")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["norm", "relevance", "signed relevance"])
def test_a_backend_without_a_kernel_says_so(op: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAPS, "triton", ())
    case = make_case([5], heads=4, dim=8)
    map = Norm(torch.zeros(5, 4, 4)) if kind == "norm" else relevance_of(case, kind != "relevance")
    with pytest.raises(BackendError, match=f"no backend runs {op} of the map '{kind}' on q") as refusal:
        OPS[op](case.q, case.k, case.packing, map=map, backend="triton")
    assert f"{op} has no kernel for the map '{kind}'" in str(refusal.value)
    assert "backend='reference'" in str(refusal.value)


@pytest.mark.parametrize(
    "op", [op for op in ops.__all__ if op.startswith("attention_") and op not in TAKE_MAPS]
)
def test_ops_of_probabilities_refuse_other_maps_by_name(op: str) -> None:
    case = make_case([5], heads=4, dim=8)
    for map in (Norm(torch.zeros(5, 4, 4)), relevance_of(case)):
        name = type(map).__name__
        text = (
            rf"{op} takes the probabilities of attention alone, not map={name}\(...\): leave map out, or call"
        )
        with pytest.raises(ValueError, match=text):
            getattr(ops, op)(map=map)
    with pytest.raises(TypeError, match=r"map must be scfast.ops.Prob\(\), .* got str"):
        getattr(ops, op)(map="norm")


def test_probabilities_may_be_named() -> None:
    case = make_case([5], heads=4, dim=8)
    named = ops.attention_topk(case.q, case.k, case.packing, 2, map=ops.Prob())
    assert torch.equal(named.keys, ops.attention_topk(case.q, case.k, case.packing, 2).keys)
    assert set(OPS) == set(TAKE_MAPS)


def test_fields_of_the_statistics() -> None:
    assert RowStats._fields == ("entropy", "max", "self_weight", "row_sum", "total")
