"""Time the rollout of real cells against the plain forward pass, and against the maps in padded batches.

Model: the shape of Geneformer V1-10M with random weights. Cells: all 300 of pbmc_facs_mini.h5ad. Contenders
take turns; every figure is a median over rounds. The padded batches of whole maps are slow, so by default
they run on evenly spaced batches of the same 300 cells, and their time is multiplied by (all batches /
batches run).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

import scfast
from machine import RESULTS, cores, describe, peak_growth
from scfast.observables import Rollout

PLAIN = "torch SDPA forward, packed linear layers"
PLAIN_BY_CELL = "torch SDPA forward, one cell a call"
OURS = "scfast.tl.rollout"
RECORD = "scfast.record around the model"
HF = "scfast.tl.rollout, Hugging Face checkpoint"
WRAPPED = "scfast.tl.rollout, torch's own encoder wrapped"
MAPS = "eager maps and matrix rollout, batches of 8 as they come"
MAPS_SORTED = "eager maps and matrix rollout, batches of 8 by length"
RESIDUAL = 0.5
PADDED_BATCH = 8
PACKED_TOKENS = 16_384  # of one packed batch

#: Per-cell scores of the tokens; None where the contender computes no scores.
Scores = list[np.ndarray] | None


def write_checkpoint(folder: Path, data: Path) -> None:
    """Geneformer V1-10M's shape with random weights, and the published token table beside it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=25426, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=2048, hidden_act="relu", pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    shutil.copy(data / "geneformer" / "v1_gc30M_tokens.csv.gz", folder / "token_dictionary.csv.gz")


