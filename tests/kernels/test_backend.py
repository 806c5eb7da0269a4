"""The Triton backend around its kernels: refusals, work lists, tile rows."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from scfast import Packing
from scfast.ops import _triton, attention_colsum
from scfast.ops._dispatch import BACKENDS, BackendError, choose
from tests.ops.helpers import make_case

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_cpu_tensors_are_refused_by_name() -> None:
    case = make_case([5], heads=2, dim=8)
    with pytest.raises(BackendError, match="triton: q is on cpu, not on a GPU; k is on cpu"):
        attention_colsum(case.q, case.k, case.packing, backend="triton")


def test_a_missing_triton_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_triton, "INSTALLED", False)
    q = torch.empty(5, 2, 8, device="meta")
    assert "triton is not installed: pip install scfast[gpu]" in _triton.unsupported("attention_colsum", q=q)


def test_an_op_without_a_kernel_is_refused() -> None:
    assert _triton.unsupported("rank_values") == ["rank_values has no Triton kernel"]


def test_the_interpreter_runs_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    monkeypatch.setattr(_triton, "INSTALLED", True)
    q = torch.zeros(1, 1, 8)
    assert choose("attention_colsum", "auto", q=q) == "cpu"
    assert choose("attention_colsum", "triton", q=q) == "triton"


def test_ops_with_a_kernel_are_those_registered_for_gpus() -> None:
    for op in _triton.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"scfast::{op}", "CUDA")
    assert list(BACKENDS) == ["cpu", "triton", "reference"]


@pytest.mark.parametrize(
    ("lengths", "lengths_k"), [([], None), ([0, 0], None), ([7, 0, 65, 1, 64], None), ([3, 9, 0], [40, 0, 5])]
)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_a_work_list_holds_every_row_once_and_the_largest_map_first(
    lengths: list[int], lengths_k: list[int] | None, rows: int
) -> None:
    packing = Packing.from_lengths(lengths, lengths_k)
    for own, other, side in (
        (packing.cu_seqlens_q, packing.cu_seqlens_k, packing.lengths_q),
        (packing.cu_seqlens_k, packing.cu_seqlens_q, packing.lengths_k),
    ):
        tiles = _triton._work_list(own, other, sum(side), rows)
        assert tiles.dtype == torch.int32
        used = [(cell, first) for cell, first in tiles.tolist() if cell >= 0]
        assert sorted(used) == [(cell, first) for cell, n in enumerate(side) for first in range(0, n, rows)]
        sizes = [packing.lengths_q[cell] * max(packing.lengths_k[cell], 1) for cell, _ in used]
        if lengths_k is None:
            assert sizes == sorted(sizes, reverse=True)


def test_a_work_list_is_built_once_and_again_when_lengths_change() -> None:
    lengths = torch.tensor([0, 5, 9], dtype=torch.int32)
    first = _triton._work_list(lengths, lengths, 9, 4)
    assert _triton._work_list(lengths, lengths, 9, 4) is first
    lengths[1] = 2
    again = _triton._work_list(lengths, lengths, 9, 4)
    assert sorted(again.tolist()) == [[-1, 0], [0, 0], [1, 0], [1, 4]]


@needs_triton
@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "interpreter"])
def test_every_launch_finds_a_tile(gpu: str) -> None:
    from scfast.kernels import tiles

    visits = sorted({visit for row in tiles.rows() for visit in row["visits"]})
    for visit in visits:
        for bits in (16, 32):
            for width in (16, 32, 64, 128, 256):
                tile = tiles.choose(gpu, visit, bits, width)
                assert min(tile.queries, tile.keys) >= 16


@needs_triton
def test_every_tile_row_is_reached_and_says_what_it_rests_on() -> None:
    from scfast.kernels import tiles

    def shapes(row: dict[str, Any]) -> list[tuple[str, str, int, int]]:
        gpus = ["sm_80", "sm_90"] if "any" in row["gpus"] else row["gpus"]
        return [(gpu, visit, row["bits"], row["width"]) for gpu in gpus for visit in row["visits"]]

    for row in tiles.rows():
        assert row["basis"] in ("compiled", "measured")
        first = [next(other for other in tiles.rows() if tiles.fits(other, *shape)) for shape in shapes(row)]
        assert row in first, f"no launch takes {row}"
