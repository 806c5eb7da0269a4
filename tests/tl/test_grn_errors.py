"""Errors of edges: between blocks of cells, between replicates that groups share, and where there are none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scfast
from scfast.tl._edge_statistics import EdgeStatistics, Replicates
from scfast.tl._grn_results import Changes
from tests.tl.test_grn import expected, maps_of_cells
from tests.toy import BACKEND, toy_adata, toy_source

EVEN = np.full((3, 2), 1 / 6)


def run(adata, **options):
    scfast.tl.grn(adata, toy_source(), min_cells=1, backend=BACKEND, progress=False, **options)


def statistics(sums, cells):
    """Of blocks [U] of one edge."""
    found = EdgeStatistics.empty((1, 1))
    for score, n in zip(sums, cells, strict=True):
        found.add(np.full((1, 1), float(score)), np.full((1, 1), n))
    found.close()
    return found


def test_an_edge_that_one_block_holds_has_no_error():
    alone, held = (
        statistics([3.7, 0, 0, 0], [12, 0, 0, 0]),
        statistics([3.0, 2.8, 3.3, 2.9], [12, 11, 12, 12]),
    )
    assert alone.mean(1)[0, 0] == pytest.approx(3.7 / 12)
    assert np.isnan(alone.error(1)).all()
    changes = Changes(5)
    _, error = changes.add(0, held, alone, 1, np.array([0]))
    assert np.isnan(error).all()
    changes = Changes(5)
    changes.add(0, held, alone, 1, np.empty(0, dtype=int))
    row = changes.table(np.array([0]), np.array([0]), np.array(["A"])).iloc[0]
    assert row["change"] == pytest.approx(3.7 / 12 - 12 / 47)
    assert np.isnan(row["p_value"])
    assert row["q_value"] == 1


def test_freedom_is_counted_by_the_blocks_that_hold_an_edge():
    """Two of eight replicates hold it on either side: t of two degrees, not of fourteen."""
    from scipy.stats import t

    before = statistics([1.0, 1.2, *[0] * 6], [10, 10, *[0] * 6])
    after = statistics([2.0, 2.3, *[0] * 6], [10, 10, *[0] * 6])
    changes = Changes(5)
    change, error = changes.add(0, before, after, 1, np.empty(0, dtype=int))
    row = changes.table(np.array([0]), np.array([0]), np.array(["A"])).iloc[0]
    assert row["p_value"] == pytest.approx(2 * t.sf(float(change[0, 0] / error[0, 0]), 2))
    assert row["high"] - row["change"] == pytest.approx(t.ppf(0.975, 2) * float(error[0, 0]))


def test_groups_that_share_replicates():
    """The pooled mean varies with a donor's cells of all groups, a change with what is left of a donor in it."""
    adata = toy_adata(60)
    run(adata, groupby="type", compare=("T", "Mono"), replicate_key="donor")
    cells = maps_of_cells(adata, toy_source(), EVEN)
    donor, kind = adata.obs["donor"].to_numpy(), adata.obs["type"]

    def parts(*groups):
        """Influence of each donor on the mean [3, n, n], and the mean."""
        inside = kind.isin(groups).to_numpy()
        sums = [
            expected(cells, np.flatnonzero(inside & (donor == d)), adata.n_vars) for d in ("d1", "d2", "d3")
        ]
        score, held = (sum(x) for x in zip(*sums, strict=True))
        mean = score / np.maximum(held, 1)
        found = np.array([(s - n * mean) / np.maximum(held, 1) for s, n in sums])
        several = np.sum([n > 0 for _, n in sums], axis=0) > 1
        return found, several & ~np.eye(adata.n_vars, dtype=bool)

    def compare(key, influence, several):
        wanted = np.sqrt(3 / 2 * (influence**2).sum(0))
        found = adata.varp[f"{key}_se"].toarray()
        # Maps are float32: measured at most 1e-8 apart, where errors are up to 0.02.
        np.testing.assert_allclose(found[several], wanted[several], rtol=1e-5, atol=1e-8)
        assert several.sum() > 500

    compare("grn", *parts("B/plasma", "T", "Mono"))
    compare("grn_T", *parts("T"))
    (one, both), (other, also) = parts("T"), parts("Mono")
    compare("grn_change", other - one, both & also)
    assert adata.uns["grn"]["networks"]["blocks"].tolist() == [3, 3, 3, 3]


