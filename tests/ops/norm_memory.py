"""Norms of one layer of one long cell in a process of its own; prints by how many bytes it grew at its peak.

Usage: norm_memory.py TOKENS HEADS THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from scfast import Packing, ops
from tests.run.peak_memory import status

HEAD_DIM, BLOCK = 64, 128


def analyse(tokens: int, heads: int) -> None:
    """Everything from the layer's input on: projections, f in blocks of keys, AttnRes-N column sums and statistics."""
    width = heads * HEAD_DIM
    x = torch.randn(tokens, width)
    weights = [torch.randn(width, width) / width**0.5 for _ in range(4)]
    q, k, v = ((x @ w).unflatten(1, (heads, HEAD_DIM)) for w in weights[:3])
    w_out = weights[3].unflatten(0, (heads, HEAD_DIM))  # [H, dim, width]
    gram, linear = torch.empty(tokens, heads, heads), torch.empty(tokens, heads)
    for start in range(0, tokens, BLOCK):
        block = slice(start, start + BLOCK)
        f = torch.einsum("jhd,hdw->jhw", v[block], w_out)
        gram[block] = f @ f.mT
        linear[block] = 2 * torch.einsum("jhw,jw->jh", f, x[block])
    packing = Packing.from_lengths([tokens])
    lse = ops.attention_forward(q, k, v, packing).lse
    norm = ops.Norm(gram, linear, x.square().sum(1), lse=lse)
    sums = ops.attention_colsum(q, k, packing, map=norm)
    total = ops.attention_rowstats(q, k, packing, map=norm).total
    torch.testing.assert_close(sums.sum() * tokens, total.squeeze(), rtol=1e-4, atol=0)


def main() -> None:
    """Measure."""
    tokens, heads, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    analyse(130, heads)  # thread pools and lazily loaded code are not the analysis's memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    analyse(tokens, heads)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
