"""attention_compare against float64: shapes, options of each model, identities, independence of cells and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import MapProducts, attention_compare
from scfast.reference import attention_compare as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    exact_maps,
    is_strict,
    make_case,
    plain_maps,
    with_options,
)


def pair(one: Case, two: Case) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Arguments of the op: tensors with the packing, and the options of both models."""
    names = one.options.keys() | two.options.keys()
    defaults = {"causal": False}
    options = {
        name: tuple(case.options.get(name, defaults.get(name)) for case in (one, two)) for name in names
    }
    return (one.q, one.k, two.q, two.k, one.packing), options


def products(one: Case, two: Case) -> MapProducts:
    """The op on two models' inputs."""
    inputs, options = pair(one, two)
    return attention_compare(*inputs, **options)


def plain(one: Case, two: Case) -> list[torch.Tensor]:
    """The same from maps that torch made in the dtype of the inputs; summed in float64, as the op does."""
    rows = [[], [], []]
    for (p1, _), (p2, _) in zip(plain_maps(one), plain_maps(two), strict=True):
        a, b = p1.double(), p2.double()
        for row, (x, y) in zip(rows, ((a, b), (a, a), (b, b)), strict=True):
            row.append((x * y).sum((1, 2)))
    return [torch.stack(row) for row in rows]


def check(one: Case, two: Case) -> None:
    """Every product of every instruction set against the float64 reference, by the error rule."""
    inputs, _ = pair(one, two)
    exact = oracle(*inputs, options1=one.options, options2=two.options)
    judged = next((case for case in (one, two) if not is_strict(case)), one)
    yardsticks = [None] * 3 if is_strict(judged) or not one.packing.n_cells else plain(one, two)
    for isa in every_instruction_set():
        got = products(one, two)
        for name, x, truth, yardstick in zip(MapProducts._fields, got, exact, yardsticks, strict=True):
            assert x.dtype == torch.float64
            assert_close(f"{name} ({isa})", x, truth, truth, judged, yardstick)


def second_model(one: Case, *, dtype: torch.dtype | None = None, **size: Any) -> Case:
    """Other weights over the same tokens: another seed, and whatever else is given."""
    size = {"heads": one.q.shape[1], "dim": 24, "seed": 11} | size
    case = make_case(one.packing.lengths_q, one.packing.lengths_k, dtype=dtype or one.q.dtype, **size)
    case.packing = one.packing
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    one = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(one, second_model(one, dim=dim, kv_heads=kv_heads))
    check(one, second_model(one, dim=33))


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        one = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        plain_model = second_model(one)
        check(one, plain_model)  # each model has options of its own
        check(plain_model, one)
        plain_model.options = one.options
        check(one, plain_model)


@pytest.mark.parametrize("first", DTYPES, ids=str)
@pytest.mark.parametrize("second", DTYPES, ids=str)
def test_models_of_two_dtypes(first: torch.dtype, second: torch.dtype) -> None:
    one = make_case([49, 0, 130], heads=2, dim=33, dtype=first)
    check(one, second_model(one, dtype=second, dim=20))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    n_heads=st.sampled_from([((1, 1), (1, 1)), ((4, 4), (4, 2)), ((4, 1), (4, 4)), ((6, 1), (6, 2))]),
    dims=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    softcaps=st.tuples(st.none() | st.floats(0.5, 30), st.none() | st.floats(0.5, 30)),
    causal=st.tuples(st.booleans(), st.booleans()),
    offset=st.none() | st.integers(-20, 20),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    n_heads: tuple[tuple[int, int], tuple[int, int]],
    dims: tuple[int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    softcaps: tuple[float | None, float | None],
    causal: tuple[bool, bool],
    offset: int | None,
    seed: int,
) -> None:
    offsets = None if offset is None else [offset] * len(lengths)
    one, two = (
        make_case(
            [n for n, _ in lengths], [n for _, n in lengths], *n_heads[i], dims[i], dtype=dtypes[i],
            seed=seed + i, causal_offset=offsets, softcap=softcaps[i], causal=causal[i],
        )
        for i in (0, 1)
    )  # fmt: skip
    check(one, two)


