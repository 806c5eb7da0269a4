"""scGPT's outputs are those that the authors' own code gave, and that plain torch gives on real cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from scfast.attention import Recorder
from scfast.models import load
from scfast.models.base import TokenKind, Tokens
from scfast.models.scgpt import ScgptSource
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from scfast.packing import Packing
from scfast.reference.rollout import rollout_matrices
from tests.models import scgpt_files
from tests.models.scgpt_files import LAYOUTS, Layout
from tests.models.standins import SoftmaxRecorder

#: Float32 results against the float64 outputs of the original code.
CLOSE = 1e-5


def source_of(folder: Path, **options: Any) -> ScgptSource:
    source = load("scgpt", folder, **options)
    assert isinstance(source, ScgptSource)
    return source


def tokens_of(ids: torch.Tensor, values: torch.Tensor, lengths: list[int]) -> Tokens:
    """Cells whose first token is <cls>."""
    packing = Packing.from_lengths(lengths)
    positions = packing.position_of_query()
    none = torch.zeros(len(lengths), dtype=torch.int64)
    return Tokens(
        ids=ids,
        values=values,
        positions=positions,
        packing=packing,
        gene_index=torch.where(positions == 0, -1, ids),
        kind=torch.where(positions == 0, int(TokenKind.SPECIAL), int(TokenKind.GENE)).to(torch.uint8),
        lost_vocabulary=none,
        lost_truncation=none,
    )


def record(source: ScgptSource, tokens: Tokens) -> Recorder:
    recorder = Recorder(
        [
            HiddenStates(),
            HiddenStates(-1, pool="cls", name="cell"),
            Rollout("cls"),
            Received(per_layer=True),
            Entropy(),
        ]
    )
    source.forward(tokens, recorder)
    return recorder


# -- the original code --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "scgpt_a.npz"))


def golden_source(golden: dict[str, np.ndarray], folder: Path, layout: Layout = "in_proj") -> ScgptSource:
    """The golden model, written in one of the layouts and loaded again."""
    rows, width, heads, between, layers, pad, cls, *_ = golden["in/params"].tolist()
    stem = {"in_proj": "self_attn.in_proj_", "Wqkv": "self_attn.Wqkv."}.get(layout, "self_attn._impl.Wqkv.")
    out = "self_attn._impl.out_proj." if layout == "_impl.Wqkv" else "self_attn.out_proj."
    tensors = {}
    for key, array in golden.items():
        if key.startswith("sd/"):
            name = key.removeprefix("sd/").replace("/", ".")
            name = name.replace("self_attn.in_proj_", stem).replace("self_attn.out_proj.", out)
            tensors[name] = torch.from_numpy(array)
    genes = {f"GENE{row}": row for row in range(rows - 3)}
    free = iter(sorted(set(range(rows)) - {pad, cls}))
    vocabulary = {"<pad>": pad, "<cls>": cls, **{gene: next(free) for gene in genes}, "<eoc>": next(free)}
    settings = scgpt_files.args(nlayers=layers, nheads=heads, embsize=width, d_hid=between)
    return source_of(scgpt_files.write_files(folder, settings, vocabulary, tensors))


@pytest.fixture(scope="module")
def golden_tokens(golden: dict[str, np.ndarray]) -> Tokens:
    real = ~golden["in/padding_mask"]
    ids, values = (torch.from_numpy(golden[f"in/{name}"][real]) for name in ("gene_ids", "values"))
    return tokens_of(ids, values, golden["in/lengths"].tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_and_embeddings_are_those_of_the_original(
    golden: dict[str, np.ndarray], golden_tokens: Tokens, tmp_path: Path, layout: Layout
) -> None:
    recorder = record(golden_source(golden, tmp_path, layout), golden_tokens)
    real = ~golden["in/padding_mask"]
    expected = [golden["f64/layer_input_0"], *(golden[f"f64/hidden_{layer}"] for layer in (1, 2, 3))]
    states = recorder.batch["hidden_states"]
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected, strict=True):
        assert np.abs(ours.numpy() - theirs[real]).max() < CLOSE
    assert np.abs(recorder.batch["cell"].numpy() - golden["f64/cell_emb"]).max() < CLOSE


def test_rollout_received_and_entropy_are_those_of_the_original_maps(
    golden: dict[str, np.ndarray], golden_tokens: Tokens, tmp_path: Path
) -> None:
    recorder = record(golden_source(golden, tmp_path), golden_tokens)
    for cell, n in enumerate(golden_tokens.lengths):
        maps = [torch.from_numpy(golden[f"f64/maps_{layer}"][cell, :, :n, :n]) for layer in range(3)]
        check_maps(recorder, cell, maps)


def check_maps(recorder: Recorder, cell: int, maps: list[torch.Tensor]) -> None:
    """What the recorder has of a cell against its float64 maps [H, n, n], one per layer."""
    rollout = rollout_matrices(maps).joint[-1][0]
    assert float((recorder["rollout"][cell] - rollout).abs().max()) < CLOSE
    for layer, p in enumerate(maps):
        received = p.sum(1)
        error = (recorder["received"][cell][layer] - received).abs() / received.clamp(min=1)
        assert float(error.max()) < CLOSE
        entropy = torch.special.entr(p).sum(-1).T  # [n, H]
        assert float((recorder["entropy"][cell][layer] - entropy).abs().max()) < CLOSE


def test_values_are_clipped_as_in_the_original(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    network = golden_source(golden, tmp_path).network
    values = torch.tensor([512.0, 600.0, 10000.0, -2.0, 0.0, 50.0])
    ids = torch.full((6,), 7)
    gene = torch.nn.functional.layer_norm(
        network.tensors["encoder.embedding.weight"][ids], (network.shape.hidden,),
        network.tensors["encoder.enc_norm.weight"], network.tensors["encoder.enc_norm.bias"],
    )  # fmt: skip
    ours = network.embed(tokens_of(ids, values, [6])) - gene
    expected = golden["f32/value_embs_512_600_10000"][0]
    assert np.abs(ours.numpy() - expected).max() < CLOSE
    assert np.array_equal(expected[0], expected[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fixtures_have_the_published_names_and_shapes(shared: Path, layout: Layout) -> None:
    manifest = json.loads((shared / "golden" / "scgpt_manifest.json").read_text())
    assert scgpt_files.shapes(layout, 60697, 12, 512, 512) == manifest[layout]


# -- plain torch on real cells ------------------------------------------------------------------------------


def plain_run(
    tensors: dict[str, torch.Tensor], heads: int, ids: torch.Tensor, values: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """States [n, d] around every layer and maps [H, n, n] of one cell, by torch's own modules in float64."""
    tensors = {name.replace("Wqkv.", "in_proj_"): tensor.double() for name, tensor in tensors.items()}
    width, between = (
        tensors["encoder.enc_norm.weight"].shape[0],
        len(tensors["transformer_encoder.layers.0.linear1.bias"]),
    )

    def part(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        module.double().load_state_dict(own)
        return module.eval()

    n_layers = sum(name.endswith("linear1.bias") and "layers" in name for name in tensors)
    layer = torch.nn.TransformerEncoderLayer(width, heads, between, batch_first=True)
    encoder = part(torch.nn.TransformerEncoder(layer, n_layers), "transformer_encoder.")
    table = part(torch.nn.Embedding(len(tensors["encoder.embedding.weight"]), width), "encoder.embedding.")
    gene_norm = part(torch.nn.LayerNorm(width), "encoder.enc_norm.")
    linear1 = part(torch.nn.Linear(1, width), "value_encoder.linear1.")
    linear2 = part(torch.nn.Linear(width, width), "value_encoder.linear2.")
    value_norm = part(torch.nn.LayerNorm(width), "value_encoder.norm.")

    value = value_norm(linear2(torch.relu(linear1(values.double().clamp(max=512)[None, :, None]))))
    x = gene_norm(table(ids))[None] + value
    states, maps = [x[0].detach()], []
    for block in encoder.layers:
        maps.append(block.self_attn(x, x, x, average_attn_weights=False)[1][0].detach())
        x = block(x)
        states.append(x[0].detach())
    return states, maps


def test_real_cells_run_as_in_plain_torch(shared: Path, tmp_path: Path) -> None:
    genes = json.loads((shared / "data" / "scgpt" / "default_census_vocab.json").read_text())
    folder = scgpt_files.write(tmp_path, sorted(genes, key=genes.__getitem__), special=())
    source = source_of(folder)
    data = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")[:4].copy()
    tokens = source.tokenize(data.X, data.var)
    recorder = record(source, tokens)
    tensors = torch.load(folder / "best_model.pt", weights_only=True)
    for cell in range(tokens.n_cells):
        alone = tokens.select([cell])
        assert alone.values is not None
        assert alone.n_tokens > 200
        states, maps = plain_run(tensors, source.n_heads, alone.ids, alone.values)
        for ours, theirs in zip(recorder["hidden_states"][cell], states, strict=True):
            assert float((ours - theirs).abs().max()) < CLOSE
        check_maps(recorder, cell, maps)


# -- as a source --------------------------------------------------------------------------------------------


def random_tokens(lengths: list[int], seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (sum(lengths),), generator=generator)
    return tokens_of(ids, torch.randint(1, 51, ids.shape, generator=generator).float(), lengths)


def test_untrained_is_seeded_and_keeps_the_vocabulary(tmp_path: Path) -> None:
    source = source_of(scgpt_files.write(tmp_path))
    null, again, other = source.untrained(3), source.untrained(3), source.untrained(4)
    assert (null.genes, null.rules, null.name) == (source.genes, source.rules, f"{source.name}:untrained")
    for name, tensor in null.network.tensors.items():
        assert tensor.shape == source.network.tensors[name].shape
        assert torch.equal(tensor, again.network.tensors[name])
    table = "encoder.embedding.weight"
    assert 0.09 < float(null.network.tensors[table].abs().max()) <= 0.1
    assert not torch.equal(null.network.tensors[table], other.network.tensors[table])
    record(null, random_tokens([9, 20]))


def test_blocks_change_nothing_but_rounding(tmp_path: Path) -> None:
    source = source_of(scgpt_files.write(tmp_path))
    tokens = random_tokens([33, 1, 18])
    whole, blocks = record(source, tokens).batch, record(source.in_blocks(7), tokens).batch
    for name, result in whole.items():
        torch.testing.assert_close(
            torch.as_tensor(blocks[name]), torch.as_tensor(result), atol=1e-5, rtol=1e-5
        )
    costs = source.bytes_per_token(), source.in_blocks(7).bytes_per_token()
    assert costs[0]["qk_per_layer"] == 2 * 32 * 4
    assert costs[1]["qk_per_layer"] == 32 * 4
    assert costs[1]["activations"] < costs[0]["activations"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = scgpt_files.write(tmp_path)
    tokens = random_tokens([30])
    got, exact = SoftmaxRecorder(), SoftmaxRecorder()
    half = source_of(folder, dtype=dtype)
    half.forward(tokens, got)
    source_of(folder).forward(tokens, exact)
    assert half.dtype == got.states[3].dtype == dtype
    # plain torch in the same dtype: its modules, its attention
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    plain = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).to(dtype).eval()
    prefix = "transformer_encoder."
    plain.load_state_dict(
        {n.removeprefix(prefix): t for n, t in half.network.tensors.items() if n.startswith(prefix)}
    )
    theirs = plain(got.states[0][None])[0].detach()
    error = (got.states[3].float() - exact.states[3]).abs().max()
    assert error <= 2 * (theirs.float() - exact.states[3]).abs().max()


def test_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    source = source_of(scgpt_files.write(tmp_path))
    with pytest.raises(ValueError, match="the tokens have no values"):
        source.forward(replace(random_tokens([5]), values=None), SoftmaxRecorder())
    with pytest.raises(ValueError, match=r"a cell has 1201 tokens; scgpt:.* takes 1200"):
        source.forward(random_tokens([1201]), SoftmaxRecorder())


def test_it_has_no_output_to_differentiate(tmp_path: Path) -> None:
    from scfast.observables import Relevance

    source = source_of(scgpt_files.write(tmp_path))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        source.forward(random_tokens([5]), Recorder([Relevance("class:T")]))
