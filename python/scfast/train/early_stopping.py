"""Training until a held-out figure stops falling: the weights of its lowest value are kept, and put back at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


class EarlyStopping:
    """Keeps the trained weights of the lowest value of a figure, and says when to stop waiting for a lower one.

    The ``enough`` of :func:`scfast.train.fit.fit`. The file lies beside the checkpoints, so a resumed run finds it.

    Parameters
    ----------
    model
        Those of its parameters that have a gradient are kept.
    file
        Of the kept weights, such as ``folder / "checkpoints" / "best.safetensors"``.
    patience
        Evaluations without a lower value after which training ends.
    figure
        Of the entries of the history; nan counts as no lower value.

    Examples
    --------
    >>> stopping = EarlyStopping(torch.nn.Linear(1, 1), Path("best.safetensors"), 2, "loss")
    >>> stopping.best([{"loss": 0.5}, {"loss": 0.3}, {"loss": 0.4}])
    {'loss': 0.3}
    """

    def __init__(self, model: torch.nn.Module, file: Path, patience: int, figure: str) -> None:
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.file, self.patience, self.figure = file, patience, figure

    def __call__(self, history: list[dict[str, float]]) -> bool:
        """Keep the present weights when they are the best; whether to end."""
        best = self._best(history)
        if best == len(history) - 1:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(".part")
            save_file({name: p.detach().contiguous() for name, p in self.trained.items()}, part)
            part.replace(self.file)
        return len(history) - 1 - best >= self.patience

    def best(self, history: list[dict[str, float]]) -> dict[str, float]:
        """The first entry of the lowest value."""
        return history[self._best(history)]

    def restore(self) -> None:
        """Put the kept weights back."""
        with torch.no_grad():
            for name, tensor in load_file(self.file).items():
                self.trained[name].copy_(tensor)

    def _best(self, history: list[dict[str, float]]) -> int:
        values = np.array([entry[self.figure] for entry in history], dtype=np.float64)
        return int(np.argmin(np.where(np.isnan(values), np.inf, values)))
