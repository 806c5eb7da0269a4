"""One layer of a Geneformer V2-316M and one whole cell, analysed in a process of its own.

Prints by how many bytes the process grew at its peak, the layer itself included.

Usage: layer_memory.py TOKENS norms|gradients THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

import scfast
from scfast.observables import AttentionNorms, GlobEnc, HeadNorms, MixingRatio, Observable, Relevance
from scfast.observables.vectors import KINDS
from tests.run.peak_memory import status

OBSERVABLES: dict[str, Sequence[Observable]] = {
    "norms": [
        AttentionNorms(KINDS),
        MixingRatio(KINDS),
        HeadNorms(["weighted", "prob", "mixed"]),
        GlobEnc("cls"),
    ],
    "gradients": [Relevance(lambda output: output.last_hidden_state[:, 0, 0])],
}


def layer(tokens: int) -> transformers.BertModel:
    """Random weights: 18 heads, 1152 wide, 4608 between."""
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=1152, num_hidden_layers=1, num_attention_heads=18, intermediate_size=4608,
        max_position_embeddings=tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="scfast",
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def growth(model: transformers.BertModel, tokens: int, observables: Sequence[Observable]) -> int:
    """Bytes by which the process grows at its peak."""
    ids = torch.randint(0, 100, (1, tokens))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    differentiated = any(observable.target is not None for observable in observables)
    with torch.set_grad_enabled(differentiated), scfast.record(model, *observables) as recorder:
        model(input_ids=ids)
    peak = status("VmHWM") - before
    for observable in observables:
        (result,) = recorder[observable.name]
        assert torch.isfinite(result).all(), observable.name
    return peak


def main() -> None:
    """Measure."""
    tokens, observables = int(sys.argv[1]), OBSERVABLES[sys.argv[2]]
    torch.set_num_threads(int(sys.argv[3]))
    model = layer(tokens)
    growth(model, 130, observables)  # thread pools and lazily loaded code are not the analysis's memory
    print(growth(model, tokens, observables))


if __name__ == "__main__":
    main()
