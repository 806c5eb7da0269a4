"""Time a step of BioFormers training, beside the same model on torch's attention and on torch's own layers.

Model: preset ``small`` (4 layers, 4 heads of 32, width 128), 1,000 genes, one set of random weights. Cells:
pbmc_facs_mini.h5ad, all of 1,001 tokens, so that nobody computes padding and torch takes a batch in one call. A step is
loss, gradients, their norm and AdamW; contenders take turns batch by batch, on the same hidden values; figures are
medians over batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import anndata
import numpy as np
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from machine import RESULTS, cores, describe
from scfast.attention import LayerAttention, Recorder
from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource, create
from scfast.models.bioformers_network import BioformersNetwork
from scfast.train.bioformers import Trainable
from scfast.train.fit import adamw
from scfast.train.masked_values import MaskedValues, mask_values

OURS, SAME, MODULES = "scfast", "the same model on torch SDPA", "torch's encoder layers"
GENES = 1000
CLIP = 1.0


class Batched(Recorder):
    """torch's attention, all cells in one call: they have one length."""

    @property
    def needs_output(self) -> bool:
        return True

    def attend(self, attention: LayerAttention) -> torch.Tensor:
        n_cells = len(attention.packing.lengths_q)
        parts = (attention.q, attention.k, attention.v)
        q, k, v = (x.unflatten(0, (n_cells, -1)).transpose(1, 2) for x in parts)  # [B, H, n, D]
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)


class OnSdpa(Trainable):
    """The same model on torch's attention."""

    def forward(self, batch: MaskedValues) -> torch.Tensor:
        network = self.network()
        states = network.forward(batch.tokens, Batched([]))
        return network.bin_logits(states[batch.chosen])


class OnModules(Trainable):
    """The same weights in nn.TransformerEncoder; those of the packed layers have no gradient and are passed over."""

    def __init__(self, network: BioformersNetwork) -> None:
        super().__init__(network)
        shape, inside = self.shape, "encoder."
        layer = torch.nn.TransformerEncoderLayer(
            shape.hidden, shape.n_heads, shape.intermediate, 0.0, shape.activation, batch_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, shape.n_layers, enable_nested_tensor=False)
        tensors = network.tensors.items()
        self.encoder.load_state_dict({n.removeprefix(inside): x for n, x in tensors if n.startswith(inside)})

    def forward(self, batch: MaskedValues) -> torch.Tensor:
        network = BioformersNetwork(self.shape, {n.replace("/", "."): p for n, p in self._parameters.items()})
        states = self.encoder(network.embed(batch.tokens).unflatten(0, (batch.tokens.n_cells, -1)))
        return network.bin_logits(states.flatten(0, 1)[batch.chosen])


class Trainer:
    """One contender: its own copy of the model, and an optimiser."""

    def __init__(self, model: Trainable) -> None:
        self.model = model.train()
        self.optimiser = adamw(model.parameters(), 1e-3, 0.01)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, batch: MaskedValues) -> None:
        start = time.perf_counter()
        loss = cross_entropy(self.model(batch), batch.targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(float(loss.detach()))


def read_cells(data: Path) -> tuple[BioformersSource, Tokens]:
    """A fresh model of the genes that most cells have, and the tokens of the 300 cells."""
    adata = anndata.read_h5ad(data / "cells" / "pbmc_facs_mini.h5ad")
    there = np.asarray((adata.X > 0).sum(0)).ravel()
    source = create(list(adata.var_names[np.sort(np.argsort(-there, kind="stable")[:GENES])]))
    return source, source.tokenize(adata.X, adata.var)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="test data folder"
    )
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cells", type=int, default=8, help="cells per step")
    parser.add_argument("--out", type=Path, help="folder of the result, default bench/results/<machine>")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/")
    torch.set_num_threads(options.threads)
    source, cells = read_cells(options.data / "data" if (options.data / "data").is_dir() else options.data)
    network = source.network
    trainers = {
        OURS: Trainer(Trainable(network)),
        SAME: Trainer(OnSdpa(network)),
        MODULES: Trainer(OnModules(network)),
    }
    random = np.random.default_rng(0)
    for _ in range(options.steps):
        rows = random.choice(cells.n_cells, options.cells, replace=False)
        batch = mask_values(cells.select(rows), random, rate=0.1, nonzero=0.5)
        for trainer in trainers.values():
            trainer.step(batch)

    rows = {}
    exact = trainers[SAME].losses
    for name, trainer in trainers.items():
        low, median, high = statistics.quantiles(trainer.seconds[1:], n=4)  # the first step warms up
        apart = max(abs(a - b) for a, b in zip(trainer.losses, exact, strict=True))
        pairs = zip(trainer.seconds[1:], trainers[OURS].seconds[1:], strict=True)
        slower = statistics.median(theirs / ours for theirs, ours in pairs)
        rows[name] = {
            "seconds": median, "quartiles": [low, high], "losses": trainer.losses, "loss_apart": apart,
            "times_slower": slower,
        }  # fmt: skip
        print(
            f"{name:30s} {median:7.3f} s a step, {slower:.2f} of ours, losses at most {apart:.1e} apart",
            flush=True,
        )
    here = describe()
    result = {
        "op": "bioformers_training", "machine": here,
        "model": "BioFormers, preset small, 1,000 genes, from random weights", "data": "pbmc_facs_mini.h5ad",
        "tokens_per_step": options.cells * (GENES + 1), "steps": options.steps, "threads": options.threads,
        "contenders": rows,
    }  # fmt: skip
    out = options.out or RESULTS / here["name"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "bioformers_training.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out / 'bioformers_training.json'}")


if __name__ == "__main__":
    main()
