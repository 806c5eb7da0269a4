"""Print the lowest version that pyproject.toml allows of every package that the tests need, as constraints for pip.

torch is left out: set-up commands install the version of constraints.txt.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest() -> dict[str, str]:
    """Package -> lowest version."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    found = {}
    for line in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        package = Requirement(line)
        (bound,) = (each.version for each in package.specifier if each.operator == ">=")
        found[package.name] = bound
    del found["torch"]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest().items())))
