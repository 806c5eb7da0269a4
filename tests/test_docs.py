"""The page on wrapping models is run as it reads, and what it gives is what the models give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
import transformers
from scipy import sparse
from torch.testing import assert_close

import scfast
from scfast.observables import HiddenStates
from tests import published

PAGE = Path(__file__).parents[1] / "docs" / "any_encoder.md"
#: What the other chapters build on.
FIRST = "One example, from counts to genes"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def chapters() -> dict[str, str]:
    """Heading -> the code beneath it."""
    parts = re.split(r"^#{2,3} (.+)$", PAGE.read_text(), flags=re.M)
    code = {
        heading: "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {heading: lines for heading, lines in code.items() if lines}


def cells() -> anndata.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (12, 36)).astype(np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.var_names = [f"ENSG{number:011d}" for number in range(36)]
    adata.obs["cell_type"] = np.repeat(["B", "T"], 6)
    return adata


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page takes as given, and what its chapters define."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("hf")
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64,
        )
    ).save_pretrained(checkpoint)  # fmt: skip
    adata = cells()
    own = {gene: 2 + number for number, gene in enumerate(adata.var_names)}

    def tokenize(counts: Any, var: Any) -> list[list[int]]:
        return [[0, *var["token"].to_numpy()[cell.indices]] for cell in counts]

    def with_counts(counts: Any, var: Any) -> dict[str, Any]:
        return {"ids": tokenize(counts, var), "values": [[1, *cell.data] for cell in counts]}

    given = {"adata": adata, "checkpoint": checkpoint}
    for name, model in (("nicheformer", published.Nicheformer()), ("state", published.State())):
        given |= {name: model, f"tokenize_for_{name}": tokenize, f"{name}_vocabulary": own}
    given |= {
        "transcriptformer": published.TranscriptFormer(),
        "tokenize_for_transcriptformer": with_counts,
        "transcriptformer_vocabulary": own,
    }
    run(FIRST, given)
    return given


def run(chapter: str, names: dict[str, Any]) -> None:
    exec(compile(chapters()[chapter], f"{PAGE.name}: {chapter}", "exec"), names)


@pytest.mark.parametrize("chapter", [chapter for chapter in chapters() if chapter != FIRST])
def test_the_page_runs(chapter: str, names: dict[str, Any]) -> None:
    run(chapter, names)
    assert "rollout" in names["adata"].layers
    if chapter == "Hugging Face":
        return
    source, adata = names["source"], names["adata"]
    tokens = source.tokenize(adata.X, adata.var)
    with scfast.record(source, HiddenStates(-1)) as recorder:
        source.forward(tokens, recorder)
    for cell in range(adata.n_obs):
        alone = tokens.select([cell])
        inputs = [alone.ids[None]] + ([] if alone.values is None else [alone.values[None]])
        with torch.no_grad():
            expected = source.module(*inputs)[0]
        assert_close(recorder["hidden_states"][cell], expected, **CLOSE)


def test_the_first_example_counts_what_was_lost(names: dict[str, Any]) -> None:
    lost = names["lost"]
    assert (lost["lost_vocabulary"] > 0).all()
    assert (lost["lost_truncation"] == 0).all()
    assert list(names["table"]["group"].cat.categories) == ["B", "T"]
