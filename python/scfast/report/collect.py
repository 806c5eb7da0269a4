"""From results in an AnnData to what a report holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.report.chapters import CHAPTERS, Chapter, Listing, Top, chapter_of
from scfast.report.content import Bar, Digest, Figure, Section, Table, format_value, plain_value
from scfast.report.figures import draw

if TYPE_CHECKING:
    from anndata import AnnData

#: Rows of a group's digest, and groups that have a section of their own.
TOP, MAX_SECTIONS = 10, 60
#: Values below are written in powers of ten, with the columns beside them that are of their kind.
SMALL, SAME_UNIT = 0.1, ("null", "null_mean", "before", "after", "low", "high")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: A rank correlation from which a ranking is said to restate another one.
RESTATES = 0.9
#: Groups of fewer cells are named.
FEW_CELLS = 10
#: Genes per cell from which a loss is named.
FEW_GENES = 1.0


def analyses(adata: AnnData) -> list[str]:
    """Names in ``uns`` of what scfast's tools have left there, entries with ``"params"``, in the order of chapters.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> cells = anndata.AnnData(np.ones((2, 2)), uns={"rollout": {"params": {}}, "pca": {"variance": 1}})
    >>> analyses(cells)
    ['rollout']
    """
    found = [
        key
        for key, results in adata.uns.items()
        if isinstance(results, Mapping)
        and "params" in results
        and (chapter_of(key).meaning or any(True for _ in tables_of(results)))
    ]
    order = [chapter.title for chapter in CHAPTERS.values()]
    return sorted(found, key=lambda key: [*order, chapter_of(key).title].index(chapter_of(key).title))


def tables_of(results: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, pd.DataFrame]]:
    """Every table of some results, with its path."""
    for name, value in results.items():
        if isinstance(value, pd.DataFrame):
            yield path + name, value
        elif isinstance(value, Mapping) and name != "params":
            yield from tables_of(value, f"{path}{name}/")


def section_of(adata: AnnData, key: str) -> tuple[Section, list[str]]:
    """The section of one analysis, and what went wrong with its figures."""
    results, chapter = adata.uns[key], chapter_of(key)
    groups, failures = groups_of(results), []
    figures: list[Figure] = []
    for picture in chapter.pictures:
        try:
            figures.append(draw(adata, key, picture, groups, f"{chapter.title}: {picture.caption}"))
        except Exception as error:  # a figure that cannot be drawn takes nothing else with it
            failures.append(f"{key}: pl.{picture.plot} could not be drawn: {error}")
    subject = " → ".join(
        str(results["params"][name]) for name in chapter.subject if name in results["params"]
    )
    section = Section(
        key, f"{chapter.title}: {subject}" if subject else chapter.title, chapter.meaning, chapter.caveat,
        {name: text for name, value in results["params"].items() if (text := _argument(value))},
        figures, tables_in(key, results, chapter), [*verdicts_of(results), *warnings_of(results)],
    )  # fmt: skip
    return section, failures


def tables_in(key: str, results: Mapping[str, Any], chapter: Chapter) -> list[Table]:
    """The tables in the chapter's order, then any others."""
    found = dict(tables_of(results))
    order = [path for path in chapter.tables if path in found]
    order += [path for path in found if path not in order]
    tables = []
    for path in order:
        about = chapter.tables.get(path, Listing(path, ""))
        name = f"{key}-{path.replace('/', '-')}"
        tables.append(Table.of(name, about.title, about.about, _ordered(found[path], about.first), "group"))
    return tables


def _ordered(frame: pd.DataFrame, first: Sequence[str]) -> pd.DataFrame:
    """Its columns, those that a reader looks for first."""
    front = [name for name in first if name in frame]
    return frame[[*front, *(name for name in frame if name not in front)]]


def groups_of(results: Mapping[str, Any]) -> list[str]:
    """Names of the groups, the largest first."""
    groups = results.get("groups")
    if not isinstance(groups, pd.DataFrame) or "group" in groups:
        return []
    if "cells" in groups:
        groups = groups.sort_values("cells", ascending=False, kind="stable")
    return list(dict.fromkeys(map(str, groups.index)))


def digests(adata: AnnData, keys: list[str]) -> dict[str, list[Digest]]:
    """For each group, the first rows of every analysis that knows it; the groups of most analyses first."""
    found: dict[str, list[Digest]] = {}
    for key in keys:
        results, chapter = adata.uns[key], chapter_of(key)
        tables = dict(tables_of(results))
        for path, listing in chapter.tables.items():
            if listing.top is None or path not in tables or "group" not in tables[path]:
                continue
            parts = dict(iter(tables[path].groupby("group", observed=True, sort=False)))
            for name in groups_of(results) or list(map(str, parts)):
                if name in parts:
                    title = chapter.title if key in CHAPTERS else f"{chapter.title} ({key})"
                    digest = _digest(title, parts[name], listing.top, facts_of(results, name))
                    found.setdefault(name, []).append(digest)
    return dict(list(found.items())[:MAX_SECTIONS])


