"""tl.similarity of real blood cells, by Geneformers of random weights with the published vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

import scfast
from scfast import models
from scfast.attention.recorder import Recorder
from scfast.models.base import TokenKind
from scfast.observables import HiddenStates
from tests.toy import BACKEND


def close_cosines(got, expected):
    """A cell alone or in a batch runs in float32 either way; what differs is the order of sums."""
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tokens_and_genes_equal_scikit_learn(cells, folders, version):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    tokens = source.tokenize(adata.X, adata.var, adata.obs["n_counts"].to_numpy())
    recorder = Recorder([HiddenStates()], keep=False)
    with torch.inference_mode():
        source.forward(tokens, recorder)
    states = recorder.batch["hidden_states"].double().numpy()
    gene, kind = tokens.gene_index.numpy(), tokens.kind.numpy() == TokenKind.GENE
    held = np.bincount(gene[kind], minlength=adata.n_vars)
    names = adata.var_names[held >= 2].tolist()
    scfast.tl.similarity(
        adata, source, groupby="celltype", genes=names, min_cells=2, cell=adata.obs_names[2], backend=BACKEND
    )
    results = adata.uns["similarity"]
    pairs = {"gene-gene"} | ({"gene-special", "special-special"} if version == "v2" else set())
    assert set(results["tokens"]["pair"]) == pairs
    table = results["tokens"].set_index(["group", "layer", "pair"])
    for layer, state in enumerate(states):
        found: dict[str, list[np.ndarray]] = {pair: [] for pair in pairs}
        for start, length in zip(tokens.packing.starts_q, tokens.lengths, strict=True):
            here = slice(start, start + length)
            alike, own = cosine_similarity(state[here]), kind[here]
            upper = np.triu(np.ones_like(alike, dtype=bool), 1)
            masks = (np.outer(own, own) & upper, np.outer(own, ~own), np.outer(~own, ~own) & upper)
            for pair, mask in zip(("gene-gene", "gene-special", "special-special"), masks, strict=True):
                if pair in pairs:
                    found[pair].append(alike[mask])
        for pair, values in found.items():
            row, every = table.loc[("all", layer, pair)], np.concatenate(values)
            assert row["pairs"] == len(every)
            assert row["zeros"] == 0
            close_cosines([row["mean"], row["min"], row["max"]], [every.mean(), every.min(), every.max()])
            close_cosines([row["cell_mean"]], [np.mean([each.mean() for each in values])])
        mean = np.stack([state[(gene == adata.var_names.get_loc(name)) & kind].mean(0) for name in names])
        close_cosines(results["genes"]["similarity"][layer], cosine_similarity(mean))
        start, length = tokens.packing.starts_q[2], tokens.lengths[2]
        close_cosines(results["cell"]["similarity"][layer], cosine_similarity(state[start : start + length]))
    assert results["cell"]["tokens"]["kind"].tolist().count("special") == (0 if version == "v1" else 2)
