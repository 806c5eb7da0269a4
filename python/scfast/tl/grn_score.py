"""Whether a network says more of a reference than co-expression, detection and degrees do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.io.networks import to_network
from scfast.tl._batches import given
from scfast.tl._edge_judgement import Judged, judge
from scfast.tl._edge_scores import CONVENTIONS, Convention
from scfast.tl._edge_universe import edge_universe
from scfast.tl._inputs import check_options, commit, get_raw_counts
from scfast.tl._jackknife import interval, jackknife_error
from scfast.tl._networks import POOLED, STRATIFIED, read_networks
from scfast.tl._several import gene_names

if TYPE_CHECKING:
    from anndata import AnnData

#: The two figures that are reported; both are 1 where a score knows nothing.
MEASURES = ("auprc_ratio", "epr")


def grn_score(
    adata: AnnData,
    reference: pd.DataFrame | Mapping[str, Sequence[str]] | str | Path,
    *,
    key: str = "grn",
    gene_symbols: str | None = None,
    convention: Convention = "expected",
    n_null: int = 100,
    n_blocks: int = 10,
    seed: int = 0,
    counts_layer: str | None = None,
    key_added: str = "grn_score",
    copy: bool = False,
) -> AnnData | None:
    """Judge networks by a reference, beside what any network must beat.

    Every ordered pair of a regulator of the reference and another gene of it, both among the network's genes, is
    ranked by its weight: area under the precision-recall curve, and early precision, the share of the reference among
    the k strongest pairs for a reference of k edges, each divided by the density of the reference, which chance
    has. The same for two scores that know nothing of the model: co-expression, |Pearson correlation| of log1p(counts
    per ten thousand) over the network's cells, and the product of the two genes' detection rates. And for references
    of the same degrees (every regulator and every target keeps its number of edges): what is reached by knowing only
    which genes have many edges.

    Cell types differ in expression, and a network over all cells mostly finds that; so networks of groups are judged
    by themselves, and their mean as ``"stratified"``.

    Parameters
    ----------
    adata
        Raw counts, and networks: after :func:`scfast.tl.grn`, or with any matrix in ``varp``, regulators in rows.
    reference
        A table that :func:`scfast.io.read_network` reads (CollecTRI, TRRUST, ChIP-Atlas, two columns), a DataFrame with
        ``source`` and ``target``, or a dict from regulators to their targets.
    key
        Name of the networks.
    gene_symbols
        Column of ``adata.var`` that the names in ``reference`` are looked up in. Default: the index.
    convention
        ``"expected"``: average precision, and at the cut of early precision the expected number under a random order of
        ties. ``"beeline"``: trapezoids, and all edges that tie at the cut, as BEELINE does (Pratapa et al. 2020).
    n_null
        References of the same degrees.
    n_blocks
        Blocks of regulators, for intervals where no blocks of cells were kept.
    seed
        Of those references and blocks.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, a row per network and ``score`` (``"network"``, ``"coexpression"``, ``"detection"``): ``auprc``
            and ``early_precision``; ``auprc_ratio`` and ``epr``, the same over the density, with 95 % intervals
            ``_low`` and ``_high``; ``null_auprc_ratio`` and ``null_epr``, means over references of the same degrees,
            with the middle 95 % of them; ``p_auprc`` and ``p_epr``, the share of these that reach as much.
        ``"differences"``
            DataFrame, a row per network and baseline: the network's ratio less the baseline's, with 95 % intervals of
            the difference, in which what both share cancels; ``adds``: whether both are above 0.
        ``"curves"``
            DataFrame: ``recall`` and ``precision`` of every row of the table.
        ``"verdict"``
            Sentences, a network each.
        ``"params"``
            The arguments, the universe (``regulators``, ``targets``, ``edges``, ``pairs``, ``density``), and
            ``intervals``: jackknife over ``"cells"`` in blocks (those of :func:`scfast.tl.grn` with
            ``keep_blocks=True``), or over ``"regulators"``.

    Raises
    ------
    KeyError, ValueError, TypeError
        For input that does not fit: no networks, a reference without an edge among their genes, values that are no
        counts. ``adata`` is unchanged after any error.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfast
    >>> from anndata import AnnData
    >>> draws = np.random.default_rng(0)
    >>> adata = AnnData(draws.poisson(1.0, (50, 8)).astype("float32"), var=pd.DataFrame(index=list("ABCDEFGH")))
    >>> truth = {"A": ["C", "D"], "B": ["E"]}
    >>> adata.varp["mine"] = np.zeros((8, 8))
    >>> adata.varp["mine"][[0, 0, 1], [2, 3, 4]] = 1
    >>> scfast.tl.grn_score(adata, truth, key="mine", n_null=20)
    >>> print(adata.uns["grn_score"]["table"].loc[0, "auprc"])
    1.0
    """
    check_options(key_added)
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} is unknown; use one of {', '.join(CONVENTIONS)}")
    for name, number, least in (("n_null", n_null, 1), ("n_blocks", n_blocks, 2)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name}={number!r} must be a whole number, {least} or more")
    networks = read_networks(adata, key)
    names = gene_names(adata, gene_symbols)
    where = "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}]"
    universe = edge_universe(to_network(reference), names, networks.genes, where)
    counts = get_raw_counts(adata, counts_layer)
    judged = judge(networks, universe, counts, convention, n_null, n_blocks, np.random.default_rng(seed))

    differences = _differences(judged)
    uns: dict[str, Any] = {
        "table": _table(judged),
        "differences": differences,
        "curves": _curves(judged),
        "verdict": np.array(_verdicts(differences, networks.about.get("params", {})), dtype=str),
        "params": {
            "key": key, "convention": convention, "n_null": n_null, "seed": seed,
            "regulators": len(universe.sources), "targets": len(universe.targets),
            "edges": int(universe.edges.sum()), "pairs": int(universe.inside.sum()), "density": universe.density,
            "genes_not_found": universe.not_found, "intervals": judged[0].left_out_are,
            "blocks": len(judged[0].left_out),
            **given(gene_symbols=gene_symbols, counts_layer=counts_layer),
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row per network and score."""
    rows = []
    for each in judged:
        row: dict[str, Any] = {"network": each.network, "score": each.score, "cells": each.cells}
        row |= each.value._asdict()
        for place, measure in enumerate(MEASURES):
            value, null = getattr(each.value, measure), each.null[:, place]
            error = jackknife_error(each.left_out[:, place])
            row[f"{measure}_low"], row[f"{measure}_high"] = interval(value, error, len(each.left_out))
            row[f"null_{measure}"] = null.mean()
            row[f"null_{measure}_low"], row[f"null_{measure}_high"] = np.quantile(null, [0.025, 0.975])
            p = (1 + np.sum(null >= value)) / (1 + len(null))
            row[f"p_{measure.removesuffix('_ratio')}"] = p
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("network", "score"):
        table[name] = pd.Categorical(table[name], categories=list(dict.fromkeys(table[name])))
    return table


