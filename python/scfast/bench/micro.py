"""What the attention ops take on this machine, beside torch's own attention of the same cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from scfast import ops
from scfast.bench.timing import Clock, Inputs, Run, clock_of, medians

#: What the ratios divide by.
PEER = "torch SDPA forward"
ROUNDS = 7


def _received(x: Inputs) -> object:
    return ops.attention_forward(x.q, x.k, x.v, x.packing, received=True)


OPS: dict[str, Callable[[Inputs], object]] = {
    "attention_forward": lambda x: ops.attention_forward(x.q, x.k, x.v, x.packing),
    "attention_forward, received": _received,
    "attention_colsum": lambda x: ops.attention_colsum(x.q, x.k, x.packing, x.weights[0]),
    "attention_rowstats": lambda x: ops.attention_rowstats(x.q, x.k, x.packing, heads="none"),
    "attention_backward": lambda x: ops.attention_backward(x.d_out, x.q, x.k, x.v, x.out, x.lse, x.packing),
}


def _sdpa(x: Inputs, n_cells: int) -> object:
    q, k, v = (t.unflatten(0, (n_cells, -1)).transpose(1, 2) for t in (x.q, x.k, x.v))  # [B, H, n, D]
    return scaled_dot_product_attention(q, k, v)


def time_ops(
    *,
    cells: int = 1,
    tokens: int = 2048,
    heads: int = 4,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rounds: int = ROUNDS,
    clock: Clock | None = None,
) -> list[dict[str, Any]]:
    """Time every attention op, and torch's attention, on cells of one length.

    Parameters
    ----------
    cells, tokens, heads, dim, dtype
        The batch: cells of so many tokens each.
    device
        Where.
    rounds
        Contenders take turns; the median over these is given.
    clock
        Default: that of the device.

    Returns
    -------
    list of dict
        ``name``, ``seconds``, and ``ratio``: to torch's forward, which needs no packing here.

    Examples
    --------
    >>> from scfast.bench.micro import time_ops
    >>> [row["name"] for row in time_ops(tokens=8, heads=1, dim=8, rounds=1)][-1]
    'torch SDPA forward'
    """
    device = torch.device(device)
    x = Inputs.random((tokens,) * cells, heads, dim, dtype, device)
    runs: dict[str, Run] = {name: partial(run, x) for name, run in OPS.items()}
    runs[PEER] = partial(_sdpa, x, cells)
    with torch.no_grad():
        for run in runs.values():
            run()
        seconds = medians(runs, rounds, clock or clock_of(device))
    return [{"name": name, "seconds": s, "ratio": s / seconds[PEER]} for name, s in seconds.items()]
