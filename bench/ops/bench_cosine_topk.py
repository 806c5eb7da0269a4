"""Shapes and inputs for cosine_topk: rows against themselves, and queries against a database as large."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._cosine import TINY, YARDSTICK, cases, faiss, product
from ops._cosine import inputs as rows
from scfast import ops

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "cosine_topk"
CASES = [case for k in (16, 128) for of in ("itself", "others") for case in cases(k=k, of=of)]
TINY_CASES = [case for of in ("itself", "others") for case in cases(TINY, k=16, of=of)]
_BLOCK = 1024


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """As the other cosine ops; rows of ``others`` are normal too."""
    random = torch.Generator().manual_seed(1)
    others = torch.randn(case["rows"], case["columns"], generator=random) if case["of"] == "others" else None
    unit = None if others is None else torch.nn.functional.normalize(others)
    return rows(case) | {"others": others, "unit_others": unit}


def ours(x: dict[str, Any]) -> peers.Answer:
    return {"values": ops.cosine_topk(x["x"], x["k"], x["others"]).values}


def index_flat(x: dict[str, Any]) -> peers.Answer:
    """FAISS, exact inner products of rows of length 1; of rows with themselves the first is dropped."""
    package = faiss()
    package.omp_set_num_threads(torch.get_num_threads())
    own = x["others"] is None
    index = package.IndexFlatIP(x["columns"])
    index.add((x["unit"] if own else x["unit_others"]).numpy())
    values, _ = index.search(x["unit"].numpy(), x["k"] + own)
    return {"values": torch.from_numpy(values[:, int(own) :])}


def exact(x: dict[str, Any]) -> peers.Answer:
    own = x["others"] is None
    unit, others = (
        torch.nn.functional.normalize((x["x"] if y is None else y).double()) for y in (None, x["others"])
    )
    found = []
    for first in range(0, len(unit), _BLOCK):
        s = unit[first : first + _BLOCK] @ others.T
        if own:
            s[torch.arange(len(s)), torch.arange(first, first + len(s))] = -2
        found.append(s.topk(x["k"]).values)
    return {"values": torch.cat(found)}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    peer = {} if faiss() is None else {"FAISS IndexFlatIP": index_flat}
    return {peers.OURS: ours, **peer, YARDSTICK: product}
