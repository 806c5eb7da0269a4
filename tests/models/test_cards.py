"""What is said of every kind of model."""

from __future__ import annotations

import pytest

from scfast.models import names
from scfast.models.cards import Card, Shape, cards
from tests.models import fixtures


def test_every_kind_of_model_has_a_card() -> None:
    known = cards()
    assert list(known) == names()
    for card in known.values():
        assert isinstance(card, Card)
        assert card.title
        assert card.files
        assert all(len(pair) == 2 for pair in card.files)
        assert len({shape.name for shape in card.shapes}) == len(card.shapes)


@pytest.mark.parametrize(
    ("name", "maps", "kept"), [("V1-10M", 0.40, 0.025), ("V2-104M", 9.7, 0.30), ("V2-316M", 21.7, 0.68)]
)
def test_memory_is_that_of_the_shapes(name: str, maps: float, kept: float) -> None:
    # The figures that stand above are rounded to two or three digits.
    shape = next(shape for shape in cards()["geneformer"].shapes if shape.name == name)
    assert shape.bytes_with_maps == pytest.approx(maps * 1e9, rel=0.02)
    assert shape.bytes_with_scfast == pytest.approx(kept * 1e9, rel=0.02)


def test_what_scfast_keeps_is_what_the_planner_counts(tmp_path) -> None:
    from scfast.models import load

    source = load("geneformer", fixtures.write_v1(tmp_path))
    shape = Shape("toy", source.n_layers, source.n_heads, source.head_dim, source.max_tokens)
    per_token = source.n_layers * source.bytes_per_token()["qk_per_layer"]
    assert shape.bytes_with_scfast == per_token * source.max_tokens
