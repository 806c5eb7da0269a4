"""The house keeps its order: stems, floors, sizes, words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scfast import ops
from scfast.ops import _triton
from scfast.ops._dispatch import BACKENDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "scfast"
OPS = [name for name in ops.__all__ if name.islower()]

#: The files of an op, whatever its backends.
STEMS = (
    "python/scfast/ops/{op}.py",
    "python/scfast/reference/{op}.py",
    "tests/ops/test_{op}.py",
    "bench/ops/bench_{op}.py",
)
#: The kernel that each backend adds.
KERNELS = {"cpu": "csrc/{op}.hpp", "triton": "kernels/{op}.py", "cuda": "kernels/{op}.cu"}

#: room -> floor: a room imports rooms of its own floor and below. Decimals order the rooms of floor 2.
FLOORS = {
    "_kernels": 1, "kernels": 1,
    "packing": 2.0, "maps": 2.0, "reference": 2.1, "ops": 2.2,
    "attention": 3, "observables": 3, "models": 3,
    "analyses": 4,
    "run": 5, "train": 5,
    "pp": 6, "tl": 6, "pl": 6, "io": 6, "datasets": 6, "report": 6,
    "bench": 6, "cli": 6, "demo": 6, "doctor": 6, "__main__": 6,
}  # fmt: skip

MAX_LINES = 400
#: Folders of code; what they hold is read by strangers.
CODE = ("csrc", "kernels", "python", "tests", "bench", "examples")
SUFFIXES = {".py", ".hpp", ".cpp", ".cu", ".cuh", ".toml", ".cmake"}
#: What has no place in code: references that only their author can follow.
BANNED = {
    "an issue number": r"\bissue\s+#?\d|\bGH-\d|(?<![\w&\"'])#\d{1,5}\b",
    "a path of one machine": r"(?<![\w.])/(?:work|home|root|Users)/|/tmp/dev",
    "an unfinished thought": r"\b(?:TODO|FIXME|XXX|HACK)\b",
}


def code_files() -> list[Path]:
    return sorted(
        path
        for folder in CODE
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts
    )


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("op", OPS)
def test_same_stem_everywhere(op: str) -> None:
    names = [name for name in BACKENDS if name == "cpu" or (name == "triton" and op in _triton.OPS)]
    backends = [KERNELS[name] for name in names]
    missing = [
        stem.format(op=op) for stem in (*STEMS, *backends) if not (ROOT / stem.format(op=op)).is_file()
    ]
    assert not missing, f"{op} lacks {', '.join(missing)}"


@pytest.mark.parametrize("folder", ["python/scfast/ops", "python/scfast/reference"])
def test_no_op_file_without_an_op(folder: str) -> None:
    helpers = {"rollout"}  # a formula over many layers, not an op
    stems = {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")}
    assert stems - helpers <= set(OPS), f"{folder} holds files that scfast.ops does not list"


def imported_rooms(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of scfast in ``source``, wherever it stands; '' is the package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == "scfast":
                    yield node.lineno, rest[0] if rest else ""
        elif isinstance(node, ast.ImportFrom):
            base = list(module[: len(module) - node.level]) if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            if parts[:1] == ["scfast"]:
                for room in parts[1:2] or [alias.name for alias in node.names]:
                    yield node.lineno, room


def climbs(source: str, module: tuple[str, ...]) -> list[str]:
    """Imports that go up a floor, from a module such as ("scfast", "ops", "attention_colsum")."""
    floors = (
        FLOORS | dict.fromkeys(("", "record"), 6) | {"Packing": FLOORS["packing"]}
    )  # the package's own names
    own, wrong = floors[module[1]], []
    for line, room in imported_rooms(source, module):
        if room not in floors:
            wrong.append(f"line {line}: {room!r} has no floor in FLOORS")
        elif floors[room] > own:
            wrong.append(
                f"line {line}: {module[1]} (floor {own}) imports {room or 'scfast'} from a floor above"
            )
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_rooms_import_only_rooms_below(path: Path) -> None:
    module = ("scfast", *path.relative_to(PACKAGE).with_suffix("").parts)
    if module == ("scfast", "__init__"):
        return
    assert module[1] in FLOORS, f"{name(path)}: give the room {module[1]!r} a floor in FLOORS"
    wrong = climbs(path.read_text(), module)
    assert not wrong, f"{name(path)}: " + "; ".join(wrong)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from scfast.tl import rollout", ("scfast", "ops", "x")),
        ("import scfast.models.base", ("scfast", "reference", "x")),
        ("def f():\n    from ..run import plan", ("scfast", "analyses", "x")),
        ("from scfast import observables", ("scfast", "packing")),
        ("from scfast.ops import attention_colsum", ("scfast", "reference", "x")),
        ("import scfast", ("scfast", "models", "x")),
        ("from scfast import cellar", ("scfast", "cli")),
    ],
)
def test_a_climb_is_seen(source: str, module: tuple[str, ...]) -> None:
    assert climbs(source, module)


def test_a_descent_is_allowed() -> None:
    source = "import torch\nfrom scfast import ops, Packing\nfrom scfast.ops import x\nfrom . import base"
    assert not climbs(source, ("scfast", "models", "geneformer"))


@pytest.mark.parametrize("path", code_files(), ids=name)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines; split it (at most {MAX_LINES})"


@pytest.mark.parametrize("path", code_files(), ids=name)
def test_code_speaks_to_strangers(path: Path) -> None:
    if path == Path(__file__):
        return
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        for what, pattern in BANNED.items():
            if what == "an issue number" and path.suffix != ".py" and line.lstrip().startswith("#"):
                continue  # preprocessor
            assert not re.search(pattern, line), f"{name(path)}:{number} holds {what}: {line.strip()}"


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("an issue number", "# see issue 12"),
        ("an issue number", "# fixes #12"),
        ("a path of one machine", 'open("/home/me/x")'),
        ("an unfinished thought", "# TODO later"),
    ],
)
def test_banned_words_are_seen(what: str, line: str) -> None:
    assert re.search(BANNED[what], line)


def test_every_instruction_set_is_built_declared_and_bound() -> None:
    names = {path.stem.removeprefix("kernels_") for path in (ROOT / "csrc").glob("kernels_*.cpp")}
    built = set(re.findall(r"csrc/kernels_(\w+)\.cpp", (ROOT / "CMakeLists.txt").read_text()))
    declared = set(re.findall(r"scfast_(\w+)\b(?=[,;])", (ROOT / "csrc/isa.hpp").read_text()))
    bound = set(re.findall(r"&scfast_(\w+)", (ROOT / "csrc/module.cpp").read_text()))
    assert names == built, "CMakeLists.txt compiles every csrc/kernels_*.cpp"
    assert names == declared, "isa.hpp declares every csrc/kernels_*.cpp"
    assert names == bound, "module.cpp offers every csrc/kernels_*.cpp"


def test_only_the_binding_includes_python() -> None:
    for path in (ROOT / "csrc").iterdir():
        if path.suffix in SUFFIXES and path.name != "module.cpp":
            assert not re.search(r"#include\s*[<\"](?:Python|nanobind|torch)", path.read_text()), name(path)


def test_every_test_folder_is_a_package() -> None:
    for folder in {path.parent for path in (ROOT / "tests").rglob("test_*.py")}:
        assert (folder / "__init__.py").is_file(), f"{name(folder)} lacks __init__.py"
