"""Torch modules as sources: what is recorded of them is what their own maps say."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import scfast
from scfast.models import AttentionLayers, pack_cells, wrap
from scfast.observables import Entropy, HiddenStates, Observable, Received, Rollout
from scfast.observables.target import Target
from tests.attention.helpers import entropies, expected_rollout, received
from tests.models.wrapped_toys import (
    LENGTHS,
    WIDTH,
    Attention,
    Decoder,
    Encoder,
    counts,
    decoder_maps,
    decoder_states,
    encoder_maps,
    ids,
    run_encoder,
    wrap_decoder,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def record(source: Any, *observables: Observable) -> Any:
    with scfast.record(source, *observables) as recorder:
        source.forward(source.prepared, recorder)
    return recorder


def check(source: Any, maps: list[list[torch.Tensor]]) -> Any:
    """Rollout, attention received and entropy against those of the maps."""
    recorder = record(source, Rollout("mean"), Received(), Entropy(), HiddenStates())
    for cell, layers in enumerate(maps):
        assert_close(recorder["rollout"][cell].double(), expected_rollout(layers, "mean"), **CLOSE)
        assert_close(recorder["received"][cell].double(), received(layers), **CLOSE)
        assert_close(recorder["entropy"][cell].double(), entropies(layers), **CLOSE)
    return recorder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoders(batch_first: bool, norm_first: bool, causal: bool, packed: bool) -> None:
    model = Encoder(batch_first=batch_first, norm_first=norm_first, causal=causal).eval()
    source = wrap(model, call=run_encoder, max_tokens=64, packed=packed).with_tokens(ids())
    recorder = check(source, encoder_maps(model))
    for cell, own in enumerate(ids()):
        states = recorder["hidden_states"][cell]
        assert_close(states[0], (model.genes(own) + model.places(torch.arange(len(own)))).detach())
        alone = wrap(model, call=run_encoder, max_tokens=64).with_tokens([own])
        assert_close(states, record(alone, HiddenStates())["hidden_states"][0], **CLOSE)
    assert (source.n_layers, source.n_heads, source.head_dim, source.hidden_size) == (3, 4, 8, WIDTH)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_attention_that_its_author_declares(before: bool, packed: bool) -> None:
    model = Decoder(before).eval()
    source = wrap_decoder(model, packed=packed).with_tokens({"ids": ids(), "values": counts()})
    recorder = check(source, decoder_maps(model))
    for cell, states in enumerate(decoder_states(model)):
        assert_close(recorder["hidden_states"][cell][-1], states, **CLOSE)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_module_of_plain_attention_layers_names_its_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

        def forward(self, x: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
            return x + self.attention(x, x, x, key_padding_mask=pads)[0]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.genes, self.blocks = nn.Embedding(50, WIDTH), nn.ModuleList(Block() for _ in range(2))

        def forward(self, ids: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
            x = self.genes(ids)
            for block in self.blocks:
                x = block(x, pads)
            return x

    model = Plain().eval()
    options: dict[str, Any] = {"call": lambda model, batch: model(batch.ids, batch.pads), "max_tokens": 64}
    source = wrap(model, **options, blocks=model.blocks).with_tokens(ids())
    states = record(source, HiddenStates())["hidden_states"]
    batch = nn.utils.rnn.pad_sequence(ids(), batch_first=True)
    pads = torch.arange(12) >= torch.tensor(LENGTHS)[:, None]
    expected = model(batch, pads).detach()
    for cell, n in enumerate(LENGTHS):
        assert states[cell].shape == (3, n, WIDTH)
        assert_close(states[cell][-1], expected[cell, :n], **CLOSE)
    with pytest.raises(NotImplementedError, match=r"name the modules .* blocks="):
        record(wrap(model, **options).with_tokens(ids()), HiddenStates())


# -- every tool -------------------------------------------------------------------------------------------


def toy() -> tuple[anndata.AnnData, Any, Encoder]:
    """Cells of 20 genes, and an encoder that reads them by descending counts."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(1.0, (8, 20)).astype(np.float32))
    adata.var_names = [f"ENSG{number:011d}" for number in range(20)]
    adata.obs["type"] = np.repeat(["a", "b"], 4)

    def tokenize(counts: Any, var: Any) -> list[np.ndarray]:
        token = var["token"].to_numpy()
        rows = [row.indices[np.argsort(-row.data, kind="stable")] for row in counts]
        return [np.append(49, token[row][token[row] >= 0][:10]) for row in rows]  # 49: cls

    model = Encoder().eval()
    vocabulary = {f"ENSG{number:011d}": number + 5 for number in range(2, 30)}
    source = wrap(
        model,
        call=run_encoder,
        max_tokens=11,
        packed=True,
        tokenize=tokenize,
        vocabulary=vocabulary,
        n_ids=50,
    )
    return adata, source, model


