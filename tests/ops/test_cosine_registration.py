"""The cosine ops as torch sees them: schemas, fakes, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from scfast import Packing, ops
from tests.ops.cosine_rows import make_rows
from tests.ops.helpers import DTYPES

OPS = ("cosine_histogram", "cosine_matrix", "cosine_threshold", "cosine_topk")
PACKING = Packing.from_lengths([30, 3], [40, 5])


def arguments(op: str, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of the registered op, in the order of its schema."""
    x, y = make_rows(33, 45, 16, dtype)
    starts = PACKING.cu_seqlens_q, PACKING.cu_seqlens_k
    rows = {"itself": (x, None, None, None), "y": (x, y, None, None), "cells": (x, y, *starts)}[kind]
    n = {"itself": (33, 33), "y": (33, 45), "cells": (30 * 40 + 3 * 5,)}[kind]
    extra: dict[str, tuple[Any, ...]] = {
        "cosine_histogram": (40,),
        "cosine_matrix": (torch.zeros(n),),
        "cosine_threshold": (0.4, 10_000),
        "cosine_topk": (5,),
    }
    return *rows, *extra[op]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["itself", "y", "cells"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_opcheck(op: str, kind: str) -> None:
    results = torch.library.opcheck(getattr(torch.ops.scfast, op).default, arguments(op, kind))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["itself", "cells"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fakes_have_the_shapes_and_dtypes_of_the_real_thing(op: str, kind: str, dtype: torch.dtype) -> None:
    args = arguments(op, kind, dtype)
    real = getattr(torch.ops.scfast, op)(*args) or ()
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake_args = [
            mode.from_tensor(x, static_shapes=True) if isinstance(x, torch.Tensor) else x for x in args
        ]
        fake = getattr(torch.ops.scfast, op)(*fake_args) or ()
    assert [x.dtype for x in fake] == [x.dtype for x in real]
    for mine, same in zip(fake, real, strict=True):
        # How many pairs reach a threshold is known only once they have been compared.
        known = [n if isinstance(n, int) else found for n, found in zip(mine.shape, same.shape, strict=True)]
        assert known == list(same.shape)


def call(op: str, x: torch.Tensor, y: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, ...]:
    """The public op between ordinary torch code."""
    x = x * 2
    if op == "cosine_histogram":
        found = ops.cosine_histogram(x, y, packing=packing, bins=10)
        return *found, found.mean, found.second_moment, ops.cosine_histogram(x).counts + 1
    if op == "cosine_matrix":
        return ops.cosine_matrix(x, y) + 1, ops.cosine_matrix(x, y, packing=packing)
    if op == "cosine_threshold":
        found = ops.cosine_threshold(x, 0.4, y)
        return found.values + 1, found.indices, found.indptr
    return *ops.cosine_topk(x, 3), *ops.cosine_topk(x, 3, y, packing=packing)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_compiled_as_one_graph(op: str, backend: str) -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(call, fullgraph=True, backend=backend)
        for lengths in ([5, 33], [7, 2, 11]):  # other cells, other sizes: traced again
            packing = Packing.from_lengths(lengths)
            x, y = make_rows(packing.total_q, packing.total_k, 16)
            expected = call(op, x, y, packing)
            for ours, same in zip(compiled(op, x, y, packing), expected, strict=True):
                torch.testing.assert_close(ours, same, rtol=0, atol=0, equal_nan=True)
