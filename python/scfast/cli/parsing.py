"""What stands behind an option, as the tools take it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def parse_layers(text: str | None) -> tuple[int, int] | str | None:
    """The value of ``--layers``.

    Examples
    --------
    >>> parse_layers("prefix"), parse_layers("0-2"), parse_layers(None)
    ('prefix', (0, 2), None)
    """
    if text is None or text in ("prefix", "suffix"):
        return text
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise ValueError(f"--layers {text} must be prefix, suffix, or FIRST-LAST counted from 0, such as 0-2")
    return int(match[1]), int(match[2])


def parse_names(text: str | None) -> list[str] | None:
    """Names separated by commas, or the names in a file.

    Examples
    --------
    >>> parse_names("CD3E, LYZ"), parse_names(None)
    (['CD3E', 'LYZ'], None)
    """
    if text is None:
        return None
    if Path(text).is_file():
        from scfast import io

        return io.read_vocabulary(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_positions(text: str | None) -> list[int]:
    """The value of ``--positions``.

    Examples
    --------
    >>> parse_positions("1, 5,20"), parse_positions(None)
    ([1, 5, 20], [])
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--positions {text} must be places from 1, such as 1,5,20")
    return [int(part) for part in parts]


def parse_length(text: str | None) -> int | str | None:
    """The value of ``--equal-length``.

    Examples
    --------
    >>> parse_length("200"), parse_length("shortest")
    (200, 'shortest')
    """
    if text is None or text == "shortest":
        return text
    if not text.isdecimal():
        raise ValueError(f"--equal-length {text} must be a number of genes, or shortest")
    return int(text)


def parse_model(option: str, text: str) -> tuple[str, str]:
    """Kind and folder of a model.

    Examples
    --------
    >>> parse_model("--model", "geneformer:models/V1")
    ('geneformer', 'models/V1')
    """
    kind, _, folder = text.partition(":")
    if not kind or not folder:
        raise ValueError(f"{option} {text} must be KIND:FOLDER, such as geneformer:models/V2-104M")
    return kind, folder


def parse_model_options(texts: Sequence[str]) -> dict[str, str | int | float]:
    """The values of ``--model-option``; what reads as a number is one.

    Examples
    --------
    >>> parse_model_options(["species=mouse", "seed=3"])
    {'species': 'mouse', 'seed': 3}
    """
    options: dict[str, str | int | float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value:
            raise ValueError(f"--model-option {text} must be NAME=VALUE, such as species=mouse")
        if re.fullmatch(r"-?\d+", value):
            options[name] = int(value)
        else:
            options[name] = float(value) if re.fullmatch(r"-?\d*\.\d+", value) else value
    return options
