import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfast.train.masking import TokenisedCells, mask_batch, random_batches

RULE = {"rate": 0.15, "vocabulary_size": 50, "mask": 1, "n_special": 2}


def cells_of(lengths: list[int], seed: int = 0) -> TokenisedCells:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenisedCells(rng.integers(2, 50, size=offsets[-1]), offsets)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 300), st.integers(0, 5))
def test_an_epoch_has_every_cell_once_within_the_budget(lengths, batch_tokens, seed):
    lengths = np.array(lengths)
    batches = random_batches(lengths, batch_tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(lengths.size))
    for batch in batches:
        assert batch.size == 1 or lengths[batch].sum() <= batch_tokens


def test_the_mask_follows_its_rule():
    cells = cells_of([400] * 250)
    batch = mask_batch(cells, np.arange(250), np.random.default_rng(0), **RULE)
    seen, true = batch.ids.numpy(), cells.ids
    chosen = batch.chosen.numpy()
    np.testing.assert_array_equal(batch.targets, true[chosen])
    untouched = np.setdiff1d(np.arange(true.size), chosen)
    np.testing.assert_array_equal(seen[untouched], true[untouched])
    assert abs(chosen.size / true.size - 0.15) < 0.005
    assert abs((seen[chosen] == 1).mean() - 0.8) < 0.02
    assert abs((seen[chosen] == true[chosen]).mean() - 0.1 - 0.1 / 48) < 0.02
    assert (seen >= 1).all()


def test_special_tokens_are_never_chosen():
    cells = TokenisedCells(np.array([0, 1, 7, 8, 9, 7]), np.array([0, 4, 4, 6]))
    for seed in range(30):
        batch = mask_batch(
            cells, np.array([0, 2]), np.random.default_rng(seed), **(RULE | {"rate": 0.6}), hide_all=True
        )
        assert batch.packing.lengths_q == (4, 2)
        assert set(batch.chosen.tolist()) <= {2, 3, 4, 5}
        assert (batch.ids[batch.chosen] == 1).all()


def test_a_batch_always_has_something_to_guess():
    batch = mask_batch(cells_of([1]), np.array([0]), np.random.default_rng(0), **(RULE | {"rate": 1e-9}))
    assert batch.targets.numel() == 1


def test_ranking_anew_keeps_the_genes_and_follows_large_counts():
    counts = np.array([1000.0, 1.0, 1.0, 1.0, 5.0, 1.0])
    cells = TokenisedCells(np.array([4, 2, 3, 5, 9, 8]), np.array([0, 4, 6]), counts, np.ones(6))
    rng = np.random.default_rng(0)
    orders = [cells.reranked(np.array([1, 0]), rng) for _ in range(200)]
    for again in orders:
        assert sorted(again.cell(0)) == [8, 9]
        assert sorted(again.cell(1)) == [2, 3, 4, 5]
        assert again.cell(1)[0] == 4
    seconds = np.array([again.cell(1)[1] for again in orders])
    assert all(40 < (seconds == gene).sum() < 95 for gene in (2, 3, 5))  # equal counts: each order as likely


def test_a_share_of_the_cells_is_ranked_anew():
    lengths = np.full(400, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.tile(np.arange(2, 32), 400)
    cells = TokenisedCells(ids, offsets, np.ones(ids.size), np.ones(ids.size))
    again = cells.reranked(np.arange(400), np.random.default_rng(0), share=0.25)
    changed = np.mean([not np.array_equal(again.cell(i), cells.cell(i)) for i in range(400)])
    assert 0.2 < changed < 0.3


def test_selection_carries_counts_along():
    cells = TokenisedCells(np.array([4, 2, 3]), np.array([0, 1, 3]), np.array([1.0, 2.0, 3.0]), np.ones(3))
    chosen = cells.select(np.array([1, 0]))
    assert chosen.ids.tolist() == [2, 3, 4]
    assert chosen.counts.tolist() == [2.0, 3.0, 1.0]
    with pytest.raises(ValueError, match="needs the counts"):
        cells_of([2]).reranked(np.array([0]), np.random.default_rng(0))


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 1, 4], []])
def test_offsets_that_do_not_add_up_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        TokenisedCells(np.arange(4), np.array(offsets, dtype=np.int64))
