"""Two models over the same tokens, one after the other, reported as one model with the layers of both."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from scfast.models.base import AttentionSource, TokenBytes, Tokens

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from scfast.attention import LayerAttention, Recorder

#: What two models must share for their maps to be compared element by element.
SHARED = {
    "n_layers": "layers",
    "n_heads": "heads",
    "max_tokens": "most tokens of a cell",
    "cls_position": "position of the cls token",
}


class ModelPair(AttentionSource):
    """Runs two models over the tokens of the first; the second's layers follow those of the first.

    Parameters
    ----------
    first, second
        Models of the same depth, heads, vocabulary and tokeniser, on one device. Widths and dtypes may differ.

    Raises
    ------
    ValueError
        For models whose maps cannot be compared; the message names everything in which they differ.
    """

    def __init__(self, first: AttentionSource, second: AttentionSource) -> None:
        _check_alike(first, second)
        self.first, self.second = first, second
        self.name = f"{first.name} and {second.name}"
        self.n_layers = first.n_layers + second.n_layers
        self.n_heads, self.head_dim, self.hidden_size = first.n_heads, first.head_dim, first.hidden_size
        self.max_tokens, self.genes = first.max_tokens, first.genes
        self.default_readout, self.cls_position = first.default_readout, first.cls_position
        self.dtype, self.device = first.dtype, first.device
        self.prepared = first.prepared
        self.cells_together = first.cells_together

    @property
    def settings(self) -> dict[str, Any]:
        """Those of both models, where they have any."""
        both = {"first": self.first.settings, "second": self.second.settings}
        return both if any(both.values()) else {}

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """The tokens that both tokenisers make.

        Raises
        ------
        ValueError
            When they make different ones.
        """
        tokens, others = (model.tokenize(counts, var, n_counts) for model in (self.first, self.second))
        different = _different(tokens, others)
        if different:
            raise ValueError(
                f"{self.first.name} and {self.second.name} make different tokens of the same cells"
                f" ({', '.join(different)}): their maps have no common rows and columns; compare models that"
                " share dictionaries and medians"
            )
        return tokens

    def gene_report(self, var: pd.DataFrame) -> str | None:
        """Of the first model; both have one vocabulary."""
        return self.first.gene_report(var)

    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        """Run the first model, then the second."""
        if any(observable.needs_hidden for observable in recorder.observables):
            raise ValueError("a pair of models reports attention, not hidden states: record them one by one")
        for model, start in ((self.first, 0), (self.second, self.first.n_layers)):
            model.forward(tokens, cast("Recorder", _Half(recorder, start, self.n_layers)))

    def to(self, device: torch.device | str) -> ModelPair:
        """The same models on ``device``; itself where they are there already."""
        first, second = self.first.to(device), self.second.to(device)
        return self if first is self.first and second is self.second else ModelPair(first, second)

    def untrained(self, seed: int = 0) -> ModelPair:
        """The same architectures with fresh weights, from two seeds."""
        return ModelPair(self.first.untrained(seed), self.second.untrained(seed + 1))

    def bytes_per_token(self) -> TokenBytes:
        """The larger activations, one model runs at a time; q and k are those of a layer of the first."""
        first, second = self.first.bytes_per_token(), self.second.bytes_per_token()
        return {
            "activations": max(first["activations"], second["activations"]),
            "qk_per_layer": first["qk_per_layer"],
            "hidden": max(first["hidden"], second["hidden"]),
        }


class _Half:
    """The recorder as one model of a pair sees it: a batch begins with the first and ends with the second."""

    def __init__(self, recorder: Recorder, start: int, n_layers: int) -> None:
        self._recorder, self._start, self._n_layers, self._end = recorder, start, n_layers, n_layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def begin(self, n_layers: int, packing: Any, **about: Any) -> None:
        self._end = self._start + n_layers
        if self._start == 0:
            self._recorder.begin(self._n_layers, packing, **about)

    def hidden(self, layer: int, states: torch.Tensor) -> None:
        pass

    def attend(self, attention: LayerAttention) -> torch.Tensor | None:
        return self._recorder.attend(replace(attention, layer=attention.layer + self._start))

    def finish(self) -> None:
        if self._end == self._n_layers:
            self._recorder.finish()


def _check_alike(first: AttentionSource, second: AttentionSource) -> None:
    differ = [
        f"{what}: {getattr(first, name)} and {getattr(second, name)}"
        for name, what in SHARED.items()
        if getattr(first, name) != getattr(second, name)
    ]
    if first.genes != second.genes:
        only = [set(a).difference(b) for a, b in ((first.genes, second.genes), (second.genes, first.genes))]
        known = ", ".join(
            f"{len(genes)} only in {model.name}" for genes, model in zip(only, (first, second), strict=True)
        )
        differ.append(f"vocabulary: {known if any(only) else 'the same genes in another order'}")
    if differ:
        raise ValueError(
            f"the attention maps of {first.name} and {second.name} cannot be compared element by element, the models"
            f" differ in {'; '.join(differ)}: compare a model with a fine-tuned copy of itself, or two of one shape"
        )
    if first.device != second.device:
        raise ValueError(
            f"{first.name} is on {first.device} and {second.name} on {second.device}: move them together with"
            " .to(device)"
        )


def _different(tokens: Tokens, others: Tokens) -> list[str]:
    """In which of their parts the tokens of the same cells differ, and for how many cells."""
    uneven = np.not_equal(tokens.lengths, others.lengths)
    if uneven.any():
        return [f"lengths of {uneven.sum()} of {tokens.n_cells} cells"]
    cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    found = []
    for part in fields(tokens):
        mine, theirs = getattr(tokens, part.name), getattr(others, part.name)
        if part.name == "packing" or (mine is None and theirs is None):
            continue
        if mine is None or theirs is None:
            found.append(f"{part.name}: only one of them has any")
        elif not torch.equal(mine, theirs) and len(mine) == len(cell):
            cells = np.unique(cell[(mine != theirs).numpy()])
            found.append(f"{part.name} in {len(cells)} of {tokens.n_cells} cells")
    return found
