"""The C++ kernels of ``map=`` against float64: shapes, options, dtypes, extremes, independence of cells and threads."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import Norm, Relevance, attention_colsum, attention_forward, attention_rowstats
from scfast.reference import attention_colsum as colsum_oracle
from scfast.reference import attention_rowstats as rowstats_oracle
from scfast.reference._maps import fuse_heads, own_keys
from tests.ops.helpers import (
    DTYPES,
    FLOOR,
    OPTION_SETS,
    SHAPES,
    Case,
    error,
    every_instruction_set,
    make_case,
    plain_maps,
    row_weights,
    with_options,
)
from tests.ops.materialised_maps import relevance_of
from tests.ops.test_attention_colsum import step
from tests.ops.test_attention_rowstats import statistics

Map = Norm | Relevance
KINDS = ("norm", "diagonal", "relevance", "signed")


def make_map(kind: str, case: Case, lse: bool = False, seed: int = 2) -> Map:
    """A map of random tensors; Gram matrices are those of vectors of 12 numbers."""
    given = log_sum_exp(case) if lse else None
    if kind in ("relevance", "signed"):
        return relevance_of(case, kind == "signed", given, seed)
    random = torch.Generator().manual_seed(seed)
    heads, packing = case.q.shape[1], case.packing
    f = torch.randn(packing.total_k, heads, 12, generator=random)
    gram = torch.einsum("jhd,jgd->jhg", f, f)
    if kind == "norm":
        return Norm(gram, lse=given)
    linear = torch.randn(packing.total_q, heads, generator=random)
    constant, scale = 2 * torch.rand(2, packing.total_q, generator=random) + 0.5
    return Norm(gram, linear, constant, scale, given)


def log_sum_exp(case: Case) -> torch.Tensor:
    return attention_forward(case.q, case.k, case.k[..., :1], case.packing, **case.options).lse


def in_absolute_values(map: Map) -> Map:
    """The map whose elements are the sizes of this one's, as the error rule wants them."""
    tensors = {field.name: getattr(map, field.name) for field in fields(map)}
    return replace(
        map,
        **{
            name: x.abs()
            for name, x in tensors.items()
            if isinstance(x, torch.Tensor) and name not in ("lse", "row_scale")
        },
    )


