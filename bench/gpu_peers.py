"""What the GPU bench times: scfast's ops, and what torch has for the same answers, on batches of whole cells.

A contender maps inputs to named tensors in the packed layout, which are compared with the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from scfast import Packing, ops, reference

HEAD_DIM = 64
OURS = "scfast"
#: scfast's forward with the column sums of every head taken along.
OURS_RECEIVED = "scfast, with received"
#: scfast's column sums of other maps than the probabilities; and torch's, maps held, on the small batch alone.
OURS_NORM, OURS_RELEVANCE, HELD = "scfast, map=Norm", "scfast, map=Relevance", "torch, map held"
ALL_OURS = (OURS, OURS_RECEIVED, OURS_NORM, OURS_RELEVANCE)
FLEX = "FlexAttention"
#: Entries of a row; genes that sums are kept of, and tokens up to which a cell counts as small.
STRONGEST, GENOME, SMALL_CELL = 16, 20_000, 256

Answer = dict[str, torch.Tensor]
Contender = Callable[["Inputs"], Answer]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Inputs:
    """One batch: packed for scfast, and cells of one length together for torch, which has no packing.

    ``q``, ``k``, ``v``, ``d_out`` are [T, H, D]; ``weights`` [T] sum to 1 in each cell; ``groups`` holds the same
    as [B, H, L, D] and [B, L], a dictionary per length, longest cells first. ``saved`` is what the forward pass
    leaves for the backward pass, made once.
    """

    packing: Packing
    tensors: dict[str, torch.Tensor]
    weights: torch.Tensor
    groups: list[dict[str, torch.Tensor]]
    saved: dict[str, Any]

    @property
    def elements(self) -> int:
        """Entries of all maps: heads x tokens x tokens of each cell."""
        return self.tensors["q"].shape[1] * sum(n * n for n in self.packing.lengths_q)


def inputs(lengths: Sequence[int], heads: int, device: str, dtype: torch.dtype) -> Inputs:
    """Random inputs, the same for every contender."""
    lengths = sorted(lengths, reverse=True)
    random = torch.Generator(device).manual_seed(0)
    shape = (sum(lengths), heads, HEAD_DIM)
    tensors = {
        name: torch.randn(shape, generator=random, device=device).to(dtype)
        for name in ("q", "k", "v", "d_out")
    }
    packing = Packing.from_lengths(lengths, device=device)
    weights = torch.rand(shape[0], generator=random, device=device) + 0.5
    cell = packing.cell_of_query()
    sums = torch.zeros(len(lengths), device=device).index_add_(0, cell, weights)
    weights /= sums[cell]
    groups, start = [], 0
    for length in sorted(set(lengths), reverse=True):
        stop = start + length * lengths.count(length)
        heads_first = {
            name: x[start:stop].unflatten(0, (-1, length)).transpose(1, 2).contiguous()
            for name, x in tensors.items()
        }
        groups.append(heads_first | {"weights": weights[start:stop].unflatten(0, (-1, length))})
        start = stop
    return Inputs(packing, tensors, weights, groups, {})


# scfast
def colsum(x: Inputs) -> Answer:
    return {"sums": ops.attention_colsum(x.tensors["q"], x.tensors["k"], x.packing, x.weights)[0, 0]}


def norm_of(x: Inputs) -> ops.Norm:
    """Norms of the values, as if they were what each head adds to the stream; the inner products are made once."""
    if OURS_NORM not in x.saved:
        v = x.tensors["v"].float()
        x.saved[OURS_NORM] = torch.einsum("jhd,jgd->jhg", v, v)
    return ops.Norm(x.saved[OURS_NORM])


def relevance_of(x: Inputs) -> ops.Relevance:
    return ops.Relevance(x.tensors["v"], x.tensors["d_out"])


def norm_colsum(x: Inputs) -> Answer:
    return {
        "norms": ops.attention_colsum(x.tensors["q"], x.tensors["k"], x.packing, x.weights, map=norm_of(x))[
            0, 0
        ]
    }


def relevance_colsum(x: Inputs) -> Answer:
    sums = ops.attention_colsum(x.tensors["q"], x.tensors["k"], x.packing, x.weights, map=relevance_of(x))
    return {"relevances": sums[0, 0]}


def held_maps(x: Inputs) -> Answer:
    """Column sums of maps [H, n, n] in the dtype of the inputs, cell by cell."""
    split, found = x.packing.split_q, {"norms": [], "relevances": []}
    gram = norm_of(x).gram
    for q, k, v, d_out, products, weights in zip(
        *(split(x.tensors[name]) for name in ("q", "k", "v", "d_out")),
        split(gram),
        split(x.weights),
        strict=True,
    ):
        q, k, v, d_out = (part.transpose(0, 1) for part in (q, k, v, d_out))  # [H, n, D]
        p = (q @ k.mT * HEAD_DIM**-0.5).softmax(-1)
        square = torch.einsum("hij,jhg,gij->ij", p.float(), products, p.float())
        found["norms"].append(weights @ square.clamp(min=0).sqrt())
        found["relevances"].append(weights @ (p * (d_out @ v.mT)).clamp(min=0).float().mean(0))
    return {name: torch.cat(parts) for name, parts in found.items()}


def forward(x: Inputs, received: bool = False) -> Answer:
    full = ops.attention_forward(*(x.tensors[name] for name in "qkv"), x.packing, received=received)
    return {"out": full.out, "lse": full.lse} | ({"received": full.received} if received else {})


def backward(x: Inputs) -> Answer:
    if OURS not in x.saved:
        x.saved[OURS] = forward(x)
    saved = x.saved[OURS]
    given = (x.tensors[name] for name in ("d_out", "q", "k", "v"))
    return ops.attention_backward(*given, saved["out"], saved["lse"], x.packing)._asdict()


def matmul(x: Inputs) -> Answer:
    columns = x.tensors["v"].flatten(1)[:, :HEAD_DIM].float()
    return {"product": ops.attention_matmul(x.tensors["q"], x.tensors["k"], x.packing, columns)}


def compare(x: Inputs) -> Answer:
    """Against a second model whose queries and keys are d_out and v."""
    tensors = (x.tensors[name] for name in ("q", "k", "d_out", "v"))
    return ops.attention_compare(*tensors, x.packing)._asdict()


def topk(x: Inputs) -> Answer:
    return {"values": ops.attention_topk(x.tensors["q"], x.tensors["k"], x.packing, STRONGEST).values}


def genes(x: Inputs) -> tuple[torch.Tensor, int]:
    """(ids [T], none twice in a cell; how many there are): of a genome, or few more than a small cell has."""
    longest = max(x.packing.lengths_q)
    n = GENOME if longest > SMALL_CELL else 2 * longest
    random = torch.Generator().manual_seed(0)
    ids = [torch.randperm(n, generator=random)[:length] for length in x.packing.lengths_q]
    return torch.cat(ids), n


def scatter(x: Inputs) -> Answer:
    """Every call adds the batch once more: right after the first one."""
    q, k = x.tensors["q"], x.tensors["k"]
    if OURS not in x.saved:
        ids, n = genes(x)
        x.saved[OURS] = ids.to(q.device), torch.zeros(n, n, dtype=torch.float64, device=q.device)
    ids, out = x.saved[OURS]
    return {"sums": ops.attention_scatter(q, k, x.packing, ids, out)}


# torch
def sdpa(backend: SDPBackend) -> Attend:
    """torch's fused attention by one of its kernels, or an error."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    return attend


