"""Cells under perturbations: which is unperturbed, what is held out, and control cells paired with perturbed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from scfast.models.base import TokenKind, Tokens
from scfast.models.bioformers_conditions import external_of
from scfast.train.masked_values import MaskedValues
from scfast.train.split import TEST, TRAIN, VALIDATION, take_cells

#: What may be held out, beside names.
SPLITS = ("combinations", "perturbations")


@dataclass(frozen=True)
class Design:
    """Which cell was perturbed how, and where.

    Attributes
    ----------
    names
        Perturbations, the control first.
    parts
        The single perturbations of each; none of the control.
    contexts
        Within which cells are compared: data sets, cell lines.
    perturbation, context
        int64 [N]: those of every cell.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    contexts: tuple[str, ...]
    perturbation: np.ndarray
    context: np.ndarray

    def rows(self, perturbation: int, context: int) -> np.ndarray:
        """Cells of a perturbation in a context."""
        return np.flatnonzero((self.perturbation == perturbation) & (self.context == context))

    def present(self) -> np.ndarray:
        """Bool [perturbations, contexts]: whether there are cells."""
        found = np.zeros((len(self.names), len(self.contexts)), dtype=bool)
        found[self.perturbation, self.context] = True
        return found


@dataclass(frozen=True)
class Split:
    """What is trained on, and what is predicted.

    Attributes
    ----------
    held_out
        Numbers of the perturbations that no cell is trained on in any context.
    scored
        (perturbation, context) whose cells are predicted.
    seen
        Single perturbations that are trained on, alone or in combinations.
    """

    held_out: tuple[int, ...]
    scored: tuple[tuple[int, int], ...]
    seen: tuple[str, ...]

    def unseen(self, design: Design) -> bool:
        """Whether single perturbations are predicted that were never trained on."""
        return any(part not in self.seen for number, _ in self.scored for part in design.parts[number])


def choose(
    design: Design,
    genes: Sequence[str],
    held_out: str | Sequence[str],
    share: float,
    draws: np.random.Generator,
) -> Split:
    """Hold perturbations out, by rule or by name.

    Parameters
    ----------
    design
        All cells.
    genes
        The model's inputs.
    held_out
        ``"combinations"``: those whose every part was applied alone in the same context. ``"perturbations"``: single
        ones whose target is among the genes, with all combinations they are part of. Or names.
    share
        Of those that a rule finds, at least one.
    draws
        Chooses them.

    Raises
    ------
    ValueError
        When there is none to hold out, a name is unknown, or a part of one could not be known to the model.
    """
    if isinstance(held_out, str):
        if held_out not in SPLITS:
            raise ValueError(
                f"held_out={held_out!r} is unknown; use {' or '.join(map(repr, SPLITS))}, or names of perturbations"
            )
        found = _combinations(design) if held_out == "combinations" else _targets(design, genes)
        chosen = draws.permutation(len(found))[: max(1, round(share * len(found)))]
        units = {found[number] for number in chosen}
        numbers = [
            number
            for number, (name, parts) in enumerate(zip(design.names, design.parts, strict=True))
            if (name in units if held_out == "combinations" else units & set(parts))
        ]
    else:
        if strange := [name for name in held_out if name not in design.names[1:]]:
            raise ValueError(
                f"held_out names {strange[0]!r}, which no cell has; there are {', '.join(design.names[1:6])}, ..."
            )
        numbers = [design.names.index(name) for name in dict.fromkeys(held_out)]
        if not numbers:
            raise ValueError("held_out names no perturbation: there is nothing to predict")
    trained = [number for number in range(1, len(design.names)) if number not in numbers]
    seen = tuple(sorted({part for number in trained for part in design.parts[number]}))
    for number in numbers:
        if strange := [part for part in design.parts[number] if part not in seen and part not in genes]:
            raise ValueError(
                f"{design.names[number]!r} is held out, and {strange[0]!r} is then never seen in training: it can only "
                "be predicted where another perturbation holds it, or its gene is among the inputs (genes=)"
            )
    if not trained:
        raise ValueError(f"all {len(numbers)} perturbations are held out: none is left to train on")
    wanted = design.present() if held_out != "combinations" else _from_parts(design)
    scored = tuple((number, int(context)) for number in numbers for context in np.flatnonzero(wanted[number]))
    return Split(tuple(numbers), scored, seen)


def _from_parts(design: Design) -> np.ndarray:
    """Bool [perturbations, contexts]: combinations whose every part was applied alone in the context."""
    present, nowhere = design.present(), np.zeros(len(design.contexts), dtype=bool)
    alone = {parts[0]: present[number] for number, parts in enumerate(design.parts) if len(parts) == 1}
    found = np.zeros_like(present)
    for number, parts in enumerate(design.parts):
        if len(parts) > 1:
            found[number] = present[number] & np.all([alone.get(part, nowhere) for part in parts], axis=0)
    return found


