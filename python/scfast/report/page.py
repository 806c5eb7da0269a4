"""The page: one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from pathlib import Path

from scfast.report.content import Report, format_value

HERE = Path(__file__).parent
#: Rows of a table that stand in the page before its script runs.
FIRST_ROWS = 15


def render(report: Report) -> str:
    """The report as HTML; whatever the results hold is text in it, never markup."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    templates.filters["number"] = format_value
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template("page.html").render(
        report=report, style=style, script=script, script_hash=script_hash, first_rows=FIRST_ROWS
    )


def write_page(report: Report, path: Path) -> Path:
    """Write it in one step: ``path`` holds all of it, or what it held before."""
    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path
