"""UCE with 33 layers and one cell of 1024 genes, rolled out in a process of its own.

Prints by how many bytes the process grew at its peak beyond the weights, pages of the mapped token table included. The
layers share one layer's weights, which saves memory on the weights alone; the token table is a sparse file.

Usage: uce_memory.py THREADS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from scfast import Packing
from scfast.attention import Recorder
from scfast.models import Tokens, torch_layers
from scfast.models.uce import UceSource
from scfast.models.uce_encoder import LAYERS, UceEncoder, UceShape
from scfast.models.uce_files import SpeciesGenes
from scfast.models.uce_table import CHROMOSOME_OFFSET, N_CHROMOSOMES, TokenTable
from scfast.models.uce_tokens import CLOSE, CLS, Genes, SentenceRules, sentence
from scfast.observables import Rollout
from tests.run.peak_memory import count_what_is_asked_for, status

#: Of the published model.
SHAPE = UceShape(n_layers=33, n_heads=20, hidden=1280, intermediate=5120, token_dim=5120, output=1280)
GENES, CHROMOSOMES = 1024, 24


def network(folder: Path) -> UceEncoder:
    """Random weights, and a table of zeros that takes no room on disk."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch_layers.initialised(
        UceShape(**{**vars(SHAPE), "n_layers": 1}).weights() | {"pos_encoder.pe": (1536, 1, 1280)}, generator
    )
    first = f"{LAYERS}0."
    layer = {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)}
    tensors |= {
        f"{LAYERS}{n}.{name}": tensor for n in range(SHAPE.n_layers) for name, tensor in layer.items()
    }
    rows, file = CHROMOSOME_OFFSET + N_CHROMOSOMES, folder / "table"
    with file.open("wb") as table:
        table.truncate(4 * rows * SHAPE.token_dim)
    mapped = torch.from_file(str(file), shared=False, size=rows * SHAPE.token_dim)
    return UceEncoder(SHAPE, tensors, TokenTable((mapped.view(rows, SHAPE.token_dim),)))


def cell(genes: int) -> Tokens:
    """A sentence of so many genes on 24 chromosomes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(CHROMOSOME_OFFSET - 4, generator=generator)[:genes].numpy() + 4
    places = Genes(rows, rows % CHROMOSOMES, rows)
    made = sentence(torch.arange(genes).numpy(), torch.arange(CHROMOSOMES).numpy(), places, SentenceRules())
    assert {CLS, CLOSE} < set(made.ids.tolist())
    packing = Packing.from_lengths([len(made.ids)])
    none = torch.zeros(1, dtype=torch.int64)
    return Tokens(
        ids=torch.from_numpy(made.ids), positions=packing.position_of_query(), packing=packing,
        gene_index=torch.from_numpy(made.genes), kind=torch.from_numpy(made.kinds),
        lost_vocabulary=none, lost_truncation=none,
    )  # fmt: skip


def growth(source: UceSource, genes: int) -> int:
    """Bytes by which the process grows at its peak while one cell is rolled out."""
    tokens, recorder = cell(genes), Recorder([Rollout("cls")])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    source.forward(tokens, recorder)
    peak = status("VmHWM") - before
    assert abs(float(recorder["rollout"][0].sum()) - 1) < 1e-4
    return peak


@torch.inference_mode()
def main() -> None:
    """Measure."""
    torch.set_num_threads(int(sys.argv[1]))
    count_what_is_asked_for()
    none = torch.zeros(0, dtype=torch.int64).numpy()
    source = UceSource(
        "uce:33 layers", network(Path(sys.argv[2])), "human", SpeciesGenes([], Genes(none, none, none), 0),
        SentenceRules(), masking="strict", seed=0, batch_size=1, gene_names={},
    )  # fmt: skip
    growth(source, 48)  # thread pools and lazily loaded code are not the analysis's memory
    print(growth(source, GENES))


if __name__ == "__main__":
    main()
