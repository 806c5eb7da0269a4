"""Changes that no release holds yet: a file each, that towncrier finds and that reads as a list."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
KINDS = "|".join(kind["directory"] for kind in SETTINGS["type"])


def test_every_change_is_a_list_under_a_name_that_says_its_kind() -> None:
    for path in (ROOT / SETTINGS["directory"]).iterdir():
        if path.name in SETTINGS["ignore"]:
            continue
        assert re.fullmatch(rf"\+[a-z0-9_]+\.({KINDS})\.md", path.name), (
            f"{path.name}: +WORDS.KIND.md, KIND {KINDS}"
        )
        lines = path.read_text().splitlines()
        assert lines[0].startswith("- "), f"{path.name} is not a list"
        assert all(line.startswith(("- ", "  ")) for line in lines), f"{path.name}: list items alone"


def test_releases_have_a_place() -> None:
    assert (ROOT / SETTINGS["filename"]).read_text().count(SETTINGS["start_string"]) == 1
    assert (ROOT / SETTINGS["template"]).is_file()
