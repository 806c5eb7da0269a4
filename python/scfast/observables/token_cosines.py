"""How alike the tokens of a cell are at every layer: the distribution of their cosines, without holding the pairs."""

from __future__ import annotations

import torch

from scfast import ops
from scfast.observables.base import GENE, BatchInfo, Observable
from scfast.packing import Packing

#: Value of ``kind`` for padding, which is compared with nothing.
PAD = 3
#: Which tokens are compared, in the order of the results.
PAIRS = ("gene-gene", "gene-special", "special-special")
#: What follows the counts of the bins.
STATISTICS = ("nan", "zeros", "min", "max", "sum", "sum_of_squares")


class TokenCosines(Observable):
    """Cosine similarity of the states of the tokens i < j of each cell, after each layer, as histograms.

    Each layer is reduced as its states pass (:func:`scfast.ops.cosine_histogram`): neither states nor pairs are kept.
    Pairs are split by kind: two genes, a gene and another token (cls, end of cell, chromosome), two others. Two tokens
    of one gene, where a model repeats genes, are a pair like any other; padding takes no part.

    Parameters
    ----------
    bins
        Even bins over [-1, 1], see :attr:`scfast.ops.CosineHistogram.edges`.
    name
        Key of the result.

    Notes
    -----
    float64 [B, N + 1, 3, bins + 6] for N layers; state 0 is the output of the embeddings. Of each kind of pairs
    (:data:`PAIRS`): exact counts of the bins, then pairs that are nan, tokens whose state is 0 (their similarity is 0),
    the smallest and largest similarity (inf and -inf without pairs), and the sums of similarities and of their squares.
    Per cell [N + 1, 3, bins + 6].

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import TokenCosines
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, TokenCosines(bins=20)) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["token_cosines"][0][:, 0, :20].sum(-1).tolist()  # five tokens, ten pairs
    [10.0, 10.0, 10.0, 10.0]
    """

    needs_hidden = True
    takes_blocks = True
    token_dim = None

    def __init__(self, *, bins: int = 200, name: str = "token_cosines") -> None:
        self.bins, self.name = bins, name

    def begin(self, batch: BatchInfo) -> None:
        """Which tokens are of which kind is settled here, before the model runs: looking at it waits for a GPU."""
        self._backend, self._n_states = batch.backend, batch.n_layers + 1
        self._states: dict[int, torch.Tensor] = {}
        packing = batch.packing
        kind = torch.zeros(packing.total_q) if batch.kind is None else batch.kind.cpu()
        cell = torch.repeat_interleave(torch.arange(packing.n_cells), torch.tensor(packing.lengths_q))
        genes, others = (x.nonzero()[:, 0] for x in (kind == GENE, (kind != GENE) & (kind != PAD)))
        n_genes, n_others = (
            torch.bincount(cell[rows], minlength=packing.n_cells).tolist() for rows in (genes, others)
        )
        device = packing.device
        self._rows = None if len(genes) == len(kind) else genes.to(device), others.to(device)
        self._packings = tuple(
            Packing.from_lengths(*lengths, device=device)
            for lengths in ((n_genes,), (n_genes, n_others), (n_others,))
        )

    def needs_output(self, n_layers: int | None) -> bool:
        """The last state is read too."""
        return True

    def wants_hidden(self, layer: int) -> bool:
        """Every state is read."""
        return True

    def on_hidden(self, layer: int, states: torch.Tensor) -> None:
        """Reduce the states [T, d]."""
        genes, others = self._rows
        x = states.detach() if genes is None else states.detach()[genes]
        y = states.detach()[others]
        found = []
        for (one, two), packing in zip(((x, None), (x, y), (y, None)), self._packings, strict=True):
            each = ops.cosine_histogram(one, two, packing=packing, bins=self.bins, backend=self._backend)
            numbers = (each.n_nan, each.n_zero.sum(-1), each.min, each.max, each.sum, each.sum_of_squares)
            found.append(torch.cat([each.counts.double(), torch.stack([n.double() for n in numbers], 1)], 1))
        self._states[layer] = torch.stack(found, dim=1)  # [B, 3, bins + 6]

    def finish(self) -> torch.Tensor:
        """float64 [B, N + 1, 3, bins + 6]."""
        missing = [layer for layer in range(self._n_states) if layer not in self._states]
        if missing:
            raise RuntimeError(
                f"the model gave no hidden state for {missing}; its adapter must call recorder.hidden"
            )
        return torch.stack([self._states[layer] for layer in range(self._n_states)], dim=1)

    def check(self, packed: torch.Tensor) -> None:
        """Refuse states that are nan or infinite."""
        bad = packed[..., self.bins] > 0  # [B, N + 1, 3]
        if bad.any():
            layers = torch.nonzero(bad.any(2).any(0))[:, 0].tolist()
            cells = int(bad.any(2).any(1).sum())
            raise ValueError(
                f"states are nan or infinite at layers {layers} in {cells} of {len(packed)} cells of a batch: the"
                " model's weights are damaged, or its precision overflows; use float32 weights that load without nan"
            )