def _differences(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row per network and baseline: by how much the network is better."""
    found = {(each.network, each.score): each for each in judged}
    rows = []
    for (network, score), each in found.items():
        if score == "network":
            continue
        own = found[network, "network"]
        row: dict[str, Any] = {"network": network, "baseline": score}
        for place, measure in enumerate(MEASURES):
            more = getattr(own.value, measure) - getattr(each.value, measure)
            error = jackknife_error(own.left_out[:, place] - each.left_out[:, place])
            low, high = interval(more, error, len(own.left_out))
            row |= {measure: more, f"{measure}_low": low, f"{measure}_high": high}
        row["adds"] = bool(all(row[f"{measure}_low"] > 0 for measure in MEASURES))
        rows.append(row)
    return pd.DataFrame(rows)


def _curves(judged: Sequence[Judged]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "network": each.network,
                "score": each.score,
                "recall": each.curve[0],
                "precision": each.curve[1],
            }
        )
        for each in judged
    ]
    return pd.concat(parts, ignore_index=True)


def _verdicts(differences: pd.DataFrame, params: Mapping[str, Any]) -> list[str]:
    """What each network is worth, in words."""
    model = params.get("model_verdict")
    sentences = [str(model)] if model else []
    labels = {POOLED: "The network of all cells", STRATIFIED: "The mean of the groups' networks"}
    for network, part in differences.groupby("network", sort=False):
        subject = labels.get(str(network), f"The network of {network}")
        failed = part.loc[~part["adds"], "baseline"].tolist()
        if failed:
            sentences.append(
                f"{subject} adds nothing that is sure beyond {' and '.join(failed)} (95 % intervals)."
            )
        else:
            sentences.append(f"{subject} is better than {' and '.join(part['baseline'])} (95 % intervals).")
    return sentences