def plain_map(case: Case, map: Map, heads: str, head_weights: torch.Tensor | None) -> list[torch.Tensor]:
    """[Hout, nq, nk] of every cell by torch in the dtype of the inputs: the yardstick."""
    maps, packing = [], case.packing
    for cell, (p, _) in enumerate(plain_maps(case)):
        if isinstance(map, Relevance):
            d_out, v = packing.split_q(map.d_out)[cell], packing.split_k(map.v)[cell]
            v = v.repeat_interleave(d_out.shape[1] // v.shape[1], dim=1)
            cam = p * (d_out.transpose(0, 1) @ v.permute(1, 2, 0))
            cam = fuse_heads(cam if map.signed else cam.clamp(min=0), heads, head_weights)
            maps.append(cam.to(p.dtype))
            continue
        p = p.float() if head_weights is None else p.float() * head_weights[:, None, None]
        gram = packing.split_k(map.gram)[cell]
        if heads == "none":
            norm = p.abs() * gram.diagonal(dim1=1, dim2=2).T.sqrt()[:, None]
        else:
            square = torch.einsum("hij,jhg,gij->ij", p, gram, p)
            row, key = own_keys(packing, cell)
            if map.diagonal_linear is not None:
                linear, constant = (
                    packing.split_q(x)[cell] for x in (map.diagonal_linear, map.diagonal_constant)
                )
                square[row, key] += (linear[row] * p[:, row, key].T).sum(1) + constant[row]
            norm = square.clamp(min=0).sqrt()[None]
        scale = None if map.row_scale is None else packing.split_q(map.row_scale)[cell]
        maps.append(norm if scale is None else norm * scale[:, None])
    return maps


def check(
    case: Case,
    map: Map,
    heads: str | None = None,
    *,
    weights: torch.Tensor | None = None,
    head_weights: torch.Tensor | None = None,
    residual: float | None = None,
) -> None:
    """Both ops, every instruction set, against the float64 reference: error <= 2 x plain torch + floor.

    A log-sum-exp of size s that is given cannot be held more exactly than s * eps: a relative error of the element.
    Neither can a score; beyond spread 100 the error of plain torch does not measure that (see ``assert_close``).
    """
    rows = row_weights(case.packing, 2) if weights is None else weights
    inputs, packing = (case.q, case.k, case.packing), case.packing
    fusion = {"heads": heads or ("sum" if isinstance(map, Norm) else "mean"), "head_weights": head_weights}
    sizes_of = {
        "map": in_absolute_values(map),
        "heads": "max" if fusion["heads"] == "min" else fusion["heads"],
        "head_weights": None if head_weights is None else head_weights.abs(),
        **case.options,
    }
    floor = FLOOR if case.spread <= 100 else 8 * case.spread * torch.finfo(torch.float32).eps
    if map.lse is not None and map.lse.isfinite().any():
        floor += 2 * map.lse[map.lse.isfinite()].abs().max().item() * torch.finfo(torch.float32).eps
    plain = plain_map(case, map, **fusion) if packing.n_cells else None
    exact = dict(
        zip(
            ("sums", "rho"),
            colsum_oracle(*inputs, rows, map=map, residual=residual, **fusion, **case.options),
            strict=True,
        )
    )
    exact |= rowstats_oracle(*inputs, map=map, **fusion, **case.options)
    sizes = dict(
        zip(("sums", "rho"), colsum_oracle(*inputs, rows.abs(), residual=residual, **sizes_of), strict=True)
    )
    sizes |= rowstats_oracle(*inputs, **sizes_of)
    signed = isinstance(map, Relevance) and map.signed
    below_zero = signed or (head_weights is not None and bool((head_weights < 0).any()))  # has no entropy
    cancelled = (sizes["row_sum"] / exact["row_sum"]).nan_to_num(1.0, torch.inf)
    sizes["entropy"] = exact["entropy"].clamp(min=1) * cancelled.clamp(min=1)
    yardstick: dict[str, torch.Tensor] = {}
    if plain is not None:
        yardstick = dict(zip(("sums", "rho"), step(plain, rows, packing, residual), strict=True))
        yardstick |= statistics([x.float() for x in plain], packing)
    for isa in every_instruction_set():
        options = {"map": map, **fusion, **case.options}
        sums, rho = attention_colsum(*inputs, rows, row_sums=True, residual=residual, **options)
        got = {"sums": sums, "rho": rho, **attention_rowstats(*inputs, **options)._asdict()}
        for name, ours in got.items():
            if name == "entropy" and below_zero:
                assert not signed or ours.isnan().all()
                continue
            limit = floor + (2 * error(yardstick[name], exact[name], sizes[name]) if yardstick else 0)
            wrong = error(ours, exact[name], sizes[name])
            assert wrong <= limit, f"{name} ({isa}): error {wrong:.3g} exceeds {limit:.3g} for {case.q.dtype}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "apart"), [("diagonal", "norm"), ("relevance", "signed")])
def test_shapes(kind: str, apart: str, shape: str, dtype: torch.dtype) -> None:
    case = make_case(*SHAPES[shape], dtype=dtype)
    check(case, make_map(kind, case, lse=True))
    check(case, make_map(apart, case), "none")


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
@pytest.mark.parametrize("kind", ["diagonal", "relevance"])
def test_every_combination_of_score_options(kind: str, wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        case = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        check(case, make_map(kind, case, lse=(kind == "relevance") == (dtype == torch.float32)))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8, 18])
@pytest.mark.parametrize("lse", [False, True])
def test_norms_of_any_number_of_heads(heads: int, lse: bool) -> None:
    for lengths in ([7, 33], [70, 1, 97]):
        case = make_case(lengths, heads=heads, dim=8)
        check(case, make_map("diagonal", case, lse), residual=0.5)
        check(case, make_map("norm", case, lse), "none", residual=1.0)


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("heads", ["mean", "sum", "max", "min", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_fusions_and_head_weights(kind: str, heads: str, signs: str) -> None:
    if kind in ("norm", "diagonal") and heads not in ("sum", "none"):
        return  # refused
    if kind == "diagonal" and heads == "none":
        return  # refused
    factors = torch.tensor({"positive": [1.0, 0.5, 2.0, 0.25], "mixed": [1.0, -0.5, 0.0, 2.0]}[signs])
    case = make_case([49, 0, 1, 130], heads=4, kv_heads=2, dim=16)
    check(case, make_map(kind, case), heads, head_weights=factors)
    causal = make_case([49, 0, 1, 130], heads=4, kv_heads=2, dim=16, causal=True)
    check(causal, make_map(kind, causal, lse=True), heads, head_weights=factors)


@pytest.mark.parametrize("heads", ["mean", "max", "min", "none"])
def test_steps_of_the_gradient_weighted_rollout(heads: str) -> None:
    case = make_case([49, 0, 1, 481], heads=3, dim=16)
    for weights in (row_weights(case.packing, 1), row_weights(case.packing, 18)):
        check(case, make_map("relevance", case, lse=True), heads, weights=weights, residual=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_long_cells(kind: str) -> None:
    case = make_case([1500, 7], heads=2, dim=64, causal=kind == "relevance")
    check(case, make_map(kind, case, lse=kind == "norm"))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
    kind=st.sampled_from(KINDS),
    lse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    n_heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    softcap: float | None,
    offset: int | None,
    kind: str,
    lse: bool,
    seed: int,
) -> None:
    queries, keys = [n for n, _ in lengths], [n for _, n in lengths]
    offsets = None if offset is None else [offset] * len(lengths)
    options = {"softcap": softcap, "causal": offset is not None, "causal_offset": offsets}
    case = make_case(queries, keys, *n_heads, dim, dtype=dtype, seed=seed, **options)
    check(case, make_map(kind, case, lse, seed))


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("spread", [30.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_large_scores(kind: str, spread: float, lse: bool) -> None:
    case = make_case([49, 130], heads=2, dim=32, spread=spread, seed=5)
    check(case, make_map(kind, case, lse))


@pytest.mark.parametrize("exponent", [-80, -20, 20, 80])
def test_norms_of_any_size(exponent: int, isa: str) -> None:
    """Inner products times a power of four leave every bit of the mantissas."""
    case = make_case([49], heads=4, dim=16)
    norm, square = make_map("diagonal", case), 2.0**exponent
    larger = (square * x for x in (norm.gram, norm.diagonal_linear, norm.diagonal_constant))
    ours = attention_colsum(case.q, case.k, case.packing, map=Norm(*larger, norm.row_scale))
    assert torch.equal(ours, attention_colsum(case.q, case.k, case.packing, map=norm) * square**0.5)


def test_values_of_zero_have_norms_of_zero(isa: str) -> None:
    case = make_case([49], heads=4, dim=16)
    gram = make_map("norm", case).gram
    gram[7] = 0.0
    got = attention_colsum(case.q, case.k, case.packing, map=Norm(gram))
    assert got[0, 0, 7] == 0
    assert torch.isfinite(got).all()
    only_the_input = Norm(torch.zeros_like(gram), None, torch.full((49,), 4.0))
    got = attention_colsum(case.q, case.k, case.packing, torch.eye(49), map=only_the_input)[:, 0]
    torch.testing.assert_close(got, 2 * torch.eye(49))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_are_skipped_whatever_they_hold(kind: str, isa: str) -> None:
    case = make_case([60, 500], heads=2, dim=16)
    weights = torch.rand(2, 560)
    weights[:, [3, 4, 59, 60, 300]] = 0.0
    map = make_map(kind, case)
    clean = attention_colsum(case.q, case.k, case.packing, weights, map=map)
    case.q[[3, 4, 59, 60, 300]] = torch.nan
    got = attention_colsum(case.q, case.k, case.packing, weights, map=map)
    torch.testing.assert_close(got, clean)


@pytest.mark.parametrize("heads", [None, "none"])
@pytest.mark.parametrize("where", ["q", "k", "lse", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_cell_stays_alone(kind: str, where: str, heads: str | None, isa: str) -> None:
    if kind == "diagonal" and heads == "none":
        return  # refused
    case = make_case([60, 50, 500], heads=3, dim=16, seed=6)
    map = make_map(kind, case, lse=where == "lse")
    weights, options = torch.rand(2, 610), {"heads": heads}
    before = attention_colsum(case.q, case.k, case.packing, weights, map=map, **options)
    same = attention_rowstats(case.q, case.k, case.packing, map=map, **options)
    target = {"q": case.q, "k": case.k, "lse": map.lse, "map": getattr(map, "gram", getattr(map, "v", None))}[
        where
    ]
    target[(70, 1, 1)[: target.dim()]] = torch.nan
    got = attention_colsum(case.q, case.k, case.packing, weights, map=map, **options)
    assert torch.equal(got[..., :60], before[..., :60])
    assert torch.equal(got[..., 110:], before[..., 110:])
    stats = attention_rowstats(case.q, case.k, case.packing, map=map, **options)
    others = torch.arange(610)
    others = others[(others < 60) | (others >= 110)]
    for ours, other in zip(stats[:4], same[:4], strict=True):
        torch.testing.assert_close(ours[others], other[others], rtol=0, atol=0, equal_nan=True)
    head = 1 if heads == "none" or kind in ("relevance", "signed") else 0
    hit = slice(70, 71) if where in ("q", "lse") else slice(60, 110)
    assert stats.row_sum[hit, head].isnan().all()
    assert got[:, 1 if heads == "none" else 0, 70].isnan().all()


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("heads", [None, "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads_or_batch_mates(
    kind: str, heads: str | None, lse: bool, isa: str
) -> None:
    if kind == "diagonal" and heads == "none":
        return  # refused
    case = make_case([7, 600, 0, 241, 33, 1], heads=3, dim=24)
    weights, map = row_weights(case.packing, 3), make_map(kind, case, lse)

    def run(case: Case, weights: torch.Tensor, map: Map) -> tuple[torch.Tensor, ...]:
        inputs, residual = (case.q, case.k, case.packing), None if kind == "signed" else 0.5
        sums, rho = attention_colsum(*inputs, weights, map=map, heads=heads, residual=residual, row_sums=True)
        stats = attention_rowstats(*inputs, map=map, heads=heads)
        return sums.permute(2, 0, 1), rho, *(x.nan_to_num() for x in stats[:4])  # tokens first

    torch.set_num_threads(1)
    first = run(case, weights, map)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        for again, same in zip(run(case, weights, map), first, strict=True):
            assert torch.equal(again, same), f"{n} threads"
    order, split = [4, 1, 5, 3, 0], case.packing.split_q

    def mixed(x: Any) -> Any:
        return torch.cat([split(x)[cell] for cell in order]) if isinstance(x, torch.Tensor) else x

    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    other = replace(map, **{field.name: mixed(getattr(map, field.name)) for field in fields(map)})
    got = run(replace(case, q=mixed(case.q), k=mixed(case.k), packing=packing), mixed(weights.T).T, other)
    for ours, same in zip(got, first, strict=True):
        assert torch.equal(ours, mixed(same)), "results depend on the other cells of the batch"


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, v, d_out = torch.randn(56, 4, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    same = Relevance(v.contiguous(), d_out.contiguous())
    ours = attention_colsum(q, k, packing, map=Relevance(v, d_out))
    assert torch.equal(ours, attention_colsum(q.contiguous(), k.contiguous(), packing, map=same))
    turned = v.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert torch.equal(ours, attention_colsum(q, k, packing, map=Relevance(turned, d_out)))
    gram = make_map("norm", make_case([49, 7], heads=3, dim=24)).gram
    ours = attention_colsum(q, k, packing, map=Norm(gram.mT.contiguous().mT))
    assert torch.equal(ours, attention_colsum(q, k, packing, map=Norm(gram)))
    assert torch.equal(ours, attention_colsum(q, k, packing, map=Norm(gram.double())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_compiled_as_one_graph(kind: str) -> None:
    case = make_case([5, 33], heads=2, dim=16)
    map = make_map(kind, case, lse=True)
    tensors = {field.name: getattr(map, field.name) for field in fields(map)}

    def call(q: torch.Tensor, **tensors: Any) -> tuple[torch.Tensor, ...]:
        map = (Relevance if "v" in tensors else Norm)(**tensors)
        sums = attention_colsum(q * 2, case.k, case.packing, map=map)
        return sums + 1, *attention_rowstats(q, case.k, case.packing, map=map)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for ours, same in zip(compiled(case.q, **tensors), call(case.q, **tensors), strict=True):
        torch.testing.assert_close(ours, same, rtol=0, atol=0, equal_nan=True)
