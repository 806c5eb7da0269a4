"""``scfast report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from scfast.cli.console import Console, json_option

#: Of a command that writes results, and of one that is told the same.
page_option = click.option(
    "--report/--no-report",
    "page",
    default=True,
    envvar="SCFAST_REPORT",
    help="Also write report.html.  [default: yes]",
)


@click.command("report")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path),
    help="The page.  [default: report.html beside the results]",
)  # fmt: skip
@click.option("--title", help="Its heading.")
@json_option
def command(results: Path, out: Path | None, title: str | None, as_json: bool | None) -> None:
    """One HTML page from RESULTS: the folder of a run, a training or the demo, or an .h5ad with results of any tools.

    For each analysis: the figure, its numbers with their errors and with what they must beat, in tables that can be
    sorted, searched and downloaded; a section for each group; the command, versions, warnings. The page is one file
    that needs no network; send it to anybody.

    \b
    Examples:
      scfast report results
      scfast report my_model                       a trained or fine-tuned model: losses, scores, baselines
      scfast report cells_with_results.h5ad -o figures/report.html --title "PBMC, 8 donors"
    """  # noqa: D301
    from scfast import report

    console = Console(as_json)
    path, failures = report.write(results, out, title=title)
    for failure in failures:
        console.event("figure failed", f"  not drawn: {failure}", message=failure)
    size = path.stat().st_size
    console.event("done", f"{path}  ({size / 1e6:.1f} MB)", file=path, bytes=size, files=[path])


def attach(
    folder: Path,
    console: Console,
    seconds: float,
    *,
    facts: Mapping[str, str],
    warnings: Sequence[str] = (),
    page: bool = True,
) -> list[Path]:
    """Write ``about.json`` and the report beside results; a report that fails costs nothing but itself.

    Returns
    -------
    list of Path
        What was written.
    """
    from scfast import report

    arguments = click.get_current_context().find_root().obj or []
    files = [report.record(folder, arguments, seconds, facts=facts, warnings=warnings)]
    if page:
        try:
            files.append(report.write(folder)[0])
        except Exception as error:  # the results are written already
            message = f"the report failed ({error}); the results are complete: try `scfast report {folder}`"
            console.event("report failed", f"  {message}", message=message)
    return files
