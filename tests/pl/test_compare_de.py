"""pl.compare_de: every gene is a point, and the top lists are coloured."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(60)
    scfast.tl.received(adata, toy_source(), groupby="type", backend=BACKEND)
    scfast.tl.compare_de(adata, top=(4, 8))
    return adata


def test_points_and_colours(adata):
    axes = scfast.pl.compare_de(adata, k=8)
    results = adata.uns["compare_de"]
    overlaps = results["overlap"]
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    for ax, (group, part) in zip(axes, results["table"].groupby("group", observed=True), strict=True):
        points = np.concatenate([found.get_offsets() for found in ax.collections])
        expected = part[["de_score", "attention"]].to_numpy()
        np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)])
        neither, differential, attended, both = (len(found.get_offsets()) for found in ax.collections)
        shared = overlaps[(overlaps["group"] == group) & (overlaps["k"] == 8)]["overlap"].item()
        assert (both, attended, differential) == (shared, 8 - shared, 8 - shared)
        assert neither == len(part) - 16 + shared
        assert any(text.get_text().startswith(f"{shared} of 8 shared") for text in ax.texts)
        names = [text for text in ax.texts if text.get_text() in set(part["gene"])]
        assert 0 < len(names) <= 10
        boxes = [text.get_window_extent() for text in names]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_own_axes_symbols_file_and_errors(adata, tmp_path):
    _, own = plt.subplots()
    ax = scfast.pl.compare_de(adata, groups="T", ax=own, gene_symbols="symbol", save=tmp_path / "a.svg")
    assert ax is own
    assert any(text.get_text().startswith("S") for text in ax.texts)
    assert (tmp_path / "a.svg").stat().st_size > 5000
    for error, message, options in (
        (KeyError, r"no comparison named 'x': run scfast\.tl\.compare_de", {"key": "x"}),
        (KeyError, r"groups \['X'\] are not in the results", {"groups": ["X"]}),
        (ValueError, "k=5: lists of 4, 8 genes were compared", {"k": 5}),
        (ValueError, "one ax takes one group, and there are 3", {"ax": own}),
        (KeyError, "gene_symbols='name'", {"gene_symbols": "name"}),
    ):
        with pytest.raises(error, match=message):
            scfast.pl.compare_de(adata, **options)
