"""Every attention op on a GPU against float64, by the error rule; needs a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from scfast import ops, reference
from tests.ops import test_attention_backward, test_attention_colsum, test_attention_forward
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    exact_maps,
    fused,
    make_case,
    plain_maps,
    with_options,
)
from tests.ops.helpers import row_weights as some_row_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(case: Case) -> Case:
    options = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in case.options.items()}
    q, k, v = (x.cuda() for x in (case.q, case.k, case.v))
    return replace(case, q=q, k=k, v=v, packing=case.packing.to("cuda"), options=options)


def check(case: Case) -> None:
    """Forward with statistics, column sums, row statistics and gradients, twice: the bits agree."""
    there = on_gpu(case)
    d_out = test_attention_backward.direction(case)
    weights = some_row_weights(case.packing, 2)

    def results() -> dict[str, torch.Tensor]:
        q, k, v, packing, options = there.q, there.k, there.v, there.packing, there.options
        full = ops.attention_forward(q, k, v, packing, received=True, entropy=True, max=True, **options)
        gradients = ops.attention_backward(d_out.cuda(), q, k, v, full.out, full.lse, packing, **options)
        sums = ops.attention_colsum(q, k, packing, weights.cuda(), **options)
        rows = ops.attention_rowstats(q, k, packing, heads="none", **options)
        found = full._asdict() | gradients._asdict() | {"sums": sums, "row_entropy": rows.entropy}
        return {name: x.cpu() for name, x in found.items()}

    got, again = results(), results()
    for name, x in got.items():
        assert torch.equal(x.nan_to_num(), again[name].nan_to_num()), f"{name} differs from run to run"
    if not case.packing.n_cells:
        return
    exact = reference.attention_forward(case.q, case.k, case.v, case.packing, **case.options)
    gradients = reference.attention_backward(d_out, case.q, case.k, case.v, case.packing, **case.options)
    sums, _ = reference.attention_colsum(case.q, case.k, case.packing, weights, **case.options)
    exact |= gradients | {"sums": sums, "row_entropy": exact["entropy"]}
    maps, plain_of = exact_maps(case), plain_maps(case)
    sizes = exact | {
        "out": test_attention_forward.statistics(maps, case, absolute=True)["out"],
        "lse": exact["lse"].abs().clamp(min=1),
        "entropy": exact["entropy"].clamp(min=1),
        "row_entropy": exact["entropy"].clamp(min=1),
    }
    sizes |= test_attention_backward.formula(maps, case, d_out, absolute=True)
    plain = test_attention_forward.statistics(plain_of, case)
    plain |= test_attention_backward.formula(plain_of, case, d_out)
    plain_sums, _ = test_attention_colsum.step(fused(plain_of, "mean", None), weights, case.packing, None)
    plain |= {"row_entropy": plain["entropy"], "sums": plain_sums}
    for name, x in got.items():
        assert_close(name, x, exact[name], sizes[name], case, plain[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cuda(shape: str, dtype: torch.dtype) -> None:
    check(make_case(*SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize(("wanted", "half"), OPTION_SETS, ids=str)
def test_options_cuda(wanted: dict[str, Any], half: torch.dtype) -> None:
    for dtype in (torch.float32, half):
        check(with_options(wanted, dtype, heads=4, kv_heads=2, dim=24, dim_v=16))
