"""pl.enrich and pl.prevalence: what is drawn is what the tables say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(40)
    for key, seed in (("rollout", 0), ("other", 7)):
        scfast.tl.rollout(adata, toy_source(seed=seed), groupby="type", key_added=key, backend=BACKEND)
    rng = np.random.default_rng(0)
    names = adata.var_names.to_numpy()
    sets = {f"HALLMARK_SET_{i}": rng.choice(names, 6, replace=False) for i in range(12)}
    scfast.tl.enrich(adata, sets, top=8)
    clusters = {f"G{i}": f"cluster {i % 4}" for i in range(36)}
    scfast.tl.prevalence(adata, clusters, keys=["rollout", "other"], n_bootstrap=50, n_permutations=50)
    return adata


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_enrich_bars_are_the_table(adata, tmp_path):
    axes = scfast.pl.enrich(adata, n_sets=5, threshold=0.5, save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    for ax, (_, part) in zip(axes, adata.uns["enrich"]["table"].groupby("group", observed=True), strict=True):
        part = part.head(5)
        assert names(ax) == [name.removeprefix("HALLMARK_").replace("_", " ") for name in part["gene_set"]]
        bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in ax.patches}
        np.testing.assert_allclose([bars[i].get_width() for i in range(5)], -part["log10_p"])
        dark = {bars[i].get_facecolor() for i in range(5) if part["q_value"].iloc[i] < 0.5}
        assert len(dark) <= 1
        written = [text.get_text() for text in ax.texts if "/" in text.get_text()]
        assert written == [f"{a}/{b}" for a, b in zip(part["overlap"], part["set_size"], strict=True)]
    assert len({ax.get_xlim() for ax in axes}) == 1


def test_prevalence_bars_are_the_table(adata):
    axes = scfast.pl.prevalence(adata)
    table = adata.uns["prevalence"]["table"]
    legend = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert set(legend) == {"rollout", "other", "permuted clusters", "interval"}
    for ax, (_, part) in zip(axes, table.groupby("group", observed=True), strict=True):
        shown = names(ax)
        drawn = np.array([bar.get_width() for bar in ax.patches]).reshape(
            2, 2, len(shown)
        )  # model, null or bar
        for number, model in enumerate(("rollout", "other")):
            rows = part[part["model"] == model].set_index("cluster").loc[shown]
            np.testing.assert_allclose(drawn[number, 0], 100 * (rows["null_high"] - rows["null_low"]))
            np.testing.assert_allclose(drawn[number, 1], 100 * rows["difference"])
    assert len({ax.get_xlim() for ax in axes}) == 1


def test_choices_and_own_axes(adata):
    _, own = plt.subplots()
    ax = scfast.pl.prevalence(adata, groups="T", models="other", clusters=["cluster 2", "cluster 0"], ax=own)
    assert ax is own
    assert names(ax) == ["cluster 2", "cluster 0"]
    assert len(scfast.pl.prevalence(adata, groups="T", n_clusters=2).get_yticklabels()) == 2
    _, own = plt.subplots()
    assert scfast.pl.enrich(adata, groups=["Mono"], ax=own) is own


@pytest.mark.parametrize("name", ["enrich", "prevalence"])
def test_errors(adata, name):
    draw = getattr(scfast.pl, name)
    with pytest.raises(KeyError, match=rf"scfast\.tl\.{name}.*key_added='rollout'"):
        draw(adata, key="rollout")
    with pytest.raises(KeyError, match=r"groups \['X'\] are not in the results"):
        draw(adata, groups=["X"])
    with pytest.raises(ValueError, match="one ax takes one group"):
        draw(adata, ax=plt.subplots()[1])