class TorchEncoder(torch.nn.Module):
    """The same model as a person would write it with torch's own layers."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        config = bert.config
        layer = torch.nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, batch_first=True,
            layer_norm_eps=config.layer_norm_eps,
        )  # fmt: skip
        self.embeddings = bert.embeddings
        self.encoder = torch.nn.TransformerEncoder(
            layer, config.num_hidden_layers, enable_nested_tensor=False
        )
        for mine, theirs in zip(self.encoder.layers, bert.encoder.layer, strict=True):
            own = (theirs.attention.self.query, theirs.attention.self.key, theirs.attention.self.value)
            mine.self_attn.in_proj_weight.data = torch.cat([part.weight for part in own])
            mine.self_attn.in_proj_bias.data = torch.cat([part.bias for part in own])
            mine.self_attn.out_proj, mine.norm1 = (
                theirs.attention.output.dense,
                theirs.attention.output.LayerNorm,
            )
            mine.linear1, mine.linear2 = theirs.intermediate.dense, theirs.output.dense
            mine.norm2 = theirs.output.LayerNorm

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embeddings(input_ids=ids, position_ids=positions))


class Bench:
    """The model, the cells, and one method per contender; each takes the numbers of the cells to run."""

    def __init__(self, folder: Path, data: Path, n_cells: int | None) -> None:
        self.adata = anndata.read_h5ad(data / "cells" / "pbmc_facs_mini.h5ad")
        if n_cells is not None:  # the shortest cells: only to prove that it runs
            self.adata = self.adata[np.argsort((self.adata.X > 0).sum(1).A1)[:n_cells]].copy()
        self.source = scfast.models.load("geneformer", folder)
        tokens = self.source.tokenize(self.adata.X, self.adata.var)
        self.tokens = tokens
        self.ids = list(tokens.packing.split_q(tokens.ids))
        self.lengths = np.array(tokens.lengths)
        self.sdpa, self.eager = (
            BertModel.from_pretrained(folder, attn_implementation=name, add_pooling_layer=False).eval()
            for name in ("sdpa", "eager")
        )
        self.hf = scfast.models.load("hf", folder)
        self.wrapped = scfast.models.wrap(
            TorchEncoder(self.sdpa).eval(), call=lambda model, batch: model(batch.ids, batch.positions),
            max_tokens=2048, packed=True,
        )  # fmt: skip

    def contenders(self) -> dict[str, Callable[[np.ndarray], Scores]]:
        """Name -> method."""
        return {
            OURS: self.rollout,
            HF: self.rollout_hf,
            WRAPPED: self.rollout_wrapped,
            RECORD: self.record,
            PLAIN: self.plain_packed,
            PLAIN_BY_CELL: self.plain_by_cell,
            MAPS: self.maps,
            MAPS_SORTED: self.maps,
        }

    def batches(self, name: str) -> list[np.ndarray]:
        """Cells of each padded batch."""
        order = np.arange(len(self.ids))
        if name == MAPS_SORTED:
            order = np.argsort(self.lengths, kind="stable")
        return [order[start : start + PADDED_BATCH] for start in range(0, order.size, PADDED_BATCH)]

    def packed_batches(self, cells: np.ndarray) -> list[np.ndarray]:
        """Cells of each packed batch, longest first."""
        batches: list[list[int]] = [[]]
        for cell in cells[np.argsort(-self.lengths[cells], kind="stable")]:
            if batches[-1] and self.lengths[batches[-1]].sum() + self.lengths[cell] > PACKED_TOKENS:
                batches.append([])
            batches[-1].append(int(cell))
        return [np.array(batch) for batch in batches]

    # no analysis
    def plain_by_cell(self, cells: np.ndarray) -> Scores:
        for cell in cells:
            self.sdpa(input_ids=self.ids[cell][None])
        return None

    def plain_packed(self, cells: np.ndarray) -> Scores:
        for batch in self.packed_batches(cells):
            tokens = self.tokens.select(batch)
            x = self.sdpa.embeddings(input_ids=tokens.ids[None], position_ids=tokens.positions[None])[0]
            for layer in self.sdpa.encoder.layer:
                x = layer.output(layer.intermediate(y := self.attend(layer, x, tokens.lengths)), y)
        return None

    def attend(self, layer: Any, x: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Self-attention of one layer on packed x [T, d]; torch's SDPA cell by cell."""
        heads = self.sdpa.config.num_attention_heads
        own = layer.attention.self
        qkv = (
            part(x).view(x.shape[0], heads, -1).transpose(0, 1) for part in (own.query, own.key, own.value)
        )
        cells = zip(*(part.split(lengths, dim=1) for part in qkv), strict=True)  # [H, n, D] each
        out = [scaled_dot_product_attention(*(part[None] for part in cell))[0] for cell in cells]
        return layer.attention.output(torch.cat(out, dim=1).transpose(0, 1).reshape(x.shape), x)

    # ours
    def rollout(self, cells: np.ndarray) -> Scores:
        return self.scores_of(self.source, cells)

    def rollout_hf(self, cells: np.ndarray) -> Scores:
        return self.scores_of(self.hf.with_tokens(self.tokens.select(cells)), cells)

    def rollout_wrapped(self, cells: np.ndarray) -> Scores:
        return self.scores_of(self.wrapped.with_tokens(self.tokens.select(cells)), cells)

    def scores_of(self, source: Any, cells: np.ndarray) -> Scores:
        adata = self.adata if cells.size == self.adata.n_obs else self.adata[cells].copy()
        scfast.tl.rollout(adata, source, readout="mean", residual=RESIDUAL, null=None, progress=False)
        scores = adata.layers["rollout"]
        genes = self.tokens.packing.split_q(self.tokens.gene_index)
        return [scores[row].toarray()[0, genes[cell].numpy()] for row, cell in enumerate(cells)]

    def record(self, cells: np.ndarray) -> Scores:
        batches = self.packed_batches(cells)
        with scfast.record(self.sdpa, Rollout("mean", residual=RESIDUAL)) as recorded:
            for batch in batches:
                tokens = self.tokens.select(batch)
                bounds, longest = tokens.packing.cu_seqlens_q, max(tokens.lengths)
                self.sdpa(
                    input_ids=tokens.ids[None], position_ids=tokens.positions[None],
                    cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=longest, max_length_k=longest,
                )  # fmt: skip
        order = np.argsort(np.concatenate(batches), kind="stable")
        found = [recorded["rollout"][place].numpy() for place in order]
        return [found[place] for place in np.searchsorted(np.sort(cells), cells)]

    # whole maps, as one writes it today
    def maps(self, cells: np.ndarray) -> Scores:
        scores: list[np.ndarray] = []
        for start in range(0, cells.size, PADDED_BATCH):
            batch = cells[start : start + PADDED_BATCH]
            ids = torch.nn.utils.rnn.pad_sequence([self.ids[cell] for cell in batch], batch_first=True)
            mask = (torch.arange(ids.shape[1]) < torch.from_numpy(self.lengths[batch])[:, None]).long()
            attentions = self.eager(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
            product = matrix_rollout(attentions)
            readout = mask / mask.sum(1, keepdim=True)
            rows = torch.einsum("bi,bij->bj", readout.to(product.dtype), product)
            scores += [row[:n].numpy() for row, n in zip(rows, self.lengths[batch], strict=True)]
        return scores

    def exact(self, cell: int) -> np.ndarray:
        """Scores of one cell in float64, from its maps."""
        model = self.eager.double()
        attentions = model(input_ids=self.ids[cell][None], output_attentions=True).attentions
        scores = matrix_rollout(attentions)[0].mean(0).numpy()
        self.eager.float()
        return scores


def matrix_rollout(attentions: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """[B, n, n]: the product over layers of a A + (1 - a) I, A the mean over heads of [B, H, n, n]."""
    product = None
    for layer in attentions:
        step = RESIDUAL * layer.mean(1)
        step.diagonal(dim1=1, dim2=2).add_(1 - RESIDUAL)
        product = step if product is None else step @ product
    assert product is not None
    return product


def chosen(bench: Bench, name: str, slow_batches: int) -> tuple[np.ndarray, float]:
    """The cells that a contender runs, and the factor that makes its time one for all cells."""
    if name not in (MAPS, MAPS_SORTED):
        return np.arange(len(bench.ids)), 1.0
    batches = bench.batches(name)
    slow_batches = slow_batches or len(batches)
    picked = np.unique(np.linspace(0, len(batches) - 1, min(slow_batches, len(batches))).round().astype(int))
    return np.concatenate([batches[i] for i in picked]), len(batches) / picked.size


def compare(bench: Bench, cells: np.ndarray, scores: Scores) -> dict[str, float] | None:
    """Error against float64 on the three shortest cells that ran, relative to the largest exact score."""
    if scores is None:
        return None
    worst, mean = 0.0, 0.0
    for place in np.argsort(bench.lengths[cells], kind="stable")[:3]:
        exact = bench.exact(int(cells[place]))
        off = np.abs(scores[place] - exact) / exact.max()
        worst, mean = max(worst, off.max()), max(mean, off.mean())
    return {"max": float(worst), "mean": float(mean)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="test data folder"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--slow-batches", type=int, default=6, help="batches of whole maps to run; 0: all")
    parser.add_argument("--cells", type=int, help="the shortest few cells, to prove that it runs")
    parser.add_argument(
        "--only", nargs="+",
        help="contenders whose name contains one of these; a result that is there gets those that it lacks",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--only-memory", action="store_true", help="add peak memory to a result that is there; needs no quiet"
    )
    parser.add_argument("--out", type=Path, help="folder of the result, default bench/results/<machine>")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    data = options.data / "data" if (options.data / "data").is_dir() else options.data
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()  # the language-model head that BertModel leaves out is no news
    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), data)
        bench = Bench(Path(folder), data, options.cells)
    runs = bench.contenders()
    if options.peak:
        cells, _ = chosen(bench, options.peak, options.slow_batches)
        runs[options.peak](cells[np.argmin(bench.lengths[cells])][None])  # threads and lazy imports
        print(peak_growth(lambda: runs[options.peak](cells)))
        return
    if options.only:
        runs = {name: run for name, run in runs.items() if any(word in name for word in options.only)}

    if options.only_memory:
        add_memory((options.out or RESULTS / describe()["name"]) / "end_to_end.json", list(runs))
        return

    row: dict[str, Any] = {}
    plans = {name: chosen(bench, name, options.slow_batches) for name in runs}
    for name, run in runs.items():  # threads and lazy imports
        run(plans[name][0][np.argsort(bench.lengths[plans[name][0]])[:2]])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            cells, scale = plans[name]
            start = time.perf_counter()
            scores = run(cells)
            times[name].append((time.perf_counter() - start) * scale)
            row[name] = {"cells": int(cells.size), "scale": scale, "error": compare(bench, cells, scores)}
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        row[name] |= {"seconds": median, "quartiles": [low, high]}
        if not options.no_memory:
            row[name]["peak_bytes"] = peak_elsewhere(name)
        print(f"{name:56s} {median:9.2f} s  {row[name]['error']}  {row[name].get('peak_bytes')}", flush=True)

    here = describe()
    quantiles = np.percentile(bench.lengths, [0, 50, 100])
    lengths = {q: float(v) for q, v in zip(("min", "median", "max"), quantiles, strict=True)}
    result = {
        "op": "end_to_end", "machine": here, "model": "Geneformer V1-10M shape, random weights",
        "data": "pbmc_facs_mini.h5ad", "cells": len(bench.ids), "tokens": lengths,
        "threads": options.threads, "rounds": options.rounds, "contenders": row,
    }  # fmt: skip
    out = options.out or RESULTS / here["name"]
    out.mkdir(parents=True, exist_ok=True)
    file = out / "end_to_end.json"
    if options.only and file.exists():
        before = json.loads(file.read_text())
        for name in row.keys() - before["contenders"].keys():  # our time in the same run stands beside them
            before["contenders"][name] = row[name] | {"ours": row[OURS]["seconds"] if OURS in row else None}
        result = before
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file}")


def add_memory(file: Path, names: list[str]) -> None:
    """Measure peak memory for the contenders of a result, and write it back."""
    result = json.loads(file.read_text())
    for name in names:
        result["contenders"][name]["peak_bytes"] = peak_elsewhere(name)
        print(f"{name:56s} {result['contenders'][name]['peak_bytes'] / 1e9:.2f} GB", flush=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def peak_elsewhere(name: str) -> int:
    """Peak memory growth of one contender, in bytes, in a process of its own."""
    command = [sys.executable, *sys.argv, "--peak", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
