"""What the package never calls, because it would run what a file holds; and the page that says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "python").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
#: Functions that run what they read, or what they are given, whatever their arguments.
NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *(
        f"{module}.{name}"
        for module in ("pickle", "cloudpickle", "dill", "marshal")
        for name in ("load", "loads")
    ),
    *(
        "pickle.Unpickler",
        "shelve.open",
        "joblib.load",
        "pd.read_pickle",
        "pandas.read_pickle",
        "runpy.run_path",
    ),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "torch.package"),
}
#: Function -> arguments that must be there with this value.
ONLY_WITH = {
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
    "AutoConfig.from_pretrained": {"local_files_only": True, "trust_remote_code": False},
}
#: Arguments that no call may have.
NEVER_WITH = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}
#: What a process sends to its own Dask workers, who compare its checksum: docs/security.md.
ALLOWED = {("python/scfast/run/cluster.py", "cloudpickle.loads")}


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """(line, call) of every call in ``source`` that is not allowed."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        needed = next((must for end, must in ONLY_WITH.items() if f".{name}".endswith(f".{end}")), {})
        if name in NEVER or any(given.get(word, ...) is not value for word, value in needed.items()):
            yield node.lineno, name
        yield from (
            (node.lineno, f"{name}({word}=)")
            for word, value in NEVER_WITH.items()
            if given.get(word) is value
        )


def test_nothing_that_is_read_is_run() -> None:
    found = []
    for path in SOURCES:
        here = str(path.relative_to(ROOT))
        calls = unsafe(path.read_text())
        found += [f"{here}:{line}: {name}" for line, name in calls if (here, name) not in ALLOWED]
    assert not found, f"calls that would run what a file holds: {'; '.join(found)}"


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "eval(text)",
        "exec(text)",
        "yaml.load(file)",
        "transformers.AutoModel.from_pretrained(path, trust_remote_code=True)",
        "transformers.AutoConfig.from_pretrained(path)",
        "subprocess.run(line, shell=True)",
        "def f():\n    return [cloudpickle.loads(x) for x in y]",
    ],
)
def test_an_unsafe_call_is_seen(source: str) -> None:
    assert list(unsafe(source))


def test_safe_calls_are_allowed() -> None:
    source = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); model.eval(); re.compile('x')"
    assert not list(unsafe(source))


def test_the_page_names_every_reader_of_the_package() -> None:
    """A module that reads files of a kind is named where it is said how."""
    page = (ROOT / "docs" / "security.md").read_text()
    named = ("safe_pickle", "text_files", "checkpoint", "array_files", "gene_sets", "stored", "cluster")
    assert not [name for name in named if name not in page]
