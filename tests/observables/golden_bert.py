"""The tiny BERTs of the golden files, run by transformers and by scfast's own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

import scfast
from scfast.attention import Recorder
from scfast.models.base import Tokens
from scfast.models.bert import BertEncoder
from scfast.models.bert_shape import BertShape
from scfast.observables import Observable

#: float32 models against the float64 outputs; the f32 outputs of the authors' own code differ by up to 1e-6.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


class GoldenBert:
    """One golden file: its model, its input and its arrays, rows and columns of pads left out."""

    def __init__(self, shared: Path, name: str) -> None:
        self.arrays = np.load(shared / "golden" / f"{name}.npz")
        vocabulary, hidden, layers, heads, intermediate, _ = self.arrays["in/params"].tolist()
        self.n_layers = layers
        self.config = {
            "model_type": "bert", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": intermediate, "max_position_embeddings": 64,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        }  # fmt: skip
        self.ids = torch.from_numpy(self.arrays["in/input_ids"])
        self.mask = torch.from_numpy(self.arrays["in/attention_mask"])
        self.lengths = self.mask.sum(1).tolist()
        self.state = {
            key.removeprefix("sd/").replace("/", "."): torch.from_numpy(self.arrays[key])
            for key in self.arrays.files
            if key.startswith("sd/") and not key.endswith("position_ids")
        }

    def expected(self, key: str, dims: int = 2) -> list[torch.Tensor]:
        """float64 per cell; the last ``dims`` dimensions run over tokens."""
        array = torch.from_numpy(self.arrays[f"f64/{key}"]).double()
        return [row[(..., *[slice(n)] * dims)] for row, n in zip(array, self.lengths, strict=True)]

    def every_row(self) -> torch.Tensor:
        """[n, T]: one readout per row of the longest cell's map."""
        longest = max(self.lengths)
        return torch.cat([torch.eye(longest)[:, :n] for n in self.lengths], dim=1)

    def run(self, by: str, *observables: Observable, backend: str) -> Recorder:
        """Record the batch ``by`` "transformers" or "scfast"."""
        return getattr(self, f"_{by}")(observables, backend)

    def _transformers(self, observables: Sequence[Observable], backend: str) -> Recorder:
        config = {key: value for key, value in self.config.items() if key != "model_type"}
        model = transformers.BertModel(transformers.BertConfig(**config)).eval()
        model.load_state_dict(self.state)
        with torch.no_grad(), scfast.record(model, *observables, backend=backend) as rec:
            model(input_ids=self.ids, attention_mask=self.mask)
        return rec

    def _scfast(self, observables: Sequence[Observable], backend: str) -> Recorder:
        shape = BertShape.from_config(self.config, "golden")
        encoder = BertEncoder.from_checkpoint(shape, self.state, torch.float32, "golden")
        ids = self.ids[self.mask.bool()]
        packing = scfast.Packing.from_lengths(self.lengths)
        tokens = Tokens(
            ids=ids,
            positions=packing.position_of_query(),
            packing=packing,
            gene_index=torch.arange(len(ids)),
            kind=torch.zeros(len(ids), dtype=torch.uint8),
            lost_vocabulary=torch.zeros(len(self.lengths), dtype=torch.int64),
            lost_truncation=torch.zeros(len(self.lengths), dtype=torch.int64),
        )
        recorder = Recorder(observables, backend=backend)
        with torch.no_grad():
            recorder.begin(self.n_layers, packing, cls_position=0)
            encoder.forward(tokens, recorder)
            recorder.finish()
        return recorder
