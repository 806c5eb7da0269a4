"""Work in threads is handed out in order, and its errors too."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from scfast.ops._threads import default_threads
from scfast.run import Counts, survey
from scfast.run.ahead import in_order, token_threads
from tests.toy import toy_adata, toy_source


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order(threads):
    def work(x):
        time.sleep(0.001 * (x % 3))
        return x, threading.current_thread() is threading.main_thread()

    found = list(in_order(work, range(20), threads))
    assert [x for x, _ in found] == list(range(20))
    assert found[0][1]
    assert all(main == (threads == 1) for _, main in found[1:])
    assert list(in_order(work, [], threads)) == []


def test_the_first_error_in_order_is_raised_and_nothing_is_left_running():
    def work(x):
        if x in (3, 4):
            raise ValueError(f"item {x}")
        return x

    found, before = [], threading.active_count()
    with pytest.raises(ValueError, match="item 3"):
        found.extend(in_order(work, range(100), 2))
    results = in_order(work, range(3), 2)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_threads_are_shared_among_workers():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert list(in_order(lambda _: default_threads(), range(4), 2)) == [4, 2, 2, 2]
        assert default_threads() == torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("gene", [None, 3])
def test_a_survey_in_threads_is_the_same(gene, monkeypatch):
    adata, source = toy_adata(), toy_source()
    counts = Counts(adata.X, adata.var)
    alone = survey(source, counts, gene=gene)
    monkeypatch.setattr("scfast.run.runner.AHEAD_TOKENS", 4 * source.max_tokens)
    monkeypatch.setattr("scfast.run.runner.token_threads", lambda source: 2)
    found = survey(source, counts, gene=gene)
    for name in ("lengths", "gene_tokens", "holds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert (found.fingerprint, found.repeats) == (alone.fingerprint, alone.repeats)
    assert token_threads(source) in (1, 2, 4)
