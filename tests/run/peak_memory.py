"""Run a tool on made cells in a process of its own, and print by how many bytes it grew at its peak.

Usage: peak_memory.py MODEL_FOLDER MEMORY TOKENS_PER_CELL CELLS MOST_TOKENS_PER_BATCH TOOL
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import scfast
from scfast import models
from scfast.run import plan


def status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def count_what_is_asked_for() -> None:
    """Let a peak be what the program holds at once, not what the system's pages and the allocator's gaps add to it.

    In pages of 2 MB, of which the system gives as many as it has, peaks differ by half. And glibc takes large tensors
    from its heap once one was freed, where those that stay keep the gaps between them: as much again, by chance.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    pr_set_thp_disable, m_mmap_threshold = 41, -3
    assert libc.prctl(pr_set_thp_disable, 1, 0, 0, 0) == 0
    if hasattr(libc, "mallopt"):  # glibc
        assert libc.mallopt(m_mmap_threshold, 1 << 20) == 1


def main() -> None:
    """Measure."""
    folder, memory, tokens, cells, most = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    tool = sys.argv[6]
    source = models.load("geneformer", folder)
    rng = np.random.default_rng(0)
    genes = source.genes[: tokens + 500]
    columns = np.concatenate([np.sort(rng.choice(len(genes), tokens, replace=False)) for _ in range(cells)])
    counts = (rng.poisson(2, len(columns)) + 1).astype(np.float32)
    x = sparse.csr_matrix((counts, columns, np.arange(cells + 1) * tokens), shape=(cells, len(genes)))
    given = [source, source.untrained()] if tool == "attention_shift" else [source]
    adata = AnnData(x, var=pd.DataFrame(index=genes))
    plan.MAX_BATCH_TOKENS = most

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    getattr(scfast.tl, tool)(adata, *given, memory=memory, progress=False)
    growth = status("VmHWM") - before
    if tool == "rollout":
        assert np.allclose(adata.layers["rollout"].sum(1), 1, atol=1e-4)
    print(growth, adata.uns[tool]["params"]["plan"]["batches"])


if __name__ == "__main__":
    main()
