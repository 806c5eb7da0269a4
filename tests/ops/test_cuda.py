"""Every attention op on a GPU against float64, by the error rule; needs a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from scfast import ops, reference
from tests.ops import (
    test_attention_backward,
    test_attention_colsum,
    test_attention_forward,
    test_map_kernels,
)
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


def moved(x: Any, device: str) -> Any:
    """A tensor, or a map, on a device; anything else as it is."""
    if isinstance(x, ops.Norm | ops.Relevance):
        return replace(x, **{field.name: moved(getattr(x, field.name), device) for field in fields(x)})
    return x.to(device) if isinstance(x, torch.Tensor) else x


def on_the_device(op: Callable[..., Any], device: str = "cuda") -> Callable[..., Any]:
    """The op with its tensors carried there, and its results back."""

    def call(q: torch.Tensor, k: torch.Tensor, packing: Any, *rest: Any, **options: Any) -> Any:
        there = [moved(x, device) for x in (q, k, packing.to(device), *rest)]
        found = op(*there, **{name: moved(x, device) for name, x in options.items()})
        back = [x.cpu() for x in found]
        return found._make(back) if hasattr(found, "_make") else tuple(back)

    return call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", test_map_kernels.KINDS)
def test_maps_cuda(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused and by themselves, with the log-sum-exp and without; up to three blocks of heads."""
    for op in ("attention_colsum", "attention_rowstats"):
        monkeypatch.setattr(test_map_kernels, op, on_the_device(getattr(ops, op)))
    monkeypatch.setattr(test_map_kernels, "every_instruction_set", lambda: iter(["cuda"]))
    for heads, lse in ((4, True), (18, False)):
        case = make_case(
            [7, 0, 130, 1, 65], heads=heads, kv_heads=heads // 2, dim=64, dtype=dtype, causal=lse
        )
        test_map_kernels.check(case, test_map_kernels.make_map(kind, case, lse), residual=0.5)
        if kind != "diagonal":
            test_map_kernels.check(case, test_map_kernels.make_map(kind, case, lse), "none")
