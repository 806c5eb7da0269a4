"""README.md is followed word for word, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scfast
from tests import readme

ROOT = readme.README.parent
TEXT = readme.README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, of some of its cells and a model that was hardly trained."""
    folder = tmp_path_factory.mktemp("demo") / "scfast-demo"
    cells = scfast.datasets.pbmc68k()
    cells = cells[cells.obs["cell_type"].isin(["CD19+ B", "CD56+ NK"])].copy()
    scfast.tl.pretrain(cells, folder / "model", steps=2, progress=False)
    scfast.io.write_h5ad(cells, folder / "pbmc68k.h5ad")
    return folder


def test_followed_word_for_word(demo: Path, tmp_path: Path) -> None:
    printed = readme.follow(demo, tmp_path)
    assert sum(step.startswith("import ") for step in printed) == 1
    assert len(next(step for step in printed if step.startswith("import ")).strip().splitlines()) == 8
    assert all("CD19+ B" in text for step, text in printed.items() if step.startswith("import "))


def test_commands_of_a_clone_are_followed_by_ci() -> None:
    given = (ROOT / ".ci" / "run").read_text()
    assert [step for _, step in readme.steps(TEXT) if step in readme.OF_A_CLONE] == list(readme.OF_A_CLONE)
    assert "make demo" in given
    assert "make test" in given
    assert "tests/readme.py" in given


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 10
    missing = [link for link in links if "://" not in link and not (ROOT / link).is_file()]
    assert not missing, f"README.md links to {missing}"


@pytest.mark.parametrize("room", ["ops", "tl"])
def test_every_op_and_tool_has_a_place(room: str) -> None:
    module = getattr(scfast, room)
    names = {name for name in module.__all__ if name.islower()}
    missing = sorted(name for name in names if f"`{name}`" not in TEXT)
    assert not missing, f"README.md's tables lack scfast.{room}: {missing}"


def test_short_enough_to_be_read() -> None:
    assert len(TEXT.splitlines()) <= 180
