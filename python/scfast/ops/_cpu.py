"""The C++ backend: what it refuses, and pointers for what it takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from scfast import _kernels
from scfast.maps import Norm, Relevance

#: dtype codes of csrc/args.hpp
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: fusion codes of csrc/args.hpp
HEADS_CODES = {"none": 0, "sum": 1, "max": 2, "min": 3}
#: map codes of csrc/args.hpp
MAP_CODES = {"prob": 0, "norm": 1, "relevance": 2, "signed relevance": 3}


def unsupported(op: str, **tensors: torch.Tensor) -> list[str]:
    """Reasons why the C++ kernels cannot take these tensors; empty when they can."""
    return [
        f"{name} is on {x.device}, not on the CPU" for name, x in tensors.items() if x.device.type != "cpu"
    ]


def pointer(x: torch.Tensor | None) -> int:
    """Address of the first element; 0 for an absent or empty tensor."""
    return 0 if x is None or x.numel() == 0 else x.data_ptr()


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [T, H, D] with unit stride along D; other strides are handed to the kernel as they are."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def geometry(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    work: torch.Tensor,
    causal_offset: torch.Tensor,
    key_bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
) -> _kernels.Geometry:
    """What every attention kernel is told about its inputs."""
    for name, index in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if index.dtype != torch.int32 or not index.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32; build it with Packing.from_lengths")
    return _kernels.Geometry(
        dtype=DTYPE_CODES[q.dtype],
        q=pointer(q),
        k=pointer(k),
        q_strides=(q.stride(0), q.stride(1)),
        k_strides=(k.stride(0), k.stride(1)),
        sizes=(q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2]),
        cu_seqlens_q=pointer(cu_seqlens_q),
        cu_seqlens_k=pointer(cu_seqlens_k),
        work=pointer(work),
        n_cells=cu_seqlens_q.numel() - 1,
        n_work=work.shape[0],
        causal_offset=pointer(causal_offset),
        key_bias=pointer(key_bias),
        bias_heads=0 if key_bias is None else key_bias.shape[1],
        scale=scale,
        softcap=softcap,
        causal=causal,
        threads=torch.get_num_threads(),
    )


def given_map(kind: str, tensors: list[torch.Tensor | None]) -> tuple[_kernels.Map, list[torch.Tensor]]:
    """The map as kernels are told it, and the tensors that its pointers need alive."""
    if kind == "prob":
        return _kernels.Map(), []
    names = [field.name for field in fields(Norm if kind == "norm" else Relevance) if field.name != "signed"]
    given = dict(zip(names, tensors, strict=True))
    pointers: dict[str, Any] = {}
    if kind != "norm":
        v, d_out = (dense_rows(x) for x in (given["v"], given["d_out"]) if x is not None)
        given |= {"v": v, "d_out": d_out}
        pointers = {"v_strides": v.stride()[:2], "d_strides": d_out.stride()[:2], "v_dim": v.shape[2]}
    pointers |= {name: pointer(x) for name, x in given.items()}
    return _kernels.Map(kind=MAP_CODES[kind], **pointers), [x for x in given.values() if x is not None]


def fusion(q: torch.Tensor, heads: str, head_weights: torch.Tensor | None) -> tuple[int, torch.Tensor | None]:
    """Fusion code and head factors: a mean is a sum of heads weighted by 1/H."""
    if heads != "mean":
        return HEADS_CODES[heads], head_weights
    n_heads = q.shape[1]
    even = torch.full((n_heads,), 1.0 / n_heads)
    return HEADS_CODES["sum"], even if head_weights is None else head_weights / n_heads
