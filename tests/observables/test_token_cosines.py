"""TokenCosines and GeneStateSums against the states themselves, for sources with every kind of token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from scfast.attention.recorder import Recorder
from scfast.models.base import TokenKind
from scfast.observables import GeneStateSums, HiddenStates, TokenCosines
from scfast.observables.token_cosines import PAD, PAIRS, STATISTICS
from tests.toy import toy_adata, toy_source

ADATA, SOURCE = toy_adata(), toy_source(cls=True)
BINS = 40
EDGES = np.linspace(-1, 1, BINS + 1).astype(np.float32)


def mixed_tokens():
    """Cells with repeated genes, chromosome tokens and padding, one of genes only, and one that is empty."""
    tokens = SOURCE.tokenize(ADATA.X, ADATA.var)
    rng = np.random.default_rng(0)
    gene, kind = tokens.gene_index.numpy().copy(), tokens.kind.numpy().copy()
    for start, length in zip(tokens.packing.starts_q, tokens.lengths, strict=True):
        inner = np.arange(start + 1, start + length)
        again = rng.choice(inner, max(1, len(inner) // 4), replace=False)
        gene[again] = gene[inner[0]]  # one gene several times
        other = rng.choice(inner[1:], min(3, len(inner) - 1), replace=False)
        gene[other], kind[other] = -1, TokenKind.CHROMOSOME
        kind[inner[-1]], gene[inner[-1]] = TokenKind.PAD, -1
    kind[tokens.packing.starts_q[4]], gene[tokens.packing.starts_q[4]] = TokenKind.GENE, 0
    return replace(tokens, gene_index=torch.from_numpy(gene), kind=torch.from_numpy(kind))


TOKENS = mixed_tokens()


def record(*observables, tokens=TOKENS, source=SOURCE, check=True):
    recorder = Recorder(list(observables), keep=False, check=check)
    with torch.inference_mode():
        source.forward(tokens, recorder)
    return recorder.batch


def test_kinds_are_those_of_the_models():
    assert PAD == TokenKind.PAD


@pytest.mark.parametrize("whole", [False, True], ids=["mixed", "genes only"])
def test_histograms_equal_scikit_learn(whole):
    source = toy_source() if whole else SOURCE
    tokens = source.tokenize(ADATA.X, ADATA.var) if whole else TOKENS
    found = record(TokenCosines(bins=BINS), HiddenStates(), tokens=tokens, source=source)
    packed, states = found["token_cosines"].numpy(), found["hidden_states"].double().numpy()
    assert packed.shape == (23, 4, 3, BINS + len(STATISTICS))
    kind = tokens.kind.numpy()
    for cell, (start, length) in enumerate(zip(tokens.packing.starts_q, tokens.lengths, strict=True)):
        gene = kind[start : start + length] == TokenKind.GENE
        other = ~gene & (kind[start : start + length] != TokenKind.PAD)
        for layer in range(4):
            alike = cosine_similarity(states[layer, start : start + length])
            upper = np.triu(np.ones_like(alike, dtype=bool), 1)
            chosen = (
                alike[upper & np.outer(gene, gene)],
                alike[np.ix_(gene, other)].ravel(),
                alike[upper & np.outer(other, other)],
            )
            for pair, expected in enumerate(chosen):
                mine = dict(zip(STATISTICS, packed[cell, layer, pair, BINS:], strict=True))
                counts = packed[cell, layer, pair, :BINS]
                assert counts.sum() == len(expected)
                # float32 similarities may fall on the other side of a border
                cumulated = np.searchsorted(np.sort(expected), EDGES[1:-1])
                near = np.array([np.sum(np.abs(expected - edge) < 2e-6) for edge in EDGES[1:-1]])
                assert np.all(np.abs(counts.cumsum()[:-1] - cumulated) <= near)
                if len(expected):
                    np.testing.assert_allclose(mine["min"], expected.min(), atol=2e-6)
                    np.testing.assert_allclose(mine["max"], expected.max(), atol=2e-6)
                else:
                    assert (mine["min"], mine["max"]) == (np.inf, -np.inf)
                np.testing.assert_allclose(mine["sum"], expected.sum(), atol=2e-6 * (len(expected) + 1))
                np.testing.assert_allclose(
                    mine["sum_of_squares"], (expected**2).sum(), atol=4e-6 * (len(expected) + 1)
                )
                assert mine["nan"] == mine["zeros"] == 0
    assert (packed[:, :, PAIRS.index("special-special"), :BINS].sum() == 0) == whole


def test_states_of_zero_are_counted_and_like_no_other():
    source = toy_source(cls=True)
    source.table = torch.zeros_like(source.table)  # the token at position 0, cls, has the state 0
    tokens = source.tokenize(ADATA.X, ADATA.var)
    packed = record(TokenCosines(bins=BINS), tokens=tokens, source=source)["token_cosines"]
    zeros = packed[:, 0, :, BINS + STATISTICS.index("zeros")]
    assert zeros.sum(0).tolist() == [0, 23, 23]
    assert (packed[:, 0, 1, BINS + STATISTICS.index("sum")] == 0).all()


def test_states_that_are_nan_are_refused():
    source = toy_source(cls=True)
    source.weights = source.weights.clone()
    source.weights[1] = torch.nan
    tokens = source.tokenize(ADATA.X, ADATA.var)
    with pytest.raises(ValueError, match=r"nan or infinite at layers \[2, 3\] in 23 of 23 cells"):
        record(TokenCosines(), tokens=tokens, source=source)
    with pytest.raises(ValueError, match=r"states of 3 genes are nan or infinite at layers \[2\]"):
        record(GeneStateSums([0, 1, 5], layers=[0, 2]), tokens=tokens, source=source)


def test_states_of_genes_are_sums_over_cells():
    columns, layers = [0, 3, 5, 12, 39], [3, 0]  # the model does not know gene 3
    found = record(GeneStateSums(columns, layers), HiddenStates(layers))
    states = found["hidden_states"].double().numpy()
    cell = np.repeat(np.arange(TOKENS.n_cells), TOKENS.lengths)
    expected = []
    for column in columns:
        total, seen = np.zeros((2, 16)), False
        for each in range(TOKENS.n_cells):
            mine = (cell == each) & (TOKENS.gene_index.numpy() == column)
            if mine.any():
                total, seen = total + states[:, mine].mean(1), True
        if seen:
            expected.append(total)
    assert found["gene_state_sums"].dtype == torch.float64
    np.testing.assert_allclose(found["gene_state_sums"].numpy(), np.stack(expected), rtol=1e-12, atol=1e-12)


def test_a_batch_without_those_genes():
    assert record(GeneStateSums([3]))["gene_state_sums"].shape == (0, 4, 16)
    recorder = Recorder([GeneStateSums([0])])
    with pytest.raises(ValueError, match="which token is which gene"):
        recorder.begin(1, TOKENS.packing)
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        record(GeneStateSums([0], [4]))