@cache
def compiled_flex() -> Attend:
    """Compiled once for any shape; with the whole graph, else it might fall back to holding the maps."""
    return torch.compile(flex_attention, fullgraph=True)


def packed(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, H, L, ...] of each group -> [T, H, ...]."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])


def torch_forward(attend: Attend, x: Inputs) -> Answer:
    return {"out": packed([attend(g["q"], g["k"], g["v"]) for g in x.groups])}


def torch_forward_alone(attend: Attend, x: Inputs) -> Answer:
    """The forward pass as a yardstick of time for an op that gives something else."""
    torch_forward(attend, x)
    return {}


def through_backward(attend: Attend, x: Inputs, received: bool) -> Answer:
    """r^T P is the gradient of the output with respect to v, when the gradient of the output is r."""
    outs, sums = [], []
    for group in x.groups:
        v = group["v"].detach().requires_grad_()
        with torch.enable_grad():
            out = attend(group["q"], group["k"], v)
        d_out = torch.zeros_like(out)  # fused kernels want v as wide as q: one column holds r
        d_out[..., 0] = 1 if received else group["weights"][:, None]
        (d_v,) = torch.autograd.grad(out, v, d_out)
        outs.append(out.detach())
        sums.append(d_v[..., 0])  # [B, H, L]
    by_head = packed(sums)
    if received:
        return {"out": packed(outs), "received": by_head.T}
    return {"sums": by_head.mean(1, dtype=torch.float32)}


