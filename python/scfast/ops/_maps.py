"""``map=``: checks, and the form in which schemas and backends take a map."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from scfast.maps import Map, Norm, Prob, Relevance
from scfast.ops._checks import check_v
from scfast.packing import Packing

#: How the ops that take a map receive it: its kind, and the tensors that :func:`map_tensors` lists.
MAP = "str map, Tensor?[] map_tensors"
#: Ops that take any map; the others reduce probabilities.
TAKE_MAPS = ("attention_colsum", "attention_rowstats")

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def probabilities_alone(op: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Make an op that reduces probabilities refuse ``map=`` by name; :class:`Prob` is what it takes anyway."""

    @wraps(op)
    def refuse(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        map = kwargs.pop("map", None)
        if isinstance(map, (Norm, Relevance)):
            raise ValueError(
                f"{op.__name__} takes the probabilities of attention alone, not map={type(map).__name__}(...): leave "
                f"map out, or call {' or '.join(TAKE_MAPS)}"
            )
        if map is not None and not isinstance(map, Prob):
            raise _unknown(map)
        return op(*args, **kwargs)

    return refuse


def _unknown(map: object) -> TypeError:
    return TypeError(f"map must be scfast.ops.Prob(), Norm(...) or Relevance(...), got {type(map).__name__}")


def check_map(
    map: Map | None, q: torch.Tensor, k: torch.Tensor, packing: Packing, heads: str | None, default: str
) -> tuple[Map, str]:
    """Refuse a map that does not fit; returns it in the form kernels take, and the fusion of heads.

    ``default`` is the op's own fusion; the heads of a norm are summed as vectors, which is no choice.
    """
    if map is None or isinstance(map, Prob):
        return Prob(), default if heads is None else heads
    if isinstance(map, Norm):
        if heads not in (None, "sum", "none"):
            raise ValueError(
                f"heads={heads!r} has no meaning for the map Norm, whose heads are summed as vectors: leave heads out, "
                "or pass 'none' for the norms of each head"
            )
        return _check_norm(map, q, packing, heads), heads or "sum"
    if isinstance(map, Relevance):
        return _check_relevance(map, q, k, packing), default if heads is None else heads
    raise _unknown(map)


def _check_norm(map: Norm, q: torch.Tensor, packing: Packing, heads: str | None) -> Norm:
    n_queries, n_keys, n_heads = packing.total_q, packing.total_k, q.shape[1]
    if heads == "none" and (map.diagonal_linear is not None or map.diagonal_constant is not None):
        raise ValueError(
            "Norm.diagonal_linear and diagonal_constant belong to the sum of all heads: leave heads='none' out, or them"
        )
    return Norm(
        _float32("Norm.gram", map.gram, (n_keys, n_heads, n_heads), q),
        _float32("Norm.diagonal_linear", map.diagonal_linear, (n_queries, n_heads), q),
        _float32("Norm.diagonal_constant", map.diagonal_constant, (n_queries,), q),
        _float32("Norm.row_scale", map.row_scale, (n_queries,), q),
        _check_lse("Norm.lse", map.lse, q),
    )


def _check_relevance(map: Relevance, q: torch.Tensor, k: torch.Tensor, packing: Packing) -> Relevance:
    check_v(q, k, map.v, packing)
    shape = (q.shape[0], q.shape[1], map.v.shape[2])
    if tuple(map.d_out.shape) != shape:
        raise ValueError(
            f"Relevance.d_out has shape {tuple(map.d_out.shape)}, expected {shape}: the gradient of what "
            "attention_forward returns for these q and v"
        )
    if map.d_out.dtype != q.dtype:
        raise TypeError(f"q is {q.dtype} and Relevance.d_out is {map.d_out.dtype}; cast them to one dtype")
    _check_device("Relevance.d_out", map.d_out, q)
    return Relevance(map.v, map.d_out, map.signed, _check_lse("Relevance.lse", map.lse, q))


def _float32(name: str, x: torch.Tensor | None, shape: tuple[int, ...], q: torch.Tensor) -> Any:
    if x is None:
        return None
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    _check_device(name, x, q)
    return x.to(torch.float32).contiguous()


def _check_lse(name: str, lse: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    if lse is not None and lse.dtype != torch.float32:
        raise TypeError(f"{name} is {lse.dtype}, expected torch.float32 as attention_forward returns it")
    return _float32(name, lse, (q.shape[0], q.shape[1]), q)


def _check_device(name: str, x: torch.Tensor, q: torch.Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device} and q on {q.device}: move them together")


def map_tensors(map: Map) -> list[torch.Tensor | None]:
    """The tensors of a map, in the order in which a backend takes them apart again."""
    if isinstance(map, Norm):
        return [map.gram, map.diagonal_linear, map.diagonal_constant, map.row_scale, map.lse]
    if isinstance(map, Relevance):
        return [map.v, map.d_out, map.lse]
    return []