def _combinations(design: Design) -> list[str]:
    found = [design.names[number] for number in np.flatnonzero(_from_parts(design).any(1))]
    if not found:
        raise ValueError(
            "no combination has parts that were all applied alone in the same context: check separator=, hold out "
            "'perturbations', or name those to hold out"
        )
    return found


def _targets(design: Design, genes: Sequence[str]) -> list[str]:
    every = sorted({part for parts in design.parts for part in parts})
    found = [part for part in every if part in set(genes)]
    if not found:
        raise ValueError(
            f"none of the {len(every)} perturbed genes ({', '.join(every[:3])}, ...) is among the inputs, so that one "
            "never seen in training cannot be told from another: name them in genes=, or hold out 'combinations'"
        )
    return found


def parts_of(design: Design, split: Split, share: float, draws: np.random.Generator) -> np.ndarray:
    """TRAIN, VALIDATION or TEST, int64 [N]: validation takes ``share`` of each trained perturbation's cells."""
    held_out = np.isin(design.perturbation, split.held_out)
    part = np.where(held_out, TEST, TRAIN)
    trained = np.flatnonzero(~held_out)
    kinds = design.perturbation[trained] * len(design.contexts) + design.context[trained]
    several = np.isin(kinds, np.flatnonzero(np.bincount(kinds) > 1))
    part[trained[several][take_cells(kinds[several], share, draws)]] = VALIDATION
    return part


@dataclass(frozen=True)
class PerturbedCells:
    """Everything that training reads.

    Attributes
    ----------
    tokens
        All cells, without external tokens; every cell has a token for every gene.
    levels
        Expression [N, G], genes in the order of the vocabulary.
    design
        Which cell was perturbed how.
    part
        int64 [N]: :data:`scfast.train.split.TRAIN`, VALIDATION or TEST.
    rows, marked
        External tokens of every perturbation, and ``tokens.ids`` of the genes that it marks.
    mark
        Row of the mark.
    """

    tokens: Tokens
    levels: sparse.csr_matrix
    design: Design
    part: np.ndarray
    rows: tuple[tuple[int, ...], ...]
    marked: tuple[tuple[int, ...], ...]
    mark: int

    def controls(self, context: int, *, trained: bool = False) -> np.ndarray:
        """Unperturbed cells of a context: all, or those of the training part."""
        rows = self.design.rows(0, context)
        return rows[self.part[rows] == TRAIN] if trained else rows

    def pair(self, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """int64 [B]: for every cell a control cell of its context, drawn from those trained on."""
        chosen = np.empty(len(rows), dtype=np.int64)
        u = draws.random(len(rows))
        for context in np.unique(self.design.context[rows]):
            own, controls = self.design.context[rows] == context, self.controls(int(context), trained=True)
            chosen[own] = controls[(u[own] * len(controls)).astype(np.int64)]
        return chosen

    def forgotten(self, rows: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
        """Bool [B]: cells whose perturbation is to be told by its marks alone; only such whose every part has one."""
        marks = np.array([0 < len(self.marked[n]) == len(parts) for n, parts in enumerate(self.design.parts)])
        return (draws.random(len(rows)) < share) & marks[self.design.perturbation[rows]]

    def perturbed(
        self, controls: np.ndarray, numbers: Sequence[int], forget: np.ndarray | None = None
    ) -> Tokens:
        """Control cells under perturbations: the model's input."""
        forget = np.zeros(len(controls), dtype=bool) if forget is None else forget
        tokens = self.tokens.select(controls)
        rows = [() if dropped else self.rows[number] for number, dropped in zip(numbers, forget, strict=True)]
        return under(tokens, rows, [self.marked[number] for number in numbers], self.mark)

    def examples(self, rows: np.ndarray, draws: np.random.Generator, forget: float = 0.0) -> MaskedValues:
        """Control cells under the perturbations of the cells ``rows``, and these cells' bins to guess."""
        controls, dropped = self.pair(rows, draws), self.forgotten(rows, forget, draws)
        tokens = self.perturbed(controls, self.design.perturbation[rows].tolist(), dropped)
        chosen = torch.from_numpy(np.flatnonzero(tokens.kind.numpy() == TokenKind.GENE))
        bins = by_gene(self.tokens.select(rows), self.levels.shape[1])  # [B, G + 1]
        targets = bins[tokens.packing.cell_of_query()[chosen], tokens.ids[chosen]]
        return MaskedValues(tokens, chosen, targets.long())


def under(
    tokens: Tokens, rows: Sequence[Sequence[int]], marked: Sequence[Sequence[int]], mark: int
) -> Tokens:
    """The cells of ``tokens`` with external tokens."""
    return replace(tokens, external=external_of(tokens, rows, marked, mark))


def by_gene(tokens: Tokens, n_genes: int) -> torch.Tensor:
    """Values float32 [B, G + 1] of every cell by ``tokens.ids``."""
    assert tokens.values is not None
    table = torch.zeros(tokens.n_cells, n_genes + 1)
    table[tokens.packing.cell_of_query(), tokens.ids] = tokens.values
    return table
