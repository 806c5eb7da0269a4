"""In which precision training multiplies: float32, or bfloat16 where the device has instructions for it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from scfast import _kernels

PRECISIONS = ("auto", "bf16", "float32")


def without_bf16(device: torch.device) -> str | None:
    """Why ``device`` cannot multiply in bfloat16; None where it can."""
    if device.type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if there else f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores"
    there = "avx512_bf16" in _kernels.instruction_sets()
    return None if there else "this processor has no AVX512-BF16 instructions (`scfast doctor` shows it)"


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that a user names, once it is known that the device has it.

    Parameters
    ----------
    precision
        ``"float32"``; ``"bf16"``; or ``"auto"``: bf16 where the device has instructions for it.
    device
        Where the model is.

    Returns
    -------
    ``"bf16"`` or ``"float32"``.

    Raises
    ------
    ValueError
        When it is none of the three, or the device lacks it.

    Examples
    --------
    >>> resolve_precision("float32", torch.device("cpu"))
    'float32'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; use one of {', '.join(map(repr, PRECISIONS))}")
    if precision == "float32":
        return precision
    why_not = without_bf16(device)
    if why_not is not None and precision == "bf16":
        raise ValueError(f"precision='bf16', but {why_not}: use precision='float32' or 'auto'")
    return "bf16" if why_not is None else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Within it, products of matrices and attention take bfloat16; weights, sums and norms stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
