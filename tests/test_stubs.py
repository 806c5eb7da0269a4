"""The types of the extension, written by hand with names that say what a pointer is, are those of its bindings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import scfast
from scfast import _kernels

PACKAGE = Path(__file__).parents[1] / "python" / "scfast"
STUB = ast.parse((PACKAGE / "_kernels.pyi").read_text())
WRITTEN = {
    node.name: next((part for part in node.body if isinstance(part, ast.FunctionDef)), node)
    if isinstance(node, ast.ClassDef)
    else node
    for node in STUB.body
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
}
PUBLIC = sorted(name for name in vars(_kernels) if not name.startswith("_"))
#: What the extension says of a result -> whether the stub may say more.
VAGUE = {"object": "", "tuple": "tuple["}


def signature(name: str) -> ast.FunctionDef:
    """What nanobind says of a function, or of how an object is made."""
    bound = getattr(_kernels, name)
    text = (bound.__init__ if isinstance(bound, type) else bound).__nb_signature__[0][0]
    (function,) = ast.parse(text.replace("scfast._kernels.", "").replace("\\", "") + ": ...").body
    assert isinstance(function, ast.FunctionDef)
    return function


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """(kind, name, type) of every parameter; a name that can only be given by place is left out."""
    spec = function.args
    by_place = [("by place", "", at.annotation and ast.unparse(at.annotation)) for at in spec.posonlyargs]
    either = [("either", at.arg, at.annotation and ast.unparse(at.annotation)) for at in spec.args]
    by_name = [("by name", at.arg, at.annotation and ast.unparse(at.annotation)) for at in spec.kwonlyargs]
    return [entry for entry in (*by_place, *either, *by_name) if entry[1] != "self"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(scfast.__file__).parent / "py.typed").is_file()


def test_the_stub_names_what_is_there_and_nothing_else() -> None:
    assert sorted([*WRITTEN, "version"]) == PUBLIC


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_stub_says_what_the_extension_takes_and_returns(name: str) -> None:
    bound, written = signature(name), WRITTEN[name]
    assert isinstance(written, ast.FunctionDef), f"{name}: the stub does not say how it is made"
    assert parameters(written) == parameters(bound)
    assert len(written.args.kw_defaults) - written.args.kw_defaults.count(None) == (
        len(bound.args.kw_defaults) - bound.args.kw_defaults.count(None)
    ), "as many parameters have a default"
    assert written.returns is not None
    assert bound.returns is not None
    says, knows = ast.unparse(written.returns), ast.unparse(bound.returns)
    assert says == knows or (knows in VAGUE and says.startswith(VAGUE[knows]))
