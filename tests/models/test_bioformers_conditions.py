"""External tokens: several conditions of a cell, and marks on the genes they act on, beside sums by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.testing import assert_close

import scfast
from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource, create
from scfast.models.bioformers_conditions import external_of

GENES = ["KLF1", "GATA1", "HBG1"]


@pytest.fixture
def source() -> BioformersSource:
    return create(GENES, preset="tiny", conditions=["KLF1", "MAP2K6"], mark_targets=True)


def tokens_of(source: BioformersSource, **external: object) -> Tokens:
    counts = sparse.csr_matrix([[1, 3, 2], [0, 0, 5], [2, 0, 0]])
    return source.tokenize(counts, pd.DataFrame(index=GENES), **external)


def test_external_tokens_by_hand(source: BioformersSource) -> None:
    both = {"conditions": [["MAP2K6", "KLF1"], None, "KLF1"], "targets": [["MAP2K6", "KLF1"], "HBG1", None]}
    tokens = tokens_of(source, **both)
    assert tokens.ids.tolist() == [0, 2, 3, 1, 0, 3, 1, 2, 0, 1, 2, 3]
    double, none, single = [2, 1], [0, -1], [1, -1]
    expected = [[*double, 3 if gene == 1 else -1] for gene in (0, 2, 3, 1)]
    expected += [[*none, 3 if gene == 3 else -1] for gene in (0, 3, 1, 2)]
    expected += [[*single, -1] for _ in range(4)]
    assert tokens.external.tolist() == expected
    assert tokens.select([2, 0]).external.tolist() == expected[8:] + expected[:4]


def test_one_condition_a_cell_needs_one_column(source: BioformersSource) -> None:
    tokens = tokens_of(source, conditions=[["KLF1"], None, "MAP2K6"], targets=["MAP2K6", None, []])
    assert tokens.external.tolist() == [1] * 4 + [0] * 4 + [2] * 4
    assert tokens_of(source).external.tolist() == [0] * 12


def test_the_embedding_is_a_sum_that_batches_do_not_change(source: BioformersSource) -> None:
    conditions, targets = [["KLF1", "MAP2K6"], None, "KLF1"], [["KLF1"], None, "KLF1"]
    tokens = tokens_of(source, conditions=conditions, targets=targets)
    table = source.network.tensors["embeddings.external.weight"]
    rows = [[1, 2], [0], [1]]
    external = torch.stack(
        [
            sum(table[row] for row in rows[cell] + [3] * int(gene == 1 and cell != 1))
            for cell, gene in zip(np.repeat([0, 1, 2], 4), tokens.ids.tolist(), strict=True)
        ]
    )
    assert_close(source.network._embed_external(tokens.external), external)
    alone = tokens_of(source, conditions=conditions, targets=targets).select([2])
    alone = Tokens(**{**vars(alone), "external": external_of(alone, [[1]], [[1]], mark=3)})
    assert_close(source.network.embed(alone), source.network.embed(tokens)[8:])
    swapped = tokens_of(source, conditions=[["MAP2K6", "KLF1"], None, "KLF1"], targets=targets)
    assert_close(source.network.embed(swapped), source.network.embed(tokens))


def test_the_folder_keeps_the_mark(source: BioformersSource, tmp_path: Path) -> None:
    source.save(tmp_path)
    back = scfast.models.load("bioformers", tmp_path)
    assert isinstance(back, BioformersSource)
    assert (back.inputs.conditions, back.inputs.mark_targets) == (("KLF1", "MAP2K6"), True)
    assert back.network.shape == source.network.shape


def test_bad_input_is_named(source: BioformersSource) -> None:
    with pytest.raises(ValueError, match=r"condition 'STAT1' is unknown to .*, which knows 'KLF1', 'MAP2K6'"):
        tokens_of(source, conditions=[["KLF1", "STAT1"], None, None])
    with pytest.raises(ValueError, match="targets names 1 cells; there are 3"):
        tokens_of(source, targets=["KLF1"])
    plain = create(GENES, preset="tiny", conditions=["KLF1"])
    with pytest.raises(ValueError, match="has no mark for the genes that conditions act on"):
        tokens_of(plain, targets=["KLF1"] * 3)
    tokens = tokens_of(source)
    with pytest.raises(ValueError, match=r"Tokens.external must be torch.int64 of shape \(12,\)"):
        Tokens(**{**vars(tokens), "external": torch.zeros(3, 2, dtype=torch.int64)})
