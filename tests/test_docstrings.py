"""Every public name is documented as numpydoc asks, and every example in a docstring runs."""

from __future__ import annotations

import ast
import doctest
import enum
import inspect
import os
import textwrap
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import scfast

ROOT = Path(scfast.__file__).parent
#: Where people look for names. The command line is documented by --help, a reference by the op whose name it has.
ROOMS = sorted(
    {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cli", "bench", "kernels", "reference"}
)

#: Rules of numpydoc that are not kept, and why.
LEFT_OUT = {
    "ES01": "one sentence can be enough",
    "SA01": "pages of analyses lead from one name to the next",
    "SS02": "a summary may begin with a formula, such as r^T P",
    "SS05": "not every word that ends in s is a verb, and a summary may be a question",
    "PR01": "checked here, with the attributes of data classes",
    "PR04": "types stand in the signature, once",
    "PR08": "a description may begin with a name or a formula",
    "EX01": "checked here, for functions: a class is shown by what makes it",
}
#: Methods are read beside their class: what else numpydoc asks of them is theirs to choose.
OF_METHODS = {"GL08", "PR02", "PR03", "PR10", "SS01", "SS03", "SS06"}


@cache
def public() -> dict[str, Any]:
    """Name -> function or class, each under the first name that it has."""
    names: dict[int, tuple[str, Any]] = {}
    for module in ("scfast", *(f"scfast.{room}" for room in ROOMS)):
        room = import_module(module)
        for name in getattr(room, "__all__", ()):
            thing = getattr(room, name)
            own = getattr(thing, "__module__", "").startswith("scfast")  # an alias of dict documents itself
            if own and (inspect.isclass(thing) or inspect.isroutine(thing)):
                names.setdefault(id(thing), (f"{module}.{name}", thing))
    return dict(names.values())


def members(owner: type) -> Iterator[str]:
    """Public methods and properties that a class itself defines."""
    for name, member in vars(owner).items():
        public = not name.startswith("_")
        if public and (
            inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
        ):
            yield name


def undocumented(thing: Any, doc: NumpyDocString) -> set[str]:
    """Parameters that neither "Parameters" nor "Attributes" explains."""
    if inspect.isclass(thing) and (
        issubclass(thing, enum.Enum | BaseException | dict) or inspect.isabstract(thing)
    ):
        return set()
    if getattr(thing, "_is_protocol", False):
        return set()
    told = [
        entry.name for section in ("Parameters", "Other Parameters", "Attributes") for entry in doc[section]
    ]
    known = {name.strip().lstrip("*") for entry in told for name in entry.split(",")}
    taken = set(inspect.signature(thing).parameters) - {"self", "args", "kwargs"}
    return {name for name in taken if not name.startswith("_")} - known


def raised(function: Any) -> set[str]:
    """Errors that a function raises in its own lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    names = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return {name for name in names if name.endswith("Error")}


def faults(name: str, thing: Any) -> list[str]:
    doc = NumpyDocString(inspect.getdoc(thing) or "")
    found = [f"{code}: {text}" for code, text in validate(name)["errors"] if code not in LEFT_OUT]
    if missing := undocumented(thing, doc):
        found.append(f"does not explain {', '.join(sorted(missing))}")
    if inspect.isroutine(thing):
        if not doc["Examples"]:
            found.append("has no example")
        told = " ".join(entry.type or entry.name for entry in doc["Raises"])
        found += [f"does not say when it raises {error}" for error in raised(thing) if error not in told]
    else:
        for member in members(thing):
            errors = validate(f"{name}.{member}")["errors"]
            found += [f"{member}: {code}: {text}" for code, text in errors if code in OF_METHODS]
    return found


def test_every_public_name_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    # No comment in the code switches a rule off; and no file is parsed once per name to look for such comments.
    monkeypatch.setattr("numpydoc.validate.extract_ignore_validation_comments", lambda *_, **__: {})
    wrong = {name: found for name, thing in public().items() if (found := faults(name, thing))}
    assert not wrong, "\n".join(f"{name}: {fault}" for name, found in wrong.items() for fault in found)
    assert len(public()) > 180  # the walk found them


def test_faults_are_seen() -> None:
    def scale(tensor: Any, factor: float) -> Any:
        """Multiply.

        Parameters
        ----------
        tensor
            Anything.
        """
        if factor == 0:
            raise ValueError("zero")
        return tensor * factor

    doc = NumpyDocString(inspect.getdoc(scale) or "")
    assert undocumented(scale, doc) == {"factor"}
    assert raised(scale) == {"ValueError"}


def modules() -> list[str]:
    paths = (path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__")


def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Without a network, a GPU or data: what an example needs it makes, or takes from scfast.datasets."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    plt.switch_backend("agg")
    parser, ran, skipped, failed = doctest.DocTestFinder(exclude_empty=True), 0, [], []
    for name in modules():
        module = import_module(name)
        for test in parser.find(module, name, extraglobs={"getfixture": request.getfixturevalue}):
            skipped += [f"{test.name}: {e.source}" for e in test.examples if doctest.SKIP in e.options]
            said: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
            with warnings.catch_warnings():
                runner.run(test, out=said.append)
            plt.close("all")
            ran += len(test.examples)
            if runner.failures:
                failed.append("".join(said))
    assert not failed, "\n".join(failed)
    assert not skipped, "examples that never run:\n" + "".join(skipped)
    assert ran > 600
    assert not os.listdir(here), "examples write into temporary folders"