def torch_backward(name: str, attend: Attend, x: Inputs) -> Answer:
    if name not in x.saved:
        leaves = [[group[part].clone().requires_grad_() for part in "qkv"] for group in x.groups]
        with torch.enable_grad():
            x.saved[name] = [(attend(*own), own) for own in leaves]
    gradients = [
        torch.autograd.grad(out, own, group["d_out"], retain_graph=True)
        for (out, own), group in zip(x.saved[name], x.groups, strict=True)
    ]
    return {
        part: packed(found)
        for part, found in zip(("dq", "dk", "dv"), zip(*gradients, strict=True), strict=True)
    }


def kernels(dry: bool) -> dict[str, Attend]:
    """torch's attention under the names of its kernels; in a dry run its plain formula stands for each."""
    if dry:
        plain = sdpa(SDPBackend.MATH)
        return {"SDPA flash": plain, "SDPA cuDNN": plain, FLEX: plain}
    return {
        "SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        FLEX: compiled_flex(),
    }


#: Ops that torch has nothing for: its forward pass is timed beside them.
ALONE: dict[str, Contender] = {
    "attention_matmul": matmul,
    "attention_compare": compare,
    "attention_topk": topk,
    "attention_scatter": scatter,
}


def contenders(op: str, dry: bool) -> dict[str, Contender]:
    """Everything that is timed for an op, ours first; names of forward passes alone end in "forward"."""
    torch_s = kernels(dry)
    run = torch_forward if op == "attention_forward" else torch_forward_alone
    forwards = {f"{name} forward": partial(run, attend) for name, attend in torch_s.items()}
    if op == "attention_colsum":
        tricks = {
            f"{name} backward trick": partial(through_backward, attend, received=False)
            for name, attend in torch_s.items()
        }
        maps = {OURS_NORM: norm_colsum, OURS_RELEVANCE: relevance_colsum}
        return {OURS: colsum, **maps, **tricks, **forwards}
    if op == "attention_forward":
        tricks = {
            f"{name} and backward trick": partial(through_backward, attend, received=True)
            for name, attend in torch_s.items()
        }
        return {OURS: forward, OURS_RECEIVED: partial(forward, received=True), **forwards, **tricks}
    if op in ALONE:
        return {OURS: ALONE[op], **forwards}
    backwards = {
        f"{name} backward": partial(torch_backward, name, attend) for name, attend in torch_s.items()
    }
    return {OURS: backward, **backwards}


def exact(op: str, x: Inputs) -> Answer:
    """Every output of an op in float64, on the CPU and from the same rounded inputs."""
    given = {name: tensor.cpu() for name, tensor in x.tensors.items()}
    packing = x.packing.to("cpu")
    if op == "attention_colsum":
        inputs = given["q"], given["k"], packing, x.weights.cpu()[None]
        maps = {
            "sums": None,
            "norms": ops.Norm(norm_of(x).gram.cpu()),
            "relevances": ops.Relevance(given["v"], given["d_out"]),
        }
        fusion = {"norms": "sum"}
        return {
            name: reference.attention_colsum(*inputs, map=map, heads=fusion.get(name, "mean"))[0][0, 0]
            for name, map in maps.items()
        }
    if op == "attention_forward":
        return reference.attention_forward(given["q"], given["k"], given["v"], packing)
    if op == "attention_matmul":
        columns = given["v"].flatten(1)[:, :HEAD_DIM]
        return {"product": reference.attention_matmul(given["q"], given["k"], packing, columns)}
    if op == "attention_compare":
        products = reference.attention_compare(*(given[name] for name in ("q", "k", "d_out", "v")), packing)
        return dict(zip(("dot", "square1", "square2"), products, strict=True))
    if op == "attention_topk":
        values, _ = reference.attention_topk(given["q"], given["k"], packing, STRONGEST)
        return {"values": values[:, 0]}
    if op == "attention_scatter":
        ids, n = genes(x)
        return {"sums": reference.attention_scatter(given["q"], given["k"], packing, ids, (n, n))}
    return reference.attention_backward(given["d_out"], given["q"], given["k"], given["v"], packing)
