"""Every kernel and every tile row, compiled for GPUs that need not be there."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch

from scfast import Packing, ops
from tests.kernels.ahead import Kernel, compiling_for

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

Target = tuple[int, torch.dtype, int]
#: (compute capability, dtype, head dim), the slowest first: between them they launch every row of tiles.toml.
TARGETS: list[Target] = [*product((80, 90, 100), (torch.float32, torch.bfloat16), (256, 128, 64))]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: Bytes of shared memory that a program may take. Code for sm_80 stands for 8.6, 8.9 and 12.0 too, which have least.
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Instructions of the inner loop of column sums for an element of the map, on sm_90: two multiply-adds, an
#: exponential, and what loading queries, shifts and weights adds.
COLSUM_INSTRUCTIONS = 5.5
#: The same of comparisons, for an element of both maps: two exponentials, eight additions and products, a mask, loads.
COMPARE_INSTRUCTIONS = 19.0


#: What becomes of similarities; the one that counts adds integers by atomics, which is exact in any order.
COSINES = {
    "histogram_tile",
    "matrix_tile",
    "count_tile",
    "collect_tile",
    "nearest_rows",
    "prepare_rows",
    "add_tiles",
}
COUNTING = "histogram_tile"

#: Epilogues of products, comparisons and strongest keys, and the visit of ids.
REDUCTIONS = {"matmul_tile", "compare_tile", "topk_tile", "scatter_blocks"}


def call_reductions(dtype: torch.dtype, dim: int) -> None:
    packing = Packing.from_lengths([64, 48])
    q, k = torch.zeros(2, 112, 4, dim, dtype=dtype).unbind(0)
    on: dict[str, Any] = {"backend": "triton"}
    ops.attention_matmul(q, k, packing, torch.zeros(112, 64), **on)
    ops.attention_compare(q, k, q, k, packing, **on)
    ops.attention_topk(q, k, packing, 64, **on)
    ops.attention_scatter(q, k, packing, torch.arange(112), torch.zeros(112, 112, dtype=torch.float64), **on)


def call_cosines(dtype: torch.dtype) -> None:
    """Rows have any width: products take a slice at a time."""
    from scfast.kernels import cosine_threshold

    from scfast.ops._cosine_triton import PreparedRows

    x, on = torch.zeros(200, 80, dtype=dtype), {"backend": "triton"}
    for bins in (200, 2000):
        ops.cosine_histogram(x, bins=bins, **on)
    ops.cosine_matrix(x, **on)
    for k in (16, 128):
        ops.cosine_topk(x, k, x, **on)
    rows = PreparedRows(x, None, None, None)
    ((tiles, first),) = cosine_threshold.count(rows.walk, 0.5, torch.zeros(0, dtype=torch.int64))
    cosine_threshold.collect(rows.walk, 0.5, tiles, first, first, torch.zeros(5), 200)


def call_every_op(dtype: torch.dtype, dim: int) -> None:
    packing = Packing.from_lengths([64, 48])
    q, k, v = torch.zeros(3, 112, 4, dim, dtype=dtype).unbind(0)
    weights = torch.ones(3, 112)
    on: dict[str, Any] = {"backend": "triton"}
    ops.attention_forward(q, k, v, packing, received=True, entropy=True, max=True, **on)
    ops.attention_colsum(q, k, packing, weights, residual=0.5, **on)
    ops.attention_colsum(q, k, packing, heads="max", **on)
    ops.attention_colsum(q, k, packing, weights, heads="max", row_sums=True, **on)
    for heads in ("mean", "none"):
        ops.attention_rowstats(q, k, packing, heads=heads, **on)
    ops.attention_backward(v, q, k, v, v, torch.zeros(112, 4), packing, **on)
    call_reductions(dtype, dim)
    call_maps(dtype, dim)
    if dim == 64:
        call_cosines(dtype)


def call_maps(dtype: torch.dtype, dim: int) -> None:
    """As many heads as a norm holds at once, what asks for most registers.

    Norms at 128 take the rows of 64 and 256; in float32, code for 128 is that for 256 with shorter loops.
    """
    from scfast.kernels.maps import BLOCK_OF_HEADS as HEADS

    packing = Packing.from_lengths([64, 48])
    q, k, v, d_out = torch.zeros(4, 112, HEADS, dim, dtype=dtype).unbind(0)
    gram, lse, one = torch.zeros(112, HEADS, HEADS), torch.zeros(112, HEADS), torch.ones(112)
    on: dict[str, Any] = {"backend": "triton"}
    maps: list[Any] = [] if dim == 128 else [ops.Norm(gram, lse, one, one, lse)]
    maps += [] if (dtype, dim) == (torch.float32, 128) else [ops.Relevance(v, d_out, lse=lse)]
    for map in maps:
        ops.attention_colsum(q, k, packing, map=map, **on)
        ops.attention_colsum(q, k, packing, torch.ones(3, 112), map=map, row_sums=True, **on)
    ops.attention_colsum(q, k, packing, map=ops.Norm(gram, row_scale=one), heads="none", **on)


def compile_every_op(capability: int, dtype: torch.dtype, dim: int) -> list[Kernel]:
    with compiling_for(capability) as kernels:
        call_every_op(dtype, dim)
    return kernels


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[dict[Target, Future[list[Kernel]]]]:
    """The kernels of every target that some chosen test names, compiled by a process for each core."""
    tests = [item for item in request.session.items if item.module is request.module]
    named = {item.callspec.params["target"] for item in tests if "target" in item.fixturenames}
    if any(item.name == test_every_tile_row_is_compiled.__name__ for item in tests):
        named = set(TARGETS)
    pool = ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("spawn"))
    yield {target: pool.submit(compile_every_op, *target) for target in TARGETS if target in named}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_kernels_compile_without_spills_and_atomics(target: Target, compiled: Any) -> None:
    capability, dtype, dim = target
    kernels = compiled[target].result()
    epilogues = {"softmax_tile", "one_tile", "many_tile", "rowstats_tile", "queries_tile", "keys_tile"}
    epilogues |= REDUCTIONS
    beside = {"weigh_rows", "add_heads", "add_rows", "pack_gram"}
    if dim != 128:
        beside |= {"own_probabilities", "own_norms"}
    if (dtype, dim) != (torch.float32, 128):
        beside |= {"shift_of_lse"}
    if dim == 64:
        beside |= COSINES
    assert epilogues | beside == {kernel.epilogue for kernel in kernels}
    for kernel in kernels:
        what = f"{kernel.epilogue} {kernel.launch} {kernel.tile}"
        atomics = re.findall(r"\b(?:atom|red)\.\S+", kernel.ptx)
        assert bool(atomics) == (kernel.epilogue == COUNTING), f"{what}: atomics"
        assert all(re.search(r"\.add\.u(32|64)$", name) for name in atomics), f"{what}: {atomics}"
        assert kernel.shared <= SHARED[capability], f"{what}: {kernel.shared} bytes of shared memory"
        assert not kernel.spills, f"{what}: {kernel.spills} spills in loops, {kernel.resources}"
        if capability == 90 and dtype == torch.bfloat16 and kernel.tile:
            owned = kernel.tile.keys if kernel.name == "visit_keys" else kernel.tile.queries
            assert ("wgmma" in kernel.ptx) == (owned >= 64), what  # an instruction of 64 rows


def test_every_tile_row_is_compiled(compiled: Any) -> None:
    """Every target is one for each GPU, so a row is compiled for all that it serves."""
    from scfast.kernels import tiles

    launches = {kernel.launch for target in TARGETS for kernel in compiled[target].result() if kernel.tile}
    taken = [next(row for row in tiles.rows() if tiles.fits(row, *launch)) for launch in launches]
    for row in tiles.rows():
        assert row in taken or row["gpus"] == ["interpreter"], f"no test compiles {row}"


def test_instructions_of_comparisons() -> None:
    with compiling_for(90) as kernels:
        q, k = torch.zeros(2, 112, 4, 64, dtype=torch.bfloat16).unbind(0)
        ops.attention_compare(q, k, q, k, Packing.from_lengths([64, 48]), backend="triton")
    (kernel,) = (kernel for kernel in kernels if kernel.epilogue == "compare_tile")
    elements = kernel.tile.queries * kernel.tile.keys / (32 * kernel.tile.warps)
    unmasked, _ = (
        loop for loop in kernel.loops() if sum("MUFU.EX2" in line for line in loop) >= 2 * elements
    )
    assert len(unmasked) / elements <= COMPARE_INSTRUCTIONS


def test_instructions_of_column_sums() -> None:
    with compiling_for(90) as kernels:
        q, k = torch.zeros(2, 112, 4, 64, dtype=torch.bfloat16).unbind(0)
        ops.attention_colsum(q, k, Packing.from_lengths([64, 48]), backend="triton")
    (kernel,) = (kernel for kernel in kernels if kernel.epilogue == "one_tile")
    elements = kernel.tile.queries * kernel.tile.keys / (32 * kernel.tile.warps)
    exponentials = [loop for loop in kernel.loops() if sum("MUFU.EX2" in line for line in loop) == elements]
    unmasked, tail = exponentials
    assert len(unmasked) / elements <= COLSUM_INSTRUCTIONS
    assert len(tail) / elements <= COLSUM_INSTRUCTIONS


@pytest.mark.parametrize("options", [{"causal": True, "softcap": 5.0}], ids=str)
def test_score_options_compile(options: dict[str, Any]) -> None:
    packing, bias = Packing.from_lengths([64, 48]), torch.zeros(112, 4)
    q, k, v = torch.zeros(3, 112, 4, 24, dtype=torch.float16).unbind(0)
    on = {"backend": "triton", "key_bias": bias, **options}
    with compiling_for(90) as kernels:
        ops.attention_forward(q, k[:, :2], v[:, :2], packing, received=True, **on)
        ops.attention_backward(v, q, k[:, :2], v[:, :2], v, torch.zeros(112, 4), packing, **on)
        ops.attention_matmul(q, k[:, :2], packing, torch.zeros(112, 5), **on)
        ops.attention_compare(q, k[:, :2], v, k[:, :2], packing, **on)
        ops.attention_topk(q, k[:, :2], packing, 70, heads="max", **on)
        ops.attention_scatter(q, k[:, :2], packing, torch.arange(112), torch.zeros(112, 112), **on)
    assert REDUCTIONS | {"softmax_tile", "one_tile", "queries_tile", "keys_tile", "add_rows"} == {
        kernel.epilogue for kernel in kernels
    }
