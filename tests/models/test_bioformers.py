"""BioFormers: tokens counted by hand, states and bins against torch's own modules in float64, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfast
from scfast.attention import Recorder
from scfast.models import load
from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource, Inputs, create
from scfast.models.bioformers_network import BioformersNetwork, BioformersShape
from scfast.models.bioformers_tokens import Binning
from scfast.observables import HiddenStates, Rollout
from scfast.observables.target import Target
from scfast.reference.bin_values import segments
from tests.models.torch_bioformers import TorchBioformers

GENES = tuple(f"GENE{number}" for number in range(12))
CONDITIONS = ("KLF1", "MAP2K3")


def source_of(seed: int = 0, **changes: Any) -> BioformersSource:
    """A small model whose every weight, norms and biases too, is drawn at random."""
    sizes = {
        "n_layers": 3,
        "n_heads": 4,
        "hidden": 32,
        "intermediate": 48,
        "n_genes": len(GENES),
        "n_bins": 11,
    }
    shape = BioformersShape(**sizes, n_conditions=len(CONDITIONS), **changes)
    network = BioformersNetwork.initialised(shape, torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in network.tensors.items()
    }
    inputs = Inputs(GENES, Binning("value", 11, cutoff=4.0, target=30.0), conditions=CONDITIONS)
    return BioformersSource("bioformers:random", BioformersNetwork(shape, tensors), inputs)


def counts_of(n_cells: int = 5, seed: int = 0) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Cells of the model's genes but the last, and one gene that it does not know; the last cell is empty."""
    counts = np.random.default_rng(seed).poisson(1.5, (n_cells, len(GENES)))
    counts[-1] = 0
    return sparse.csr_matrix(counts), pd.DataFrame(index=[*GENES[:-1], "STRANGE"])


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("value_embedding", ["linear", "table"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_states_and_logits_are_those_of_torch(
    architecture: str, value_embedding: str, block: int | None
) -> None:
    source = source_of(architecture=architecture, value_embedding=value_embedding)
    tokens = source.tokenize(*counts_of(), conditions=["KLF1", None, "MAP2K3", "KLF1", None])
    values = tokens.values.clone()
    values[torch.arange(3, len(values), 5)] = -1  # to be guessed
    tokens = Tokens(**{**vars(tokens), "values": values})
    recorder = Recorder([HiddenStates()])
    (source if block is None else source.in_blocks(block)).forward(tokens, recorder)
    got = [*recorder.batch["hidden_states"]]
    got.append(source.network.bin_logits(got[-1]))
    plain, exact = (
        [part.detach() for part in TorchBioformers(source.network, dtype)(tokens)]
        for dtype in (torch.float32, torch.float64)
    )
    assert len(got) == len(exact) == source.n_layers + 2
    for ours, theirs, truth in zip(got, plain, exact, strict=True):
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 2e-6


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_tokens_by_hand(architecture: str) -> None:
    source = source_of(architecture=architecture)
    var = pd.DataFrame(index=["GENE3", "STRANGE", "GENE0", "GENE7", "GENE5"])
    counts = sparse.csr_matrix([[0, 5, 2, 9, 4], [0, 0, 0, 0, 0]])  # scaled by 30 / 20
    tokens = source.tokenize(counts, var)
    genes, values, columns = [8, 6, 1, 4], [10, 6, 3, 0], [3, 4, 2, 0]
    first, last = ([0], []) if architecture == "encoder" else ([], [0])
    cell = {"ids": [*first, *genes, *last], "values": [*first, *values, *last]}
    cell["gene_index"] = [*[-1] * len(first), *columns, *[-1] * len(last)]
    for name, expected in cell.items():
        assert getattr(tokens, name)[:5].tolist() == expected, name
    empty = [*first, 1, 4, 6, 8, *last]  # unexpressed genes in the order of the vocabulary
    assert tokens.ids[5:].tolist() == empty
    assert tokens.values[5:].tolist() == [0] * 5
    assert tokens.positions.tolist() == [0, 1, 2, 3, 4] * 2
    assert tokens.lost_vocabulary.tolist() == [1, 0]
    assert tokens.lost_truncation.tolist() == [0, 0]
    assert tokens.external.tolist() == [0] * 10


def test_columns_of_one_gene_are_added_up_and_the_smallest_counts_are_cut_off() -> None:
    genes = ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"]
    source = create(genes, zero_genes=False, binning=Binning("value", 12))
    var = pd.DataFrame(index=["ENSG00000000002.4", "ENSG00000000001", "ENSG00000000002"])
    tokens = source.tokenize(sparse.csr_matrix([[3, 4, 2], [0, 7, 0]]), var)
    assert tokens.lengths == (3, 2)
    assert tokens.ids.tolist() == [0, 2, 1, 0, 1]
    assert tokens.values.tolist() == [0, 5, 4, 0, 7]
    assert tokens.gene_index.tolist() == [-1, 2, 1, -1, 1]
    short = BioformersSource("short", source.network, Inputs(tuple(genes), Binning("value", 12), False, 2))
    tokens = short.tokenize(sparse.csr_matrix([[3, 4, 2], [0, 7, 0]]), var)
    assert tokens.ids.tolist() == [0, 2, 0, 1]
    assert tokens.lost_truncation.tolist() == [1, 0]


@pytest.mark.parametrize("zero_genes", [True, False])
@pytest.mark.parametrize("mode", ["segment", "value", "quantile"])
def test_tokens_of_real_cells(shared: Path, mode: str, zero_genes: bool) -> None:
    adata = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")[:30]
    genes = list(adata.var_names[::17])
    source = create(genes, binning=Binning(mode, 12), zero_genes=zero_genes)
    tokens = source.tokenize(adata.X, adata.var)
    chosen = adata[:, genes].X.toarray()
    for cell, (ids, values) in enumerate(
        zip(tokens.packing.split_q(tokens.ids), tokens.packing.split_q(tokens.values), strict=True)
    ):
        counts = chosen[cell, ids[1:].numpy() - 1]
        assert (np.diff(counts) <= 0).all()
        assert len(np.unique(ids)) == len(ids)
        assert len(counts) == (len(genes) if zero_genes else (chosen[cell] > 0).sum())
        bins = values[1:].numpy()
        assert ((bins > 0) == (counts > 0)).all()
        if mode == "segment":
            np.testing.assert_array_equal(bins[counts > 0], segments(counts[counts > 0], 12))
        elif mode == "value":
            np.testing.assert_array_equal(bins[counts <= 8], counts[counts <= 8])
    apart = [source.tokenize(adata.X[rows], adata.var) for rows in (slice(0, 13), slice(13, 30))]
    assert torch.equal(torch.cat([part.values for part in apart]), tokens.values)
    assert torch.equal(torch.cat([part.ids for part in apart]), tokens.ids)


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_files_bring_back_the_model(tmp_path: Path, architecture: str) -> None:
    source = source_of(architecture=architecture, value_embedding="table")
    source.save(tmp_path / "model")
    back = load("bioformers", tmp_path / "model")
    assert isinstance(back, BioformersSource)
    assert back.name == "bioformers:model"
    assert back.inputs == Inputs(GENES, source.inputs.binning, max_tokens=13, conditions=CONDITIONS)
    assert back.network.shape == source.network.shape
    for name, tensor in source.network.tensors.items():
        assert torch.equal(back.network.tensors[name], tensor), name
    counts, var = counts_of()
    one, two = source.tokenize(counts, var), back.tokenize(counts, var)
    assert torch.equal(one.values, two.values)
    assert load("bioformers", tmp_path / "model", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_decoder_reads_the_cell_at_its_end() -> None:
    counts, var = counts_of(2)
    for architecture, place in (("encoder", 0), ("decoder", -1)):
        source = source_of(architecture=architecture)
        tokens = source.tokenize(counts, var)
        recorder = Recorder([Rollout("cls"), HiddenStates()], backend="reference")
        source.forward(tokens, recorder)
        for scores, ids in zip(recorder["rollout"], tokens.packing.split_q(tokens.ids), strict=True):
            assert int(ids[place]) == 0
            assert float(scores.sum()) == pytest.approx(1, abs=1e-5)
            assert (scores > 0).all()  # <cls> sees every gene
    # what stands behind a token cannot reach it
    longer = recorder.batch["hidden_states"][-1][:5]
    cut = tokens.keep(np.arange(tokens.n_tokens) < 5)
    source.forward(cut, recorder)
    # Equal to the bit where it was measured; products of other sizes may round otherwise.
    torch.testing.assert_close(recorder.batch["hidden_states"][-1], longer, atol=1e-6, rtol=0)


def test_analyses_run_on_it() -> None:
    counts, var = counts_of(20)
    obs = pd.DataFrame({"group": ["a", "b"] * 10}, index=[str(i) for i in range(20)])
    adata = anndata.AnnData(counts.astype(np.float32), obs, var)[:19].copy()
    for architecture in ("encoder", "decoder"):
        source = source_of(architecture=architecture)
        scfast.tl.embed(adata, source)
        assert any(value.shape == (19, 32) for value in adata.obsm.values())
        scores = scfast.tl.rollout(adata, source, groupby="group", copy=True)
        assert scores is not None
        relevance = scfast.tl.relevance(adata, source, target="gene:GENE3", groupby="group", copy=True)
        assert relevance is not None


def test_the_target_is_the_bin_that_the_head_expects() -> None:
    source = source_of()
    counts, var = counts_of(3)
    tokens = source.tokenize(counts, var)
    recorder = Recorder([HiddenStates()])
    source.forward(tokens, recorder)
    states = recorder.batch["hidden_states"][-1]
    target = source.check_target(Target("gene", "GENE3"), list(var.index))
    own = torch.nonzero(tokens.gene_index == 3)[:, 0]
    expected = source.network.bin_logits(states)[own].double().softmax(-1) @ torch.arange(11.0).double()
    # 6e-7 apart as measured, of bins up to 10.
    torch.testing.assert_close(
        source.target_values(target, tokens, states).double(), expected, atol=5e-6, rtol=0
    )


def test_fresh_weights_are_others_for_another_seed() -> None:
    source = source_of()
    one, again, other = source.untrained(1), source.untrained(1), source.untrained(2)
    name = "embeddings.gene.weight"
    assert torch.equal(one.network.tensors[name], again.network.tensors[name])
    assert not torch.equal(one.network.tensors[name], other.network.tensors[name])
    assert one.inputs == source.inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type='bioformers'"),
        ({"num_hidden_layers": None}, "n_layers must be a whole number from 1, got None"),
        ({"num_attention_heads": 5}, "hidden 32 is not divisible by n_heads 5"),
        ({"architecture": "both"}, "architecture='both' is unknown; use one of 'encoder', 'decoder'"),
        ({"value_embedding": "sum"}, "value_embedding='sum' is unknown"),
        ({"hidden_act": "tanh"}, "activation='tanh' is unknown"),
        ({"binning": {"mode": "log"}}, "binning=.*mode='log' is unknown"),
        ({"binning": {"bins": 3}}, "binning=.*unexpected keyword argument 'bins'"),
        ({"binning": {"mode": "value", "n_bins": 12}}, r"head.output.weight has shape \(11, 32\)"),
        ({"conditions": ["KLF1"]}, r"embeddings.external.weight has shape \(3, 32\)"),
    ],
)
def test_configurations_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source_of().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load("bioformers", tmp_path)


def test_bad_input_is_named(tmp_path: Path) -> None:
    source, (counts, var) = source_of(), counts_of()
    with pytest.raises(ValueError, match=r"condition 'ELP' is unknown.*'KLF1', 'MAP2K3'"):
        source.tokenize(counts, var, conditions=["ELP"] * 5)
    with pytest.raises(ValueError, match="conditions names 2 cells; there are 5"):
        source.tokenize(counts, var, conditions=["KLF1"] * 2)
    with pytest.raises(ValueError, match="no gene of the data is in the model's vocabulary"):
        source.tokenize(counts, pd.DataFrame(index=[f"X{i}" for i in range(12)]))
    with pytest.raises(ValueError, match="predicts values of genes: use target='gene:NAME'"):
        source.check_target(Target("class", "B cell"))
    with pytest.raises(ValueError, match="genes holds 1 names more than once"):
        create(["A", "A"])
    with pytest.raises(ValueError, match="preset='huge' is unknown; use one of 'small', 'paper'"):
        create(["A"], preset="huge")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load("bioformers", tmp_path)
    source.save(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<cls>": 0, "A": 2}')
    with pytest.raises(ValueError, match="must number <cls> 0 and its genes from 1, each once"):
        load("bioformers", tmp_path)
    with pytest.raises(TypeError, match=r"dtype=torch\.int64 cannot be run"):
        load("bioformers", tmp_path, dtype=torch.int64)