@pytest.mark.parametrize("spread", [30.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    one = make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5)
    check(one, second_model(one, dim=32, spread=spread))
    check(one, second_model(one, dim=32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_map_with_itself(dtype: torch.dtype, isa: str) -> None:
    case = make_case([49, 1, 700], [80, 1, 650], heads=4, kv_heads=2, dim=33, dtype=dtype, causal=True)
    got = products(case, case)
    assert torch.equal(got.dot, got.square1)
    assert torch.equal(got.dot, got.square2)
    torch.testing.assert_close(got.cosine, torch.ones(3, 4, dtype=torch.float64), rtol=1e-15, atol=0)


@given(spread=st.floats(0.01, 60), seed=st.integers(0, 2**31))
def test_cauchy_schwarz(spread: float, seed: int) -> None:
    one = make_case([33, 7, 1], heads=3, dim=8, spread=spread, seed=seed)
    got = products(one, second_model(one, seed=seed + 1))
    assert (got.dot > 0).all()
    assert (got.cosine <= 1 + 1e-6).all()
    for square in (got.square1, got.square2):  # rows sum to 1: at most 1 each, at least 1/n
        assert (square <= torch.tensor([33, 7, 1])[:, None] * (1 + 1e-6)).all()
        assert (square >= 1 - 1e-6).all()


def test_exchanged_models_give_the_same_bits(isa: str) -> None:
    one = make_case([49, 500], heads=2, dim=20)
    two = second_model(one, dim=33)
    got, exchanged = products(one, two), products(two, one)
    assert torch.equal(got.dot, exchanged.dot)
    assert torch.equal(got.square1, exchanged.square2)
    assert torch.equal(got.square2, exchanged.square1)


def test_maps_that_do_not_meet_are_orthogonal(isa: str) -> None:
    q, k = torch.zeros(4, 1, 8), torch.zeros(4, 1, 8)
    biases = tuple(torch.tensor([x, x, -x, -x]) for x in (500.0, -500.0))
    got = attention_compare(q, k, q, k, Packing.from_lengths([4]), key_bias=biases)
    assert got.dot.item() == got.cosine.item() == 0
    assert got.square1.item() == got.square2.item() == 4 * 2 * 0.25


def test_against_a_uniform_map_every_row_gives_one_in_n(isa: str) -> None:
    one = make_case([130, 20], heads=3, dim=16)
    uniform = second_model(one)
    uniform.q.zero_()
    got = products(one, uniform)
    for x in (got.dot, got.square2):  # sum_ij P_ij / n
        torch.testing.assert_close(x, torch.ones(2, 3, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_norm_is_that_of_the_map(isa: str) -> None:
    one = make_case([130, 20], heads=3, dim=16)
    norms = torch.stack([torch.linalg.matrix_norm(p) for p, _ in exact_maps(one)])
    got = products(one, second_model(one)).square1.sqrt()
    torch.testing.assert_close(got, norms, rtol=1e-6, atol=0)


def test_without_keys_nothing_is_added(isa: str) -> None:
    one = make_case([3, 0, 2], [0, 4, 4], heads=2, dim=8)
    got = products(one, second_model(one))
    for x in got:
        assert (x[:2] == 0).all()
        assert (x[2] > 0).all()
    assert got.cosine[:2].isnan().all()


@pytest.mark.parametrize("where", ["q", "k"])
@pytest.mark.parametrize("model", [0, 1])
def test_a_broken_cell_stays_alone(model: int, where: str, isa: str) -> None:
    one = make_case([60, 50, 500], heads=3, dim=24, seed=6)
    models = [one, second_model(one)]
    clean = products(*models)
    getattr(models[model], where)[70, 1, 3] = torch.nan
    got = products(*models)
    hit = torch.zeros(3, 3, dtype=torch.bool)
    hit[1, 1] = True
    for name, x, same in zip(MapProducts._fields, got, clean, strict=True):
        assert torch.equal(x[~hit], same[~hit]), name
        touched = name in ("dot", f"square{model + 1}")
        assert x[1, 1].isnan() == touched, name


def test_bits_do_not_depend_on_threads_or_batch_mates(isa: str) -> None:
    one = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)
    two = second_model(one)
    torch.set_num_threads(1)
    first = products(one, two)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        for name, ours, same in zip(MapProducts._fields, products(one, two), first, strict=True):
            assert torch.equal(ours, same), f"{name} with {n} threads"
    order, split = [4, 1, 5, 3, 0], one.packing.split_q
    packing = Packing.from_lengths([one.packing.lengths_q[cell] for cell in order])
    mixed = (torch.cat([split(x)[cell] for cell in order]) for x in (one.q, one.k, two.q, two.k))
    for name, ours, same in zip(MapProducts._fields, attention_compare(*mixed, packing), first, strict=True):
        assert torch.equal(ours, same[order]), f"{name} depends on the other cells of the batch"


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, r, s, _ = torch.randn(56, 5, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    ours = attention_compare(q, k, r, s, packing)
    same = attention_compare(*(x.contiguous() for x in (q, k, r, s)), packing)
    assert all(torch.equal(x, y) for x, y in zip(ours, same, strict=True))


def call(**changed: Any) -> MapProducts:
    """Sound inputs but for ``changed``."""
    one = make_case([5, 4], [6, 3], heads=4, kv_heads=2, dim=8)
    two = second_model(one, dim=6)
    inputs = {"q1": one.q, "k1": one.k, "q2": two.q, "k2": two.k, "packing": one.packing}
    return attention_compare(**inputs | changed)


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"q1": torch.zeros(8, 4, 8)}, ValueError, "q1 has 8 tokens, but the packing's cells add up to 9"),
        ({"k2": torch.zeros(9, 16)}, ValueError, r"k2 must be packed as \[tokens, heads, head dim\]"),
        ({"k2": torch.zeros(9, 4, 7)}, ValueError, "q2 has head dim 6 and k2 has 7"),
        ({"k1": torch.zeros(9, 3, 8)}, ValueError, "q1 has 4 heads, which k1's 3 heads do not divide"),
        ({"k1": torch.zeros(9, 2, 8).half()}, TypeError, "q1 is torch.float32 and k1 is torch.float16; cast"),
        (
            {"q2": torch.zeros(9, 3, 6), "k2": torch.zeros(9, 3, 6)},
            ValueError,
            "q1 has 4 heads and q2 has 3: maps are compared head by head",
        ),
        ({"packing": [5, 4]}, TypeError, "packing must be a scfast.Packing, got list"),
        ({"scale": (1.0, float("inf"))}, ValueError, "scale must be finite, got inf"),
        ({"scale": (1.0, 1.0, 1.0)}, ValueError, "scale has 3 values: give one for both models, or a pair"),
        ({"softcap": (None, -1.0)}, ValueError, "softcap must be a positive number or None, got -1.0"),
        ({"key_bias": (None, torch.zeros(8))}, ValueError, r"key_bias must have shape \(9,\) or \(9, 4\)"),
        ({"backend": "gpu"}, ValueError, "backend='gpu' is unknown"),
        ({"backend": "triton"}, RuntimeError, "triton: q1 is on cpu, not on a GPU; k1 is on cpu"),
    ],
)
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(**changed)


def test_sound_inputs_pass() -> None:
    assert call().dot.shape == (2, 4)
    assert torch.allclose(call(backend="reference").cosine, call().cosine)
