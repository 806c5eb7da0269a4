"""One self-contained HTML page from results: figures, tables, what they must beat, and how they came about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfast.report.collect import analyses, digests, section_of
from scfast.report.content import Report, format_value
from scfast.report.page import write_page
from scfast.report.provenance import read, record, versions, when
from scfast.report.trainings import FILE, logs_in, section_of_log

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Report", "make", "read_results", "record", "write"]


def write(
    results: AnnData | str | Path, path: str | Path | None = None, *, title: str | None = None
) -> tuple[Path, list[str]]:
    """Write a report of all analyses in some results.

    Parameters
    ----------
    results
        AnnData after any of the tools; or the file it was written to; or the folder that ``scfast run``, ``grn``,
        ``enrich``, ``prevalence``, ``demo``, or a training wrote.
    path
        The page. Default: ``report.html`` in the folder of the results.
    title
        Its heading. Default: the number of cells and the name of the results.

    Returns
    -------
    path
        The page: one file of HTML, which needs no network.
    failures
        Figures that could not be drawn; everything else is in the page.

    Raises
    ------
    FileNotFoundError
        When there are no such results.
    ValueError
        When they hold none of the library's analyses, or ``path`` is not given for an AnnData in memory.

    Examples
    --------
    >>> import tempfile, pathlib, scfast, scfast.report
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> path, failures = scfast.report.write(adata, pathlib.Path(tempfile.mkdtemp()) / "report.html")
    >>> path.name, failures
    ('report.html', [])
    """
    about: dict[str, Any] = {}
    if isinstance(results, (str, Path)) and is_training(Path(results)):
        folder = Path(results)
        report, failures = _of_training(folder, title or f"{folder.resolve().name}: training")
        return write_page(report, folder / "report.html" if path is None else Path(path)), failures
    logs: list[dict[str, Any]] = []
    if isinstance(results, (str, Path)):
        file = results_file(Path(results))
        logs = list(logs_in(file.parent)) if Path(results).is_dir() else []
        path = file.parent / "report.html" if path is None else path
        about = read(file.parent)
        name, adata = file.parent.resolve().name if file.stem == "cells" else file.stem, read_results(file)
    elif path is None:
        raise ValueError("path is not given: say where the page shall be written, such as 'report.html'")
    else:
        name, adata = "", results
    report, failures = make(adata, title=title or f"{name or 'Cells'}: {adata.n_obs:,} cells", about=about)
    for section, failed in map(section_of_log, logs):
        report = replace(report, sections=[*report.sections, section], warnings=[*report.warnings, *failed])
        failures += failed
    return write_page(report, Path(path)), failures


def is_training(folder: Path) -> bool:
    """Whether a folder holds a training, and no results of cells."""
    return (folder / FILE).is_file() and not any(folder.glob("*.h5ad"))


def _of_training(folder: Path, title: str) -> tuple[Report, list[str]]:
    sections, failures = [], []
    facts = {"folder": str(folder)}
    for log in logs_in(folder):
        section, failed = section_of_log(log)
        sections.append(section)
        failures += failed
        facts["time"] = f"{format_value(float(log.get('seconds', 0.0)))} s"
    return Report(title, facts, dict(versions()), failures, sections), failures


def make(adata: AnnData, *, title: str, about: dict[str, Any] | None = None) -> tuple[Report, list[str]]:
    """What the page will hold, and figures that could not be drawn.

    Parameters
    ----------
    adata
        With results.
    title
        The heading.
    about
        As :func:`record` wrote it.

    Returns
    -------
    report : Report
        What :func:`write` puts on the page.
    failures : list of str
        Figures that could not be drawn; everything else is in the report.

    Raises
    ------
    ValueError
        When ``adata`` holds none of the library's analyses.

    Examples
    --------
    >>> import scfast, scfast.report
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> report, failures = scfast.report.make(adata, title="Blood")
    >>> len(report.sections), sorted(report.groups), failures
    (1, ['B cell', 'Monocyte', 'T cell'], [])
    """
    keys = analyses(adata)
    if not keys:
        there = ", ".join(map(str, adata.uns)) or "nothing"
        raise ValueError(
            f"there are no results of scfast to report: uns holds {there}; run a tool such as tl.rollout first"
        )
    about = about or {}
    sections, failures = [], []
    for key in keys:
        section, failed = section_of(adata, key)
        sections.append(section)
        failures += failed
    facts = {"command": str(about["command"])} if "command" in about else {}
    if "finished" in about:
        facts["finished"] = when(str(about["finished"]))
    if "seconds" in about:
        facts["time"] = f"{format_value(float(about['seconds']))} s"
    facts |= {"cells": f"{adata.n_obs:,}", "genes": f"{adata.n_vars:,}"}
    facts |= {name: str(value) for name, value in about.get("facts", {}).items()}
    warnings = [*map(str, about.get("warnings", [])), *failures]
    made_with = {name: str(text) for name, text in about.get("versions", versions()).items()}
    return Report(title, facts, made_with, warnings, sections, digests(adata, keys)), failures


def results_file(path: Path) -> Path:
    """The file of results in a folder, or the file itself.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When a folder has several.
    """
    if path.is_dir() and path.suffix != ".zarr":
        files = sorted(path.glob("*.h5ad"))
        if not files:
            raise FileNotFoundError(
                f"{path} holds no .h5ad: give the folder that `scfast run -o` wrote; an unfinished run has none yet"
                f" (`scfast status {path}`)"
            )
        if len(files) > 1:
            raise ValueError(f"{path} holds {', '.join(file.name for file in files)}: name one of them")
        return files[0]
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    return path


def read_results(path: Path) -> AnnData:
    """Cells, genes, networks and results, without counts, layers and embeddings, which may be larger than memory.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder.

    Returns
    -------
    AnnData
        ``obs``, ``var``, ``uns`` and ``varp`` alone.

    Raises
    ------
    ValueError
        When it cannot be read, or is no AnnData.

    Examples
    --------
    >>> import tempfile, pathlib, scfast, scfast.report
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> path = scfast.io.write_h5ad(adata, pathlib.Path(tempfile.mkdtemp()) / "cells.h5ad")
    >>> cells = scfast.report.read_results(path)
    >>> list(cells.uns), list(cells.layers)
    (['rollout'], [])
    """
    import anndata as ad
    from anndata.io import read_elem

    def parts(group: Any) -> AnnData:
        missing = [name for name in ("obs", "var", "uns") if name not in group]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: it is no AnnData")
        names = ("obs", "var", "uns", *(["varp"] if "varp" in group else []))
        return ad.AnnData(**{name: read_elem(group[name]) for name in names})

    if path.suffix == ".zarr":
        import zarr

        return parts(zarr.open_group(path, mode="r"))
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return parts(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as .h5ad ({error})") from None
