"""The packed UCE is the authors' model: golden runs of their code, and plain torch modules on real cells."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scfast.attention import Recorder
from scfast.models import load
from scfast.models.base import Tokens
from scfast.models.uce import UceSource
from scfast.models.uce_encoder import TABLE, UceShape
from scfast.models.uce_tokens import with_pads
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from scfast.packing import Packing
from tests.models import uce_files

N_LAYERS, N_GENES = 3, 120
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(shared: Path) -> Any:
    return np.load(shared / "golden" / "uce_a.npz")


@pytest.fixture(scope="module")
def golden_source(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> UceSource:
    """The golden model in published files: genes named by their rows of the token table."""
    folder = tmp_path_factory.mktemp("uce")
    tensors = {
        key.removeprefix("sd/").replace("/", "."): torch.from_numpy(golden[key])
        for key in golden.files
        if key.startswith("sd/")
    }
    torch.save(tensors, folder / "33l_8ep_1024t_1280.torch")
    torch.save(tensors[TABLE], folder / "all_tokens.torch")
    first, offset = 4, int(golden["in/params"][3])
    (folder / "protein_embeddings").mkdir()
    vectors = {f"G{row}": tensors[TABLE][row].clone() for row in range(first, offset)}
    torch.save(vectors, folder / "protein_embeddings" / uce_files.FILES["human"])
    genome = {"species": "human", "gene_symbol": [f"G{row}" for row in golden["in/pe_idx"]]}
    pd.DataFrame(genome | {"chromosome": golden["in/chroms"], "start": golden["in/starts"]}).to_csv(
        folder / "species_chrom.csv", index=False
    )
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": first}))
    source = load("uce", folder, chromosome_offset=offset, n_heads=4, sample_size=24)
    assert isinstance(source, UceSource)
    return source


def golden_tokens(golden: Any, source: UceSource) -> Tokens:
    """The cells as the authors' collator cut them, without pads; genes by their column of the counts."""
    lengths = golden["in/lengths"].tolist()
    ids = np.concatenate([row[:n] for row, n in zip(golden["in/token_ids"], lengths, strict=True)])
    column = np.full(source.encoder.table.n_rows, -1)
    column[golden["in/pe_idx"]] = np.arange(N_GENES)
    chromosome = (ids == 2) | (ids >= source.rules.chromosome_offset)
    packing = Packing.from_lengths(lengths)
    return Tokens(
        ids=torch.from_numpy(ids),
        positions=packing.position_of_query(),
        packing=packing,
        gene_index=torch.from_numpy(column[ids]),
        kind=torch.from_numpy(np.where(ids == 3, 1, np.where(chromosome, 2, 0)).astype(np.uint8)),
        lost_vocabulary=torch.zeros(3, dtype=torch.int64),
        lost_truncation=torch.zeros(3, dtype=torch.int64),
    )


def observed(source: UceSource, tokens: Tokens) -> dict[str, Any]:
    """What a recorder sees, per cell, and the authors' embeddings."""
    recorder = Recorder([Rollout("cls"), Received(per_layer=True), Entropy(), HiddenStates()])
    source.forward(tokens, recorder)
    names = ("rollout", "received", "entropy", "hidden_states")
    found: dict[str, Any] = {name: recorder[name] for name in names}
    last = torch.stack([states[-1, 0] for states in found["hidden_states"]])
    return found | {"embedding": source.cell_embeddings(last)}


