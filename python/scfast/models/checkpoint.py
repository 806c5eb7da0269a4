"""Reads a checkpoint folder: config.json, and weights as safetensors or (weights_only) as a .bin file."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from scfast.models.text_files import read_json, shown

#: Files that hold weights, in the order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


#: What no checkpoint is larger than: its weights are listed by name before a file is opened.
MAX_LAYERS, MAX_SIZE = 1000, 10**9
#: Bytes of a file's name.
_LONGEST_NAME = 255
#: What torch's reader meets in a file that is cut short or no torch file.
_DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AssertionError, struct.error)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The content of ``config.json``, or of another JSON file of the folder.

    Raises
    ------
    FileNotFoundError
        When there is none, or no folder.
    ValueError
        When it is no JSON object.
    """
    path = folder / name
    if not path.is_file():
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else None
        what = (
            f"it holds {', '.join(there[:12]) or 'nothing'}"
            if there is not None
            else "there is no such folder"
        )
        raise FileNotFoundError(f"{folder} is no checkpoint folder: {name} is missing ({what})")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(config).__name__}")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder by name, as stored.

    ``model.safetensors`` is preferred to ``pytorch_model.bin``; shards are read through their index.

    Raises
    ------
    FileNotFoundError
        When there is no weight file, or a shard is missing.
    ValueError
        When a file cannot be read as weights, or torch refuses to read it without running code.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return _read_sharded(path) if name.endswith(".index.json") else _read_file(path)
    raise FileNotFoundError(f"{folder} holds no weights; looked for {', '.join(WEIGHT_FILES)}")


def _read_sharded(index: Path) -> dict[str, torch.Tensor]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} is no index of a sharded checkpoint: it has no weight_map of file names")
    shards = sorted(set(weight_map.values()))
    outside = [s for s in shards if Path(s).name != s or len(s.encode(errors="replace")) > _LONGEST_NAME]
    if outside:
        raise ValueError(f"{index} points outside its folder: {shown(outside[0])}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(missing)} files that are not there: {', '.join(missing[:5])}"
        )
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors |= _read_file(index.parent / shard)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ValueError(f"{index} promises weights that its files lack: {', '.join(absent[:5])}")
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return read_state_dict(path)
    _refuse_pointer(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file: {error}") from None


def read_torch(path: Path, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote into a file, read without running code (``weights_only``).

    Parameters
    ----------
    path
        The file.
    mmap
        Map tensors into memory instead of reading them: only the pages that are used are loaded. Files that torch
        below 1.6 wrote cannot be mapped.

    Raises
    ------
    ValueError
        When the file is cut short, no torch file, cannot be mapped, or torch refuses to read it.
    """
    _refuse_pointer(path)
    if mmap and path.stat().st_size and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is cut short, or was saved by torch below 1.6 and cannot be mapped into memory: fetch it again, or"
            " load it once with a recent torch and torch.save it"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights, and torch refuses to read it without running code "
            f"({_first_line(error)}). If you trust it, load it once where it was made and "
            "save its state_dict as model.safetensors with safetensors.torch.save_file"
        ) from None
    except _DAMAGED as error:
        raise ValueError(f"{path} is cut short or no torch file: {_first_line(error)}") from None


def read_state_dict(path: Path, *, mmap: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a file of ``torch.save`` by name; see :func:`read_torch`.

    Raises
    ------
    ValueError
        As :func:`read_torch`, and when the file holds something else.
    """
    tensors = read_torch(path, mmap=mmap)
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path} must hold a state_dict (names and tensors); it holds a {type(tensors).__name__}"
        )
    return tensors


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise ValueError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")


def check_sizes(config: Mapping[str, Any], keys: Iterable[str], origin: str, kind: str) -> None:
    """Refuse a configuration whose sizes are no whole numbers above 0, or more layers than a machine holds.

    Raises
    ------
    ValueError
        When one is missing or out of bounds; ``kind`` says of which model ``origin`` should be.
    """
    wrong = [key for key in keys if type(config.get(key)) is not int or config[key] < 1]
    if wrong:
        raise ValueError(
            f"{origin} gives no whole number above 0 as {', '.join(wrong)}: it is not the {kind}"
        )
    large = [key for key in keys if config[key] > (MAX_LAYERS if "layers" in key else MAX_SIZE)]
    if large:
        raise ValueError(
            f"{origin} has {large[0]}={shown(config[large[0]])}; at most {MAX_LAYERS} layers and sizes of {MAX_SIZE:,}"
            " are read"
        )


def check_tensors(
    tensors: dict[str, torch.Tensor],
    expected: dict[str, tuple[int, ...]],
    tolerated: Iterable[str],
    origin: str,
    against: str = "config.json",
) -> None:
    """Refuse missing and extra weights, and weights of another shape or kind; all of them in one error.

    Parameters
    ----------
    tensors
        As read.
    expected
        Name -> shape of every weight that the model needs.
    tolerated
        Names that may be there without being used.
    origin
        What errors call the checkpoint.
    against
        What says which weights there must be, for errors.
    """
    tolerated = set(tolerated)
    problems = []
    missing = [name for name in expected if name not in tensors]
    if missing:
        problems.append(f"{len(missing)} weights are missing: {_some(missing)}")
    extra = [name for name in tensors if name not in expected and name not in tolerated]
    if extra:
        problems.append(f"{len(extra)} weights have no place in the model: {_some(extra)}")
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)}, {against} asks for {shape}")
        elif name in tensors and not tensors[name].dtype.is_floating_point:
            problems.append(
                f"{name} is {tensors[name].dtype}, not floating point (quantised weights are not read)"
            )
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{origin} does not fit its {against}: {'; '.join(problems[:8])}{more}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _some(names: list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
