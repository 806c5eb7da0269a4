"""The cosine ops on the rows of a large matrix; prints by how many bytes each made the process grow at its peak.

Usage: cosine_memory.py ROWS COLUMNS THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from scfast import ops
from tests.run.peak_memory import status

#: What is found is part of the growth: of the nearest rows 12 bytes each, of similar pairs almost none.
OPS: dict[str, Callable[[torch.Tensor], object]] = {
    "histogram": ops.cosine_histogram,
    "threshold": lambda x: ops.cosine_threshold(x, 0.5),
    "topk": lambda x: ops.cosine_topk(x, 128),
}


def main() -> None:
    """Measure."""
    rows, columns, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    x = torch.randn(rows, columns)
    for name, op in OPS.items():
        op(x[:300])  # thread pools and lazily loaded code are not the op's memory
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = status("VmRSS")
        found = op(x)
        print(name, status("VmHWM") - before)
        del found


if __name__ == "__main__":
    main()
