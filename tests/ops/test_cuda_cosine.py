"""The cosine ops on a GPU: the checks of the CPU kernels, and bits that agree from run to run; needs a device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from scfast import Packing, ops
from tests.ops import test_cosine_histogram, test_cosine_matrix, test_cosine_threshold
from tests.ops.cosine_rows import SHAPES, make_rows, plain, sizes, unit_rows
from tests.ops.helpers import DTYPES, FLOOR, error
from tests.ops.test_cuda import moved

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_the_device(op: Callable[..., Any], device: str = "cuda") -> Callable[..., Any]:
    """The op with its tensors carried there, twice, and its results back."""

    def call(*inputs: Any, **options: Any) -> Any:
        def run() -> Any:
            found = op(
                *(moved(x, device) for x in inputs),
                **{
                    name: x.to(device) if name == "packing" else moved(x, device)
                    for name, x in options.items()
                },
            )
            return found.cpu() if isinstance(found, torch.Tensor) else found._make(x.cpu() for x in found)

        first, again = run(), run()
        parts = (
            zip([first], [again], strict=True)
            if isinstance(first, torch.Tensor)
            else zip(first, again, strict=True)
        )
        for mine, same in parts:
            assert torch.equal(mine.nan_to_num(7.0), same.nan_to_num(7.0)), "differs from run to run"
        return first

    return call


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    patched: dict[ModuleType, tuple[str, ...]] = {
        test_cosine_histogram: ("cosine_histogram", "cosine_matrix"),
        test_cosine_matrix: ("cosine_matrix",),
        test_cosine_threshold: ("cosine_threshold", "cosine_matrix"),
    }
    for module, names in patched.items():
        for name in names:
            monkeypatch.setattr(module, name, on_the_device(getattr(ops, name)))
        monkeypatch.setattr(module, "every_instruction_set", lambda: iter(["cuda"]))


def check_topk(x: torch.Tensor, k: int, y: torch.Tensor | None) -> None:
    """By the error rule: each row found has the similarity that is said, and none left out has a larger one."""
    got = on_the_device(ops.cosine_topk)(x, k, y)
    a = unit_rows(x)
    exact = (a @ (a if y is None else unit_rows(y)).T).clamp(-1, 1)
    limit = 2 * error(plain(x, y), exact, sizes(x, y)) + FLOOR
    exact = exact.nan_to_num(-torch.inf)
    if y is None:
        exact.fill_diagonal_(-torch.inf)
    wanted = (exact > -torch.inf).sum(1).clamp(max=k)
    found = got.indices >= 0
    assert torch.equal(found.sum(1), wanted)
    assert torch.equal(found, ~got.values.isnan())
    best = exact.sort(dim=1, descending=True).values[:, :k]
    for row in range(len(x)):
        n = wanted[row]
        indices, values = got.indices[row, :n], got.values[row, :n].double()
        assert len(indices.unique()) == n
        assert (values.diff() <= 0).all()
        assert ((values - exact[row, indices]).abs() <= limit).all()
        assert ((values - best[row, :n]).abs() <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_cosines_of_shapes_cuda(shape: str, dtype: torch.dtype) -> None:
    x, y = make_rows(*SHAPES[shape], dtype)
    test_cosine_matrix.check(x, y)
    for bins in (200, 5000):
        test_cosine_histogram.check(x, y, bins)
    test_cosine_threshold.check(x, 0.4, y)
    for k in (5, 40, 200):
        check_topk(x, k, y)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 64, 1000, 2**16])
def test_borders_of_bins_cuda(bins: int) -> None:
    test_cosine_histogram.test_similarities_on_the_borders_of_bins(bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_broken_rows_cuda(dtype: torch.dtype) -> None:
    test_cosine_matrix.test_zeros_are_0_and_broken_rows_nan(dtype, "cuda")
    test_cosine_histogram.test_zeros_and_broken_rows_are_counted(dtype, "cuda")
    test_cosine_threshold.test_zeros_are_0_and_broken_rows_left_out(dtype)


def test_lengths_and_cells_cuda() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        test_cosine_matrix.test_lengths_that_float32_cannot_square(dtype, "cuda")
        test_cosine_matrix.test_cells_are_the_blocks_on_the_diagonal(dtype, "cuda")
    test_cosine_histogram.test_cells_are_counted_apart("cuda")
    test_cosine_threshold.test_cells_are_blocks_of_one_matrix("cuda")


def test_nearest_rows_of_cells_cuda() -> None:
    packing = Packing.from_lengths([40, 0, 1, 900, 7])
    x, _ = make_rows(packing.total_q, None, 33)
    found = on_the_device(ops.cosine_topk)(x, 6, packing=packing)
    for rows, indices in zip(packing.split_q(x), packing.split_q(found.indices), strict=True):
        assert torch.equal(indices, on_the_device(ops.cosine_topk)(rows, 6).indices)
