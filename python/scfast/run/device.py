"""Which device a run uses."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The GPU where torch sees one, else the CPU.

    Returns
    -------
    torch.device
        ``cuda`` or ``cpu``.

    Examples
    --------
    >>> default_device().type in ("cpu", "cuda")
    True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a user names, once it is known to be there.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Returns
    -------
    torch.device
        One that models run on.

    Raises
    ------
    ValueError
        When it is no device that models run on, or not there; the message says what is.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device={str(device)!r} is no device that models run on: use 'cpu', 'cuda' or 'cuda:N'"
        )
    if found.type == "cuda":
        _require_gpu(found)
    return found


def _require_gpu(device: torch.device) -> None:
    if torch.version.cuda is None:
        raise ValueError(
            f"device={str(device)!r}, but torch {torch.__version__} was built without CUDA: install a CUDA build of"
            " torch, or use device='cpu'"
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= there:
        raise ValueError(
            f"device={str(device)!r}, but torch sees {there} GPUs: `scfast doctor` shows the driver; or use"
            " device='cpu'"
        )