def test_replicates_of_their_own_have_no_covariance():
    draws = np.random.default_rng(0)
    one, other = (Replicates.empty(4, (2, 3)) for _ in range(2))
    for number in range(4):
        (one if number < 2 else other).add(number, draws.random((2, 3)), np.full((2, 3), 5))
    assert not one.covariance(other).any()


def test_means_of_shared_replicates_are_left_out_together():
    """qk-mean: errors are those of networks made again without one donor after another."""
    adata = toy_adata(60)
    options = {"groupby": "type", "compare": ("T", "Mono"), "replicate_key": "donor", "convention": "qk-mean"}
    run(adata, layers=[0], **options)
    left = []
    for donor in ("d1", "d2", "d3"):
        rest = adata[(adata.obs["donor"] != donor).to_numpy()].copy()
        run(rest, layers=[0], **options)
        left.append({key: rest.varp[key].toarray() for key in ("grn", "grn_change")})
    for key in ("grn", "grn_change"):
        whole = adata.varp[key].toarray()
        there = np.all([part[key] != 0 for part in left], axis=0) & (whole != 0)
        error = np.sqrt(2 / 3 * sum((part[key] - whole) ** 2 for part in left))
        found = adata.varp[f"{key}_se"].toarray()
        # Maps are float32: measured at most 2e-9 and a relative 1.4e-7 apart.
        np.testing.assert_allclose(found[there], error[there], rtol=1e-5, atol=2e-8)
        assert there.sum() > 500


def test_blocks_without_a_network_s_cells_are_not_left_out():
    """A network of two of the donors has two blocks, whoever else is in the data."""
    adata = toy_adata(60)
    adata.obs["type"] = np.where(adata.obs["donor"] == "d3", "rest", "T")
    adata.obs["donor"] = np.where(np.arange(60) % 2, "d3", "d4")
    adata.obs.loc[adata.obs["type"] == "T", "donor"] = np.resize(
        ["d1", "d2"], (adata.obs["type"] == "T").sum()
    )
    reference = {"G0": ["G1", "G2", "G9"], "G4": ["G1", "G11"], "G5": ["G2", "G8"]}
    run(adata, groupby="type", replicate_key="donor", sources=list(reference), keep_blocks=True)
    scfast.tl.grn_score(adata, reference, n_null=2)
    table = adata.uns["grn_score"]["table"].set_index(["network", "score"])
    only = adata[(adata.obs["type"] == "T").to_numpy()].copy()
    only.obs["type"] = pd.Categorical(only.obs["type"])
    run(only, groupby="type", replicate_key="donor", sources=list(reference), keep_blocks=True)
    scfast.tl.grn_score(only, reference, n_null=2)
    alone = only.uns["grn_score"]["table"].set_index(["network", "score"])
    for name in ("auprc_ratio_low", "epr_high"):
        assert table.loc[("T", "network"), name] == pytest.approx(alone.loc[("T", "network"), name], rel=1e-5)


def test_a_run_holds_what_was_granted():
    """The sums of queries and keys of all blocks are counted, and refused where they are too many."""
    adata = toy_adata(60)
    with pytest.raises(
        ValueError, match=r"queries and keys of 34 genes in 30 blocks of cells take .* lower n_blocks="
    ):
        run(adata, groupby="type", convention="qk-mean", memory=1_500_000)
    run(adata, groupby="type", convention="qk-mean", memory="20MB")
