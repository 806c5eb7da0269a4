"""Shapes and inputs for attention_scatter: a cell of distinct genes, into sums over 20,000 x 20,000 of them.

Which genes a cell has decides how many cache lines of a row of sums it touches. *any*: all genes are as likely, in any
order, the worst that can be. *by detection*: rates of detection are log-normal with a spread of 2, as those of the
16,791 genes of sorted blood cells (Zheng et al. 2017) are, and ids are in the order of them, as `tl.grn` has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import peers
from ops._attention import TINY, cases
from ops._attention import inputs as attention_inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "attention_scatter"
GENES = 20_000
#: Sources whose sums are compared: all of them would be 3 GB a contender.
COMPARED = 512
ANY, BY_DETECTION = "any", "by detection"
CASES = [{**case, "genes": genes} for genes in (ANY, BY_DETECTION) for case in cases(("float32",))]
TINY_CASES = [{**case, "genes": genes} for genes in (ANY, BY_DETECTION) for case in cases(("float32",), TINY)]
SPREAD = 2.0
COLUMN_SUMS = "attention_colsum"
DENSE = "materialised"


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Those of every attention op; ids [L], tokens in any order; float64 sums of either contender, on huge pages."""
    ids = drawn(case["tokens"], case["genes"] == BY_DETECTION)
    sums = {name: torch.from_numpy(np.zeros((GENES, GENES))) for name in (peers.OURS, DENSE)}
    return attention_inputs(case) | {"ids": ids, "sums": sums}


def drawn(tokens: int, by_detection: bool) -> torch.Tensor:
    """int64 [tokens]: distinct genes."""
    random = np.random.default_rng(3)
    rates = np.sort(random.lognormal(0, SPREAD if by_detection else 0, GENES))[::-1]
    # Who comes first when gene g comes after an exponential time of that rate: drawn without putting back.
    times = random.exponential(size=GENES) / rates
    return torch.from_numpy(random.permutation(np.argsort(times)[:tokens]))


def ours(x: dict[str, Any]) -> peers.Answer:
    out = x["sums"][peers.OURS]
    ops.attention_scatter(x["q"], x["k"], x["packing"], x["ids"], out)
    return {"sums": out[:COMPARED]}


def dense(x: dict[str, Any]) -> peers.Answer:
    """The map held, and added at once."""
    out, ids = x["sums"][DENSE], x["ids"]
    out[ids[:, None], ids] += peers.maps(x)[1].mean(0).T
    return {"sums": out[:COMPARED]}


def column_sums(x: dict[str, Any]) -> peers.Answer:
    peers.colsum(x)
    return {}


def exact(x: dict[str, Any]) -> peers.Answer:
    shape = (COMPARED, GENES)
    rows = (0, COMPARED)
    return {"sums": reference.attention_scatter(x["q"], x["k"], x["packing"], x["ids"], shape, rows=rows)}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {
        peers.OURS: ours,
        COLUMN_SUMS: column_sums,
        peers.YARDSTICK: peers.sdpa_time,
        DENSE: dense,
    }
