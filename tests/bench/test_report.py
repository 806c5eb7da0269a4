"""README.md and the page of benchmarks say what the results in the repository say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pages_are_those_of_the_results(tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "benchmarks.md"
    shutil.copy(ROOT / "README.md", readme)
    options = ["--readme", readme, "--page", page, "--figure", tmp_path / "lengths.svg"]
    command = [sys.executable, str(ROOT / "bench/report.py"), *map(str, options)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert readme.read_text() == (ROOT / "README.md").read_text(), "run bench/report.py"
    assert page.read_text() == (ROOT / "docs/benchmarks.md").read_text(), "run bench/report.py"
