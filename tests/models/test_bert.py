"""The packed forward is transformers' forward without the padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scfast import Packing
from scfast.attention import Recorder
from scfast.models import load
from scfast.models.base import Tokens
from scfast.models.geneformer import GeneformerSource
from tests.models import fixtures
from tests.models.standins import SoftmaxRecorder

LENGTHS = (17, 1, 64, 33, 0, 7)


def random_tokens(lengths: tuple[int, ...], vocabulary: int, seed: int = 0) -> Tokens:
    total = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        ids=torch.randint(2, vocabulary, (total,), generator=generator),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        packing=Packing.from_lengths(lengths),
        gene_index=torch.arange(total),
        kind=torch.zeros(total, dtype=torch.uint8),
        lost_vocabulary=torch.zeros(len(lengths), dtype=torch.int64),
        lost_truncation=torch.zeros(len(lengths), dtype=torch.int64),
    )


def padded_run(source: GeneformerSource, tokens: Tokens) -> list[torch.Tensor]:
    """Hidden states of transformers' model, padded on the right with 0 and masked, then laid end to end."""
    cells = [cell for cell in tokens.packing.split_q(tokens.ids) if len(cell)]
    ids = torch.nn.utils.rnn.pad_sequence(cells, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(cell), dtype=torch.long) for cell in cells], True)
    with torch.no_grad():
        states = source.hf()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return [torch.cat([s[: len(cell)] for s, cell in zip(state, cells, strict=True)]) for state in states]


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
def test_hidden_states_are_those_of_transformers(tmp_path: Path, activation: str) -> None:
    source = load("geneformer", fixtures.write_v2(tmp_path, hidden_act=activation))
    tokens = random_tokens(LENGTHS, 44)
    recorder = SoftmaxRecorder()
    source.forward(tokens, recorder)
    expected = padded_run(source, tokens)
    assert sorted(recorder.states) == list(range(source.n_layers + 1))
    for layer, states in enumerate(expected):
        torch.testing.assert_close(recorder.states[layer], states, atol=1e-5, rtol=0)


def test_hidden_states_at_the_shape_of_v1_10m(tmp_path: Path) -> None:
    folder = fixtures.write_v1(
        tmp_path,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        max_position_embeddings=2048,
        vocab_size=2000,
    )
    source = load("geneformer", folder)
    tokens = random_tokens((300, 41, 128), 2000)
    recorder = SoftmaxRecorder()
    source.forward(tokens, recorder)
    for layer, states in enumerate(padded_run(source, tokens)):
        torch.testing.assert_close(recorder.states[layer], states, atol=1e-5, rtol=0)


def test_the_last_layer_stops_after_q_and_k(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    tokens = random_tokens(LENGTHS, 42)
    whole, short = SoftmaxRecorder(), SoftmaxRecorder(needs_output=False, hidden=False)
    source.forward(tokens, whole)
    source.forward(tokens, short)
    assert whole.saw_v == [True, True, True]
    assert short.saw_v == [True, True, False]
    assert short.finished
    for ours, theirs in zip(short.maps, whole.maps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_the_recorder_hears_what_the_tokens_are(tmp_path: Path) -> None:
    tokens = random_tokens(LENGTHS, 42)
    for write, cls_position in ((fixtures.write_v1, None), (fixtures.write_v2, 0)):
        recorder = SoftmaxRecorder()
        load("geneformer", write(tmp_path / write.__name__)).forward(tokens, recorder)
        assert recorder.begun["cls_position"] == cls_position
        assert recorder.begun["n_layers"] == 3
        assert recorder.begun["kind"] is tokens.kind
        assert recorder.begun["gene_index"] is tokens.gene_index


def test_a_real_recorder_runs_it(tmp_path: Path) -> None:
    from scfast.observables import HiddenStates, Rollout

    source = load("geneformer", fixtures.write_v2(tmp_path))
    tokens = random_tokens((9, 20), 44)
    recorder = Recorder([Rollout("cls"), HiddenStates()], backend="reference")
    source.forward(tokens, recorder)
    for scores in recorder["rollout"]:
        assert float(scores.sum()) == pytest.approx(1, abs=1e-5)
    assert not recorder.batch["rollout"].requires_grad
    recorder.batch["rollout"] += 0  # an inference-mode tensor would refuse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = fixtures.write_v1(tmp_path)
    source, exact = load("geneformer", folder, dtype=dtype), load("geneformer", folder)
    tokens = random_tokens((30,), 42)
    got, wanted = SoftmaxRecorder(), SoftmaxRecorder()
    source.forward(tokens, got)
    exact.forward(tokens, wanted)
    assert source.dtype == got.states[3].dtype == dtype
    with torch.no_grad():
        plain = source.hf().eval().bert(input_ids=tokens.ids[None]).last_hidden_state[0]
    # the rule of precision: at most twice the error of plain torch in the same dtype
    error = (got.states[3].float() - wanted.states[3]).abs().max()
    assert error <= 2 * (plain.float() - wanted.states[3]).abs().max()


def test_a_cell_longer_than_the_context_is_an_error(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    with pytest.raises(ValueError, match=r"a cell has 65 tokens; .* takes 64"):
        source.forward(random_tokens((65,), 42), SoftmaxRecorder())


def test_untrained_is_seeded_and_initialised_as_transformers_does(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    source = load("geneformer", fixtures.write_v1(tmp_path, hidden_size=128, intermediate_size=256))
    null = source.untrained(3)
    again, other = source.untrained(3), source.untrained(4)
    theirs = BertForMaskedLM(BertConfig(**source.config)).state_dict()
    for name, tensor in null.encoder.tensors.items():
        assert tensor.shape == theirs[name].shape
        chance = 6 * 0.02 * tensor.numel() ** -0.5  # of a mean of normals of spread 0.02, six sigma
        assert float(tensor.mean()) == pytest.approx(float(theirs[name].mean()), abs=chance), name
        assert float(tensor.std()) == pytest.approx(float(theirs[name].std()), abs=chance), name
        assert torch.equal(tensor, again.encoder.tensors[name])
    word = "bert.embeddings.word_embeddings.weight"
    assert not null.encoder.tensors[word][0].any()
    assert not torch.equal(null.encoder.tensors[word], other.encoder.tensors[word])
    assert (null.genes, null.max_tokens, null.n_layers) == (source.genes, source.max_tokens, source.n_layers)


def test_memory_figures_cover_the_forward(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    costs = source.bytes_per_token()
    assert costs["qk_per_layer"] == 2 * 32 * 4
    assert costs["hidden"] == 32 * 4
    assert costs["activations"] >= 6 * 32 * 4
    half = load("geneformer", tmp_path, dtype=torch.bfloat16).bytes_per_token()
    assert half["qk_per_layer"] * 2 == costs["qk_per_layer"]


def test_q_and_k_share_their_storage_and_leave_v_free(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    seen = []

    class Keeper(SoftmaxRecorder):
        def attend(self, attention):  # type: ignore[no-untyped-def]
            seen.append(attention)
            return super().attend(attention)

    source.forward(random_tokens((8,), 42), Keeper())
    storage = seen[0].q.untyped_storage()
    assert storage.data_ptr() == seen[0].k.untyped_storage().data_ptr()
    assert storage.nbytes() == 8 * 2 * 32 * 4