def facts_of(results: Mapping[str, Any], group: str) -> dict[str, str]:
    """What is to be known of a group: cells, and what its ranking restates."""
    groups = results.get("groups")
    if not isinstance(groups, pd.DataFrame) or group not in groups.index:
        return {}
    about = groups.loc[group]
    facts = {}
    for column, value in about.items() if isinstance(about, pd.Series) else ():
        name = str(column)
        lost = name in ("replicates", "lost_vocabulary", "lost_truncation") and value > 0
        if lost or name == "cells" or name.startswith("spearman_"):
            label = name.replace("spearman_", "ρ ").replace("null", "untrained").replace("_", " ")
            correlation = name.startswith("spearman_") and np.isfinite(value)
            facts[label] = _correlation(value) if correlation else format_value(plain_value(value))
    return facts


def _correlation(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _digest(title: str, part: pd.DataFrame, top: Top, facts: dict[str, str]) -> Digest:
    if len(top.names) > 1:  # of pairs, some of every first gene
        firsts = part.groupby(top.names[0], observed=True, sort=False)
        part = firsts.head(max(1, TOP // max(1, firsts.ngroups)))
    rows = part.head(TOP)
    beside = [column for column in top.beside if column in rows]
    values = rows[top.value].to_numpy(dtype=float)
    furthest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    power = math.floor(math.log10(furthest)) if 0 < furthest < SMALL else 0
    units = {column: 10.0**power if column in SAME_UNIT else 1.0 for column in beside}
    errors = rows[top.error].to_numpy(dtype=float) if top.error in rows else np.full(len(rows), np.nan)
    names = rows[[name for name in top.names if name in rows]].astype(str).agg(" ← ".join, axis=1)
    bars = [
        Bar(
            name, value, error, {column: float(rows[column].iloc[place]) / units[column] for column in beside},
            100 * abs(value) / furthest if furthest and np.isfinite(value) else 0.0, 10.0**power,
        )
        for place, (name, value, error) in enumerate(zip(names, values.tolist(), errors.tolist(), strict=True))
    ]  # fmt: skip
    headings = ["untrained" if column == "null" else column.replace("_", " ") for column in beside]
    unit = f"× 10{str(power).translate(SUPERSCRIPTS)}" if power else ""
    scaled = [name for name, column in zip(headings, beside, strict=True) if column in SAME_UNIT]
    return Digest(title, top.value.replace("_", " "), headings, bars, facts, unit, scaled)


def verdicts_of(results: Mapping[str, Any]) -> list[str]:
    """What a tool itself says of its results: whether to trust them."""
    model = results["params"].get("model_verdict")
    return list(
        dict.fromkeys(str(text) for text in [*([model] if model else []), *results.get("verdict", [])])
    )


def warnings_of(results: Mapping[str, Any]) -> list[str]:
    """What the numbers themselves ask to be careful with."""
    groups = results.get("groups")
    if not isinstance(groups, pd.DataFrame):
        return []
    found = []
    for column, what in (
        ("spearman_expression", "mean expression"),
        ("spearman_detection", "detection"),
        ("spearman_null", "the untrained model"),
    ):
        if column in groups and len(groups):
            high = int((groups[column] >= RESTATES).sum())
            if high:
                found.append(
                    f"In {high} of {len(groups)} groups the ranking of all genes correlates with that of {what} at"
                    f" {RESTATES} or more (median of the groups: {groups[column].median():.2f})."
                )
    if "cells" in groups:
        names = groups.get("group", groups.index)
        small = list(dict.fromkeys(names[(groups["cells"] < FEW_CELLS).to_numpy()]))
        if len(small):
            found.append(f"Fewer than {FEW_CELLS} cells: {', '.join(map(str, small[:8]))}.")
    if "replicates" in groups and not (groups["replicates"] > 0).any():
        found.append("Standard errors are between cells, not between donors: no replicates were named.")
    for column, what in (
        ("lost_vocabulary", "are not in the vocabulary"),
        ("lost_truncation", "are cut off by the model's longest input"),
    ):
        if column in groups and (lost := float(groups[column].max())) >= FEW_GENES:
            found.append(f"Up to {lost:,.0f} genes of a cell, in the mean over its group, {what}.")
    return found


def _argument(value: Any) -> str:
    """An argument of a tool as text; nothing for one that was not given."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, item in value.items() if (text := _argument(item)))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_argument, value[:20])) + (" …" if len(value) > 20 else "")
    return "" if value is None else str(value)