def test_every_tool_takes_it() -> None:
    adata, source, _ = toy()
    tl, how = scfast.tl, {"progress": False}
    tl.rollout(adata, source, groupby="type", null="untrained", **how)
    assert adata.uns["rollout"]["groups"]["lost_vocabulary"].sum() > 0
    assert adata.uns["rollout"]["groups"]["lost_truncation"].sum() > 0
    tl.received(adata, source, **how)
    tl.embed(adata, source, **how)
    tl.rank_profile(adata, source, **how)
    tl.rollout_matrix(adata, source, genes=["ENSG00000000005"], **how)
    tl.strongest_edges(adata, source, n_edges=2, **how)
    tl.similarity(adata, source, **how)
    tl.attention_norms(adata, source, **how)
    tl.attention_shift(adata, source, source.untrained(), **how)
    tl.relevance(adata, source, target=lambda output: output[:, 0].sum(-1), **how)
    assert {"rollout", "received", "attention_shift", "relevance"} <= set(adata.uns)


def test_scores_of_genes_are_those_of_the_maps() -> None:
    adata, source, model = toy()
    scfast.tl.rollout(adata, source, progress=False)
    tokens = source.tokenize(adata.X, adata.var)
    for cell in range(adata.n_obs):
        own = tokens.select([cell])
        with torch.no_grad():
            states = model.genes(own.ids) + model.places(own.positions)
            maps = []
            for layer in model.encoder.layers:
                _, weights = layer.self_attn(states, states, states, average_attn_weights=False)
                maps.append(weights.double())
                states = layer(states[None])[0]
        expected = np.zeros(adata.n_vars)
        genes = own.gene_index.numpy()
        np.add.at(expected, genes[genes >= 0], expected_rollout(maps).numpy()[genes >= 0])
        np.testing.assert_allclose(adata.layers["rollout"][cell].toarray()[0], expected, rtol=1e-4, atol=1e-6)


def test_cells_that_were_tokenised_before() -> None:
    adata, source, _ = toy()
    scfast.tl.rollout(adata, source, progress=False)
    tokens = source.tokenize(adata.X, adata.var)
    cells = list(tokens.packing.split_q(tokens.ids))
    padded = nn.utils.rnn.pad_sequence(cells, batch_first=True, padding_side="left")
    mask = padded != 0
    for ready in (source.with_tokens(cells, adata.var), source.with_tokens(padded, adata.var, mask=mask)):
        again = anndata.AnnData(adata.X, var=adata.var)
        scfast.tl.rollout(again, ready, progress=False)
        np.testing.assert_array_equal(again.layers["rollout"].toarray(), adata.layers["rollout"].toarray())
    with pytest.raises(ValueError, match="holds tokens of 8 cells, but the data have 3"):
        scfast.tl.rollout(adata[:3].copy(), ready, progress=False)


@pytest.mark.parametrize("packed", [True, False])
def test_what_nobody_wants_is_not_run(packed: bool) -> None:
    model = Encoder().eval()
    source = wrap(model, call=run_encoder, max_tokens=64, packed=packed).with_tokens(ids())
    runs: list[int] = []
    for layer in model.encoder.layers:
        layer.linear2.register_forward_hook(lambda *_: runs.append(1))
    alone = record(source, Rollout("mean"), Received(), Entropy())
    assert len(runs) == 2
    together = record(source, Rollout("mean"), Received(), Entropy(), HiddenStates(-1))
    assert len(runs) == 2 + 3
    for name in ("rollout", "received", "entropy"):
        for one, other in zip(alone[name], together[name], strict=True):
            assert_close(one, other, **CLOSE)


def test_copies_are_recorded_alike() -> None:
    model = Decoder().eval()
    source = wrap_decoder(model).with_tokens({"ids": ids(), "values": counts()})
    fresh = source.untrained(1)
    assert fresh.module is not model
    assert fresh.name.endswith(":untrained")
    check(fresh, decoder_maps(fresh.module))
    assert_close(source.untrained(1).module.genes.weight, fresh.module.genes.weight)
    assert not torch.equal(source.untrained(2).module.genes.weight, fresh.module.genes.weight)
    assert source.to("cpu") is source


def test_what_a_token_costs_covers_what_runs() -> None:
    _, source, _ = toy()
    costs = source.bytes_per_token()
    assert costs["qk_per_layer"] == 4 * 2 * WIDTH
    assert costs["hidden"] == 4 * WIDTH
    assert costs["activations"] >= 4 * (4 * WIDTH + 48)


# -- refusals ---------------------------------------------------------------------------------------------


def forward(model: nn.Module, call: Any = run_encoder, **options: Any) -> None:
    record(wrap(model, call=call, max_tokens=64, **options).with_tokens(ids()), Rollout("mean"))


