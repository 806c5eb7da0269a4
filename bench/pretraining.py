"""Time a step of masked-gene pretraining on packed real cells, beside torch's own attention, packed and padded.

Model: the shape of Geneformer V1-10M from random weights, without dropout, so that every contender takes the same
steps. Cells: pbmc_facs_mini.h5ad in random batches. A step is loss, gradients and optimiser; contenders take turns
batch by batch, on the same masked genes; figures are medians over batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertForMaskedLM

import scfast
from end_to_end import write_checkpoint
from machine import RESULTS, cores, describe
from scfast.train.masked_loss import masked_loss
from scfast.train.masking import MaskedBatch, TokenisedCells, mask_batch, random_batches

OURS, PACKED, PADDED = "scfast, packed", "torch SDPA, packed", "torch SDPA, padded"
IMPLEMENTATION = {OURS: "scfast", PACKED: "sdpa_by_cell", PADDED: "sdpa"}
VOCABULARY = 25_426
RULE = {"rate": 0.15, "vocabulary_size": VOCABULARY, "mask": 1, "n_special": 2}


def sdpa_by_cell(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None, **kwargs: Any
) -> Any:
    """torch's attention on [1, H, T, D] packed cells, one call a cell."""
    lengths = kwargs["cu_seq_lens_q"].diff().tolist()
    cells = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    out = torch.cat([scaled_dot_product_attention(*cell) for cell in cells], dim=2)
    return out.transpose(1, 2), None


AttentionInterface.register("sdpa_by_cell", sdpa_by_cell)
AttentionMaskInterface.register("sdpa_by_cell", lambda *args, **kwargs: None)


def read_cells(data: Path, folder: Path) -> TokenisedCells:
    """The 300 cells, tokenised with the published dictionary."""
    adata = anndata.read_h5ad(data / "cells" / "pbmc_facs_mini.h5ad")
    tokens = scfast.models.load("geneformer", folder).tokenize(adata.X, adata.var)
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths)])
    return TokenisedCells(tokens.ids.numpy(), offsets)


def padded_loss(model: BertForMaskedLM, batch: MaskedBatch) -> torch.Tensor:
    """The same loss by the same model on padded cells."""
    ids = pad_sequence(batch.packing.split_q(batch.ids), batch_first=True)
    states = model.bert(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state
    cell = batch.packing.cell_of_query()[batch.chosen]
    place = batch.packing.position_of_query()[batch.chosen]
    return cross_entropy(model.cls(states[cell, place]), batch.targets)


class Trainer:
    """One contender: its own copy of the model, and an optimiser."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
            intermediate_size=512, max_position_embeddings=2048, hidden_act="relu", pad_token_id=0,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        config._attn_implementation = IMPLEMENTATION[name]
        self.model = BertForMaskedLM(config).train()
        self.loss: Callable[..., torch.Tensor] = padded_loss if name == PADDED else masked_loss
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, batch: MaskedBatch) -> None:
        start = time.perf_counter()
        loss = self.loss(self.model, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(float(loss.detach()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="test data folder"
    )
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step")
    parser.add_argument("--out", type=Path, help="folder of the result, default bench/results/<machine>")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    data = options.data / "data" if (options.data / "data").is_dir() else options.data
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), data)
        cells = read_cells(data, Path(folder))
    random = np.random.default_rng(0)
    batches = random_batches(cells.lengths, options.tokens, random)[: options.steps]
    trainers = {name: Trainer(name) for name in IMPLEMENTATION}
    for rows in batches:
        batch = mask_batch(cells, rows, random, **RULE)
        for trainer in trainers.values():
            trainer.step(batch)

    rows = {}
    exact = trainers[PACKED].losses
    for name, trainer in trainers.items():
        low, median, high = statistics.quantiles(trainer.seconds[1:], n=4)  # the first step warms up
        apart = max(abs(a - b) for a, b in zip(trainer.losses, exact, strict=True))
        rows[name] = {
            "seconds": median,
            "quartiles": [low, high],
            "losses": trainer.losses,
            "loss_apart": apart,
        }
        print(
            f"{name:24s} {median:7.3f} s a step, loss {trainer.losses[-1]:.4f}, at most {apart:.1e} apart",
            flush=True,
        )
    for name in (PACKED, PADDED):
        ratios = [a / b for a, b in zip(trainers[name].seconds[1:], trainers[OURS].seconds[1:], strict=True)]
        rows[name]["times_slower"] = statistics.median(ratios)
        print(f"{name} takes {statistics.median(ratios):.2f} times as long")
    here = describe()
    result = {
        "op": "pretraining", "machine": here, "model": "Geneformer V1-10M shape, from random weights",
        "data": "pbmc_facs_mini.h5ad", "tokens_per_step": options.tokens, "steps": len(batches),
        "threads": options.threads, "contenders": rows,
    }  # fmt: skip
    out = options.out or RESULTS / here["name"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "pretraining.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out / 'pretraining.json'}")


if __name__ == "__main__":
    main()
