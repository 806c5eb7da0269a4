"""Time the rollout of whole cells in published shapes against the plain forward of the same layers, unpadded.

Weights are random. The plain forward is that of ``torch.nn.TransformerEncoder`` in inference, cell by cell, so without
pads and on torch's fused path; embeddings are left out of it. Contenders take turns; every figure is a median over
rounds, every ratio one of times of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from machine import RESULTS, cores, describe
from scfast import Packing
from scfast.attention import Recorder
from scfast.models import AttentionSource, Tokens, torch_layers
from scfast.models.scgpt import ScgptSource, genes_of
from scfast.models.scgpt_tokens import Rules
from scfast.models.scgpt_weights import ScgptNetwork, ScgptShape
from scfast.models.uce import UceSource
from scfast.models.uce_encoder import UceEncoder, UceShape
from scfast.models.uce_table import TokenTable
from scfast.observables import Rollout

#: Tokens of each cell: scGPT's at full length and two ragged ones; UCE's are 1,024 genes and some chromosomes.
LENGTHS = {"scGPT, whole-human": (1200, 1200, 911, 640), "UCE, 4 layers": (1070, 1066)}


class Case(NamedTuple):
    """A source, its cells, and the same layers in torch."""

    source: AttentionSource
    tokens: Tokens
    plain: torch.nn.TransformerEncoder


def scgpt() -> Case:
    """12 layers of 8 heads, 512 wide, feed-forward part 512 wide, 60,697 genes."""
    shape = ScgptShape(n_layers=12, n_heads=8, hidden=512, intermediate=512, vocabulary=60697)
    rules = Rules(cls=60695, cls_value=-2.0, n_bins=51, max_tokens=1200, seed=0)
    network = ScgptNetwork.initialised(shape, torch.float32, 0)
    source = ScgptSource("whole-human", network, genes_of({"GENE": 0}, {}), rules)
    tokens = cells(LENGTHS["scGPT, whole-human"], 60694)
    return Case(source, tokens, encoder(12, 8, 512, 512))


def uce() -> Case:
    """4 layers of 20 heads, 1280 wide, feed-forward part 5120 wide, protein vectors of 5120."""
    shape = UceShape(n_layers=4, n_heads=20, hidden=1280, intermediate=5120, token_dim=5120, output=1280)
    tensors = torch_layers.initialised(shape.weights(), torch.Generator().manual_seed(0))
    tensors["pos_encoder.pe"] = torch.zeros(shape.positions, 1, shape.hidden)
    table = TokenTable((torch.randn(2000, shape.token_dim),))
    genes = SimpleNamespace(symbols=[])  # cells come as tokens here
    source = UceSource(
        "4 layers", UceEncoder(shape, tensors, table), "human", genes, None, masking="strict", seed=0, batch_size=1,
        gene_names={},
    )  # fmt: skip
    return Case(source, cells(LENGTHS["UCE, 4 layers"], 2000), encoder(4, 20, 1280, 5120))


CASES: dict[str, Callable[[], Case]] = {"scGPT, whole-human": scgpt, "UCE, 4 layers": uce}


def cells(lengths: tuple[int, ...], vocabulary: int) -> Tokens:
    """Random tokens with random bins."""
    torch.manual_seed(0)
    packing, total = Packing.from_lengths(lengths), sum(lengths)
    none = torch.zeros(len(lengths), dtype=torch.int64)
    return Tokens(
        ids=torch.randint(0, vocabulary, (total,)), positions=packing.position_of_query(), packing=packing,
        gene_index=torch.arange(total), kind=torch.zeros(total, dtype=torch.uint8),
        lost_vocabulary=none, lost_truncation=none, values=torch.randint(1, 51, (total,)).float(),
    )  # fmt: skip


def encoder(n_layers: int, n_heads: int, width: int, intermediate: int) -> torch.nn.TransformerEncoder:
    """Post-norm layers with random weights."""
    layer = torch.nn.TransformerEncoderLayer(width, n_heads, intermediate, batch_first=True)
    return torch.nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False).eval()


def plain(case: Case) -> None:
    """Every cell by itself."""
    width = case.source.hidden_size
    for length in case.tokens.lengths:
        case.plain(torch.zeros(1, length, width))


def rolled(case: Case) -> None:
    """All cells packed, all layers, read at <cls>."""
    recorder = Recorder([Rollout("cls")])
    case.source.forward(case.tokens, recorder)
    for scores in recorder["rollout"]:
        assert abs(float(scores.sum()) - 1) < 1e-4


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument(
        "--write", action="store_true", help="write bench/results/<machine>/published_shapes.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for name, make in CASES.items():
        case = make()
        times: dict[str, list[float]] = {"plain": [], "rollout": []}
        for _ in range(options.rounds + 1):  # the first is for threads and lazy imports
            for contender, run in (("plain", plain), ("rollout", rolled)):
                start = time.perf_counter()
                run(case)
                times[contender].append(time.perf_counter() - start)
        seconds = {contender: statistics.median(each[1:]) for contender, each in times.items()}
        ratio = statistics.median(np.divide(times["rollout"][1:], times["plain"][1:]))
        found[name] = seconds | {
            "ratio": float(ratio),
            "tokens": case.tokens.lengths,
            "threads": options.threads,
        }
        print(
            f"{name}: rollout {seconds['rollout']:.3f} s, plain forward {seconds['plain']:.3f} s, ratio {ratio:.2f}"
        )
    if options.write:
        file = RESULTS / describe()["name"] / "published_shapes.json"
        result = {"op": "published_shapes", "machine": describe(), "cases": found}
        file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