def test_refusals_name_what_is_wrong() -> None:
    model = Encoder().eval()
    with pytest.raises(ValueError, match=r"Encoder is in training mode.*call module\.eval\(\)"):
        wrap(Encoder(), call=run_encoder, max_tokens=64)
    with pytest.raises(
        ValueError, match=r"sees cells of 12, 12, 12, 12 tokens.* 12, 7, 1, 9: hand the batch's pads"
    ):
        forward(model, lambda model, batch: model(batch.ids, batch.positions, None))
    with pytest.raises(ValueError, match="sees 29 rows of 1 tokens, but the batch is packed: 1 row of 29"):
        forward(model, lambda model, batch: model(batch.ids.T, batch.positions.T, None), packed=True)
    with pytest.raises(ValueError, match="a cell has 12 tokens; Encoder takes 8"):
        wrap(model, call=run_encoder, max_tokens=8).with_tokens(ids())
    with pytest.raises(ValueError, match=r"Embedding has no nn\.MultiheadAttention: say where"):
        wrap(nn.Embedding(3, 4).eval(), call=run_encoder, max_tokens=8)
    with pytest.raises(ValueError, match="blocks: a Linear is no part of Encoder"):
        wrap(model, call=run_encoder, max_tokens=8, blocks=[nn.Linear(2, 2)])
    eye, dropping = torch.eye(12, dtype=torch.bool), Encoder().eval()
    with pytest.raises(NotImplementedError, match="attention masks other than the causal one"):
        forward(model, lambda m, b: m.encoder(m.genes(b.ids), mask=eye, src_key_padding_mask=b.pads))
    dropping.encoder.layers[0].self_attn.train()
    with pytest.raises(NotImplementedError, match="dropout"):
        forward(dropping)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 4, 48, batch_first=True), 1).eval()
    memory = torch.randn(4, 5, WIDTH)
    with pytest.raises(NotImplementedError, match="cross-attention"):
        forward(decoder, lambda m, b: m(torch.randn(4, 12, WIDTH), memory, tgt_key_padding_mask=b.pads))
    source = wrap(model, call=run_encoder, max_tokens=8)
    with pytest.raises(ValueError, match=r"target='gene:A' cannot be found .*it names no classes"):
        source.check_target(Target("gene", "A"))


def test_a_model_that_resets_nothing_needs_untrained() -> None:
    model = Encoder().eval()
    model.extra = nn.ParameterDict({"x": nn.Parameter(torch.zeros(2))})
    source = wrap(model, call=run_encoder, max_tokens=64)
    with pytest.raises(
        ValueError, match=r"extra has parameters \(x\) and no reset_parameters\(\): give untrained="
    ):
        source.untrained()
    given = wrap(model, call=run_encoder, max_tokens=64, untrained=lambda seed: Encoder())
    assert not given.untrained().module.training


def test_declarations_that_make_no_sense() -> None:
    model = Decoder().eval()

    def layers(**changes: Any) -> AttentionLayers:
        usual: dict[str, Any] = {
            "modules": [layer.attention for layer in model.layers], "qkv": lambda layer, batch, x, _: layer.project(x),
            "output": lambda layer, heads, x, _: layer.linears[3](heads.flatten(-2)),
            "n_heads": 4, "n_key_heads": 2, "head_dim": 8, "hidden_size": WIDTH,
        }  # fmt: skip
        return AttentionLayers(**usual | changes)

    def run(given: AttentionLayers) -> None:
        source = wrap(model, call=lambda m, b: m(b.ids, b.values), max_tokens=64, layers=given)
        record(source.with_tokens({"ids": ids(), "values": counts()}), Rollout("mean"))

    run(layers())
    with pytest.raises(ValueError, match="modules is empty"):
        layers(modules=[])
    with pytest.raises(ValueError, match="names a module twice"):
        layers(modules=[model.layers[0].attention] * 2)
    with pytest.raises(TypeError, match="must hold torch modules, got a str"):
        layers(modules=["layers.0"])
    with pytest.raises(ValueError, match="a key bias differs from batch to batch"):
        layers(options=scfast.attention.ScoreOptions(key_bias=torch.zeros(3)))
    with pytest.raises(
        ValueError, match=r"qkv must return k of shape \[4, 12, 4, head dim\] .* got \[4, 12, 2, 8\]"
    ):
        run(layers(n_key_heads=4))
    with pytest.raises(ValueError, match=r"key_bias must return \[4, 12\] or \[\.\.\., heads\]"):
        run(layers(key_bias=lambda batch: torch.zeros(3, 3)))
    attention = [layer.attention for layer in model.layers]
    with pytest.raises(ValueError, match="runs as layer 0, but is declared as layer 2"):
        run(layers(modules=attention[::-1]))
    model.spare = Attention(True)
    with pytest.raises(RuntimeError, match="3 of 4 attention layers of Decoder reached scfast"):
        run(layers(modules=[*attention, model.spare]))
    source = wrap_decoder(model).with_tokens(ids())
    with pytest.raises(ValueError, match="the tokeniser gave no values"):
        record(source, Rollout("mean"))
    assert pack_cells([[1], []]).lengths == (1, 0)