def from_maps(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rollout toward the first token, received and entropy, from maps [N, H, n, n]."""
    joint = torch.eye(maps.shape[-1], dtype=maps.dtype)
    for layer in maps.mean(1):
        joint = (0.5 * layer + 0.5 * torch.eye(len(layer), dtype=maps.dtype)) @ joint
    entropy = -(maps * maps.clamp(min=1e-300).log()).sum(-1).transpose(1, 2)
    return {"rollout": joint[0], "received": maps.sum(-2), "entropy": entropy}


def close(got: torch.Tensor, exact: Any, relative: float = 0.0) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(exact), atol=TOLERANCE, rtol=relative)


@pytest.mark.parametrize("run", ["batched", "alone"])
def test_the_golden_run_of_published_masking(golden: Any, golden_source: UceSource, run: str) -> None:
    cells = golden_tokens(golden, golden_source)
    longest = max(cells.lengths)
    tokens = with_pads(cells, [longest] * 3) if run == "batched" else cells
    got = observed(golden_source, tokens)
    close(got["embedding"], golden["f64/cls_embedding" + ("" if run == "batched" else "_alone")])
    if run == "alone":
        return
    assert tokens.ids.tolist() == golden["in/token_ids"].ravel().tolist()
    maps = torch.stack([torch.from_numpy(golden[f"f64/maps_{layer}"]) for layer in range(N_LAYERS)], 1)
    states = [golden["f64/layer_input_0"], *(golden[f"f64/hidden_{n}"] for n in range(1, N_LAYERS + 1))]
    for cell in range(3):
        for layer, exact in enumerate(states):
            close(got["hidden_states"][cell][layer], exact[:, cell])
        for name, exact in from_maps(maps[cell]).items():
            close(got[name][cell], exact, relative=0.0 if name == "rollout" else TOLERANCE)


def test_five_more_pads_change_results_as_in_the_original(golden: Any, golden_source: UceSource) -> None:
    cells = golden_tokens(golden, golden_source)
    more = observed(golden_source, with_pads(cells, [max(cells.lengths) + 5] * 3))["embedding"]
    close(more, golden["f64/cls_embedding_5more_pads"])
    assert np.abs(golden["f64/cls_embedding_5more_pads"] - golden["f64/cls_embedding"]).max() > 1e-3


def test_names_and_shapes_are_those_of_the_original(
    shared: Path, golden: Any, golden_source: UceSource
) -> None:
    manifest = json.loads((shared / "golden" / "uce_manifest.json").read_text())
    for name, layers in (("4layer", 4), ("33layer", 33)):
        shape = UceShape(layers, 20, 1280, 5120, 5120, 1280)
        ours = shape.weights() | shape.unused() | {TABLE: (145469, 5120)}
        assert ours == {key: tuple(size) for key, size in manifest[name].items()}
    shape = golden_source.encoder.shape
    names = {
        key.removeprefix("sd/").replace("/", "."): golden[key].shape
        for key in golden.files
        if key[:3] == "sd/"
    }
    assert shape.weights() | shape.unused() | {TABLE: (169, 32)} == names


def test_the_fixture_has_the_names_of_the_manifest(shared: Path, tmp_path: Path) -> None:
    manifest = json.loads((shared / "golden" / "uce_manifest.json").read_text())["4layer"]
    written = uce_files.write(tmp_path, layers=4)
    tensors = torch.load(tmp_path / "4layer_model.torch", weights_only=True)
    assert list(tensors) == list(written.model.state_dict())
    assert set(tensors) == set(manifest)
    assert {name: tensor.dim() for name, tensor in tensors.items()} == {
        n: len(s) for n, s in manifest.items()
    }


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, uce_files.Written]:
    """Six blood cells, and a model of the genes in them, where these really lie."""
    import anndata

    adata = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")[
        [3, 40, 77, 130, 200, 280]
    ].copy()
    genome = pd.read_csv(shared / "data" / "genes" / "human_gene_positions.csv.gz", dtype={"chromosome": str})
    expressed = adata.var["symbol"][np.asarray(adata.X.sum(0)).ravel() > 0]
    genome = genome[genome["symbol"].isin(expressed)].drop_duplicates("symbol")
    genome = genome.rename(columns={"symbol": "gene_symbol"})[["gene_symbol", "chromosome", "start"]]
    written = uce_files.write(
        tmp_path_factory.mktemp("real"),
        species={"human": list(genome["gene_symbol"])},
        genome=genome,
        layers=3,
    )
    return adata, written


@pytest.mark.parametrize("masking", ["strict", "published"])
def test_plain_torch_on_real_cells(real: tuple[Any, uce_files.Written], masking: str) -> None:
    adata, written = real
    options = {**written.options, "sample_size": 60, "masking": masking, "batch_size": 4}
    source = load("uce", written.folder, **options)
    assert isinstance(source, UceSource)
    tokens = source.tokenize(adata.X, adata.var)
    got = observed(source, tokens)
    ids = torch.nn.utils.rnn.pad_sequence(tokens.packing.split_q(tokens.ids), batch_first=True)
    kinds = torch.nn.utils.rnn.pad_sequence(tokens.packing.split_q(tokens.kind), True, 3)
    bias = torch.where(kinds == 3, 1.0 if masking == "published" else -torch.inf, 0.0).double()
    lengths, checked = tokens.lengths, []
    for start in (0, 4):
        here = slice(start, min(start + 4, 6))
        size = max(lengths[here])
        exact = written.model.double().run(ids[here, :size], bias[here, :size])
        for cell in range(here.start, here.stop):
            n, at = lengths[cell], cell - start
            for layer, states in enumerate(exact["states"]):
                close(got["hidden_states"][cell][layer], states[at, :n])
            maps = torch.stack([layer[at, :, :n, :n] for layer in exact["maps"]])
            for name, value in from_maps(maps).items():
                close(got[name][cell], value, relative=0.0 if name == "rollout" else TOLERANCE)
            close(got["embedding"][cell], exact["embedding"][0][at])
            checked.append(cell)
    written.model.float()
    assert checked == list(range(6))
    assert bool((tokens.kind == 3).any()) == (masking == "published")


def test_strict_results_do_not_depend_on_the_batch(golden: Any, golden_source: UceSource) -> None:
    cells = golden_tokens(golden, golden_source)
    together = observed(golden_source, cells)
    for cell in range(3):
        alone = observed(golden_source, cells.select([cell]))
        for name, values in alone.items():
            torch.testing.assert_close(values[0], together[name][cell], atol=1e-6, rtol=1e-6)


def test_blocks_change_nothing(golden: Any, golden_source: UceSource) -> None:
    cells = golden_tokens(golden, golden_source)
    tokens = with_pads(cells, [max(cells.lengths)] * 3)
    results = []
    for source in (golden_source, golden_source.in_blocks(16)):
        recorder = Recorder([Rollout("cls"), HiddenStates(-1)])
        source.forward(tokens, recorder)
        results.append(recorder)
    for name in ("rollout", "hidden_states"):
        for whole, parts in zip(results[0][name], results[1][name], strict=True):
            torch.testing.assert_close(parts, whole, atol=TOLERANCE, rtol=0)


def test_untrained_is_seeded_and_keeps_the_protein_embeddings(tmp_path: Path) -> None:
    written = uce_files.write(tmp_path)
    source = load("uce", tmp_path, **written.options)
    assert isinstance(source, UceSource)
    null, again, other = source.untrained(3), source.untrained(3), source.untrained(4)
    for name, tensor in null.encoder.tensors.items():
        assert torch.equal(tensor, again.encoder.tensors[name])
        assert tensor.shape == source.encoder.tensors[name].shape
    assert not torch.equal(
        null.encoder.tensors["encoder.0.weight"], other.encoder.tensors["encoder.0.weight"]
    )
    assert null.encoder.table is source.encoder.table
    assert (null.genes, null.name) == (source.genes, "uce:4layer_model:untrained")
    assert source.to("cpu") is source
    counts = sparse.csr_matrix(np.eye(2, 60, dtype=np.int64) * 5)
    var = pd.DataFrame(index=list(uce_files.HUMAN))
    assert torch.equal(null.tokenize(counts, var).ids, source.tokenize(counts, var).ids)


def test_weights_and_table_stay_in_their_files(tmp_path: Path) -> None:
    written = uce_files.write(tmp_path, drawn=False)
    source = load("uce", tmp_path, **written.options)
    assert isinstance(source, UceSource)
    layer = source.encoder.packed.layers[0]
    assert layer.qk.weight.untyped_storage().data_ptr() == layer.v.weight.untyped_storage().data_ptr()
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "4layer_model.torch") in maps
    half = load("uce", tmp_path, **written.options, dtype=torch.bfloat16)
    assert (
        half.bytes_per_token()["qk_per_layer"] * 2 == source.bytes_per_token()["qk_per_layer"] == 2 * 32 * 4
    )
