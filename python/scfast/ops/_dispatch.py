"""Which backend runs an op: the first in order of priority that refuses nothing, or an error with every refusal."""

from __future__ import annotations

from collections.abc import Callable

import torch

from scfast.ops import _cpu, _triton


class BackendError(RuntimeError):
    """No backend takes these inputs; the message lists them and every refusal."""


def _reference_unsupported(op: str, **tensors: torch.Tensor) -> list[str]:
    return []


#: name -> what the backend refuses, in order of priority. Triton's interpreter, which takes CPU tensors too, comes
#: after the C++ kernels: it runs only when it is asked for by name.
BACKENDS: dict[str, Callable[..., list[str]]] = {
    "cpu": _cpu.unsupported,
    "triton": _triton.unsupported,
    "reference": _reference_unsupported,
}
#: Kinds of map beside "prob" that a backend's kernels take; a backend that is not listed takes none.
MAPS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("cpu", "triton", "reference"), ("norm", "relevance", "signed relevance")
)


def choose(op: str, backend: str, kind: str = "prob", /, **tensors: torch.Tensor) -> str:
    """Name of the backend that runs ``op`` on these inputs; ``kind`` is that of the map it is to reduce.

    ``"auto"`` never picks the reference: it materialises the maps, so it runs only when it is asked for by name.
    """
    if backend == "auto":
        candidates = [name for name in BACKENDS if name != "reference"]
    elif backend in BACKENDS:
        candidates = [backend]
    else:
        raise ValueError(
            f"backend={backend!r} is unknown; use 'auto' or one of {', '.join(map(repr, BACKENDS))}"
        )
    refusals = {}
    for name in candidates:
        refusals[name] = BACKENDS[name](op, **tensors)
        if kind != "prob" and kind not in MAPS.get(name, ()):
            refusals[name] = [*refusals[name], f"{op} has no kernel for the map {kind!r}"]
        if not refusals[name]:
            return name
    inputs = ", ".join(f"{name}: {x.dtype} {tuple(x.shape)} on {x.device}" for name, x in tensors.items())
    of = "" if kind == "prob" else f" of the map {kind!r}"
    reasons = "\n".join(f"  {name}: {'; '.join(reasons)}" for name, reasons in refusals.items())
    raise BackendError(
        f"no backend runs {op}{of} on {inputs}\n{reasons}\n"
        "Change what they refuse, or pass backend='reference' (float64, holds the maps)."
    )
