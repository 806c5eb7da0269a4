"""Products, comparisons, strongest keys and sums by id on a GPU against float64, by the error rule; needs a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scfast import ops, reference
from tests.ops import (
    test_attention_compare,
    test_attention_matmul,
    test_attention_scatter,
    test_attention_topk,
)
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    fused,
    make_case,
    plain_maps,
    with_options,
)
from tests.ops.test_cuda import on_gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GENES = test_attention_scatter.GENES


def check(case: Case, heads: str = "mean") -> None:
    """The four ops, twice: the bits agree."""
    packing, n = case.packing, 9
    x, two = test_attention_matmul.matrix(case, 70), test_attention_compare.second_model(case)
    ids = test_attention_scatter.some_ids(packing.total_k)
    ids_q = test_attention_scatter.some_ids(packing.total_q, 8)
    pair, both = test_attention_compare.pair(on_gpu(case), on_gpu(two))
    there = on_gpu(case)

    def results() -> dict[str, torch.Tensor]:
        inputs, options = (there.q, there.k, there.packing), there.options
        out = torch.zeros(GENES, GENES, dtype=torch.float64, device=there.q.device)
        targets = ids_q.to(out.device)
        ops.attention_scatter(*inputs, ids.to(out.device), out, ids_q=targets, **options)
        found = ops.attention_compare(*pair, **both)._asdict()
        found["product"] = ops.attention_matmul(*inputs, x.to(out.device), heads=heads, **options)
        found["values"] = ops.attention_topk(*inputs, n, heads=heads, **options).values
        return {name: y.cpu() for name, y in (found | {"sums": out}).items()}

    got, again = results(), results()
    for name, y in got.items():
        assert torch.equal(y.nan_to_num(), again[name].nan_to_num()), f"{name} differs from run to run"
    if not packing.n_cells:
        return
    inputs, options = (case.q, case.k, packing), case.options
    names = ("dot", "square1", "square2")
    tensors, _ = test_attention_compare.pair(case, two)
    products = reference.attention_compare(*tensors, options1=case.options, options2=two.options)
    exact = dict(zip(names, products, strict=True))
    exact["sums"] = reference.attention_scatter(*inputs, ids, (GENES, GENES), ids_q=ids_q, **options)
    sizes = dict(exact)
    exact["product"] = reference.attention_matmul(*inputs, x, heads=heads, **options)
    sizes["product"] = reference.attention_matmul(*inputs, x.abs(), heads=heads, **options)
    exact["values"] = reference.attention_topk(*inputs, n, heads=heads, **options)[0].reshape(
        got["values"].shape
    )
    sizes["values"] = exact["values"].amax(-1, keepdim=True).expand(got["values"].shape)
    plain = dict(zip(names, test_attention_compare.plain(case, two), strict=True))
    plain["sums"] = test_attention_scatter.plain_sums(case, ids, ids_q, "mean", None, torch.float64)
    plain["product"] = test_attention_matmul.plain_product(case, x, heads, None)
    ranked = test_attention_topk.ranked(fused(plain_maps(case), heads, None), n, case)
    plain["values"] = ranked.reshape(got["values"].shape)
    for name, y in got.items():
        assert_close(name, y.float(), exact[name], sizes[name], case, plain[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_reductions_of_shapes_cuda(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    for fusion in ("mean", "none"):
        check(make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype), fusion)


@pytest.mark.parametrize(("wanted", "half"), OPTION_SETS[::5], ids=str)
def test_reductions_under_options_cuda(wanted: dict[str, Any], half: torch.dtype) -> None:
    for dtype in (torch.float32, half):
        check(with_options(wanted, dtype, heads=4, kv_heads=2, dim=24))
