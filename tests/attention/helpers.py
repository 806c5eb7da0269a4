"""Tiny models with random weights, and the float64 maps that they would have had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch import nn

from scfast import ops
from scfast.attention import LayerAttention, Recorder, ScoreOptions
from scfast.observables import Observable
from scfast.packing import Packing
from scfast.reference.rollout import rollout_matrices

LENGTHS = (12, 7, 1, 9)
MASK = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def pretrained(name: str, **options: object) -> transformers.PreTrainedModel:
    """A tiny model of the named family, in eval mode, weights wide enough for uneven attention."""
    torch.manual_seed(0)
    families: dict[str, Callable[[], transformers.PreTrainedModel]] = {
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SIZES, **_QUIET, **options)),
        "roberta": lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**_SIZES, **_QUIET, pad_token_id=1, **options), add_pooling_layer=False
        ),
        "esm": lambda: transformers.EsmModel(
            transformers.EsmConfig(
                **_SIZES, **_QUIET, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary",
                **options,
            ),
            add_pooling_layer=False,
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**_SIZES, num_key_value_heads=2, **options)
        ),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(
                vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64,
                attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=0, **options,
            )
        ),
    }  # fmt: skip
    model = families[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(6.0)
    return model


def encoder(*, batch_first: bool = True, norm_first: bool = False, heads: int = 4) -> nn.TransformerEncoder:
    """A tiny nn.TransformerEncoder, in eval mode."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, heads, 48, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=batch_first and not norm_first).eval()


def tokens() -> torch.Tensor:
    """int64 [B, L] token ids, away from special ids."""
    return torch.randint(5, 50, MASK.shape, generator=torch.Generator().manual_seed(1))


def cells(padded: torch.Tensor) -> list[torch.Tensor]:
    """[B, L, ...] -> [n, ...] per cell."""
    return [row[:length] for row, length in zip(padded, LENGTHS, strict=True)]


def eager_maps(model: transformers.PreTrainedModel, **inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """Per cell, per layer the maps [H, n, n] of the model run in float64 with eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.double()(**inputs, output_attentions=True).attentions
    model.float().set_attn_implementation(before)
    return [[layer[cell, :, :n, :n] for layer in maps] for cell, n in enumerate(LENGTHS)]


def expected_rollout(maps: list[torch.Tensor], readout: str = "cls", **options: object) -> torch.Tensor:
    """float64 [n]: the materialised rollout of one cell."""
    joint = rollout_matrices(maps, **options).joint[-1]  # type: ignore[arg-type]
    return joint[0] if readout == "cls" else joint.mean(0)


def entropies(maps: list[torch.Tensor]) -> torch.Tensor:
    """float64 [N, n, H] of one cell."""
    return torch.stack([torch.special.entr(layer).sum(-1).T for layer in maps])


def received(maps: list[torch.Tensor]) -> torch.Tensor:
    """float64 [n] of one cell: summed over layers, heads and queries."""
    return torch.stack(maps).sum((0, 1, 2))


def run_maps(maps: torch.Tensor, *observables: Observable, backend: str) -> Recorder:
    """Feed given maps [B, N, H, n, n] to a recorder as q = log M, k = I, scale 1."""
    n_cells, n_layers, n_heads, n, _ = maps.shape
    packing = Packing.from_lengths([n] * n_cells)
    k = torch.eye(n)[:, None].expand(n, n_heads, n).repeat(n_cells, 1, 1)
    recorder = Recorder(observables, backend=backend)
    recorder.begin(n_layers, packing, cls_position=0)
    for layer in range(n_layers):
        q = maps[:, layer].float().log().transpose(1, 2).flatten(0, 1)
        recorder.attend(LayerAttention(layer, q, k, None, packing, ScoreOptions(scale=1.0)))
    recorder.finish()
    return recorder


@contextmanager
def counted_ops(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Counts the calls of each op inside the block."""
    calls: dict[str, int] = {}
    with monkeypatch.context() as patch:
        for name in ("attention_forward", "attention_colsum", "attention_rowstats"):
            patch.setattr(ops, name, _counting(name, getattr(ops, name), calls))
        yield calls


def _counting(name: str, op: Callable[..., object], calls: dict[str, int]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        calls[name] = calls.get(name, 0) + 1
        return op(*args, **kwargs)

    return call


logging.getLogger("transformers").setLevel(logging.ERROR)
