"""What a tool would run, how long it would take and in which memory: nothing is run but a few cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scfast.analyses.base import Accumulator, RowWriter
from scfast.run import memory as budget
from scfast.run.budget import weights_bytes
from scfast.run.cost import Cost, calibrate
from scfast.run.ledger import MANIFEST, Ledger
from scfast.run.plan import Plan
from scfast.run.runner import Results
from scfast.run.shards import ShardedRun
from scfast.run.store import MEMORY, SHARD_CELLS, Store, using

#: Shares of the cells by whose lengths their distribution is told.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run of a model over the cells.

    Attributes
    ----------
    name
        Of its folder, within that of the whole.
    model
        Its name.
    plan
        By which it runs.
    lengths
        int64 [cells]: tokens of every cell that is visited, in the order of ``plan.rows``.
    weights
        Bytes of the model's weights, beside the budget.
    parts
        Bytes of every part of the budget: see :meth:`scfast.run.budget.Budget.parts`.
    cost
        What was measured; None where nothing was timed.
    finished
        Shards that the folder has.
    mine
        Shards that this process runs, of those that it has not.
    differs
        What the run in the folder differs in: it would be refused. Empty: nothing.
    """

    name: str
    model: str
    plan: Plan
    lengths: np.ndarray
    weights: int
    parts: dict[str, int]
    cost: Cost | None
    finished: list[int]
    mine: list[int]
    differs: list[str]

    @property
    def seconds(self) -> float | None:
        """What the shards of this process will take; None where nothing was timed."""
        if self.cost is None:
            return None
        starts = self.plan.shard_starts
        batches = np.diff(np.searchsorted(self.plan.offsets, starts))
        tokens, pairs = (
            np.diff(np.concatenate([[0], np.cumsum(x)])[starts]) for x in (self.lengths, self.lengths**2)
        )
        return self.cost.seconds(*(float(x[self.mine].sum()) for x in (batches, tokens, pairs)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cost = self.cost
        quantiles = np.quantile(self.lengths, QUANTILES) if len(self.lengths) else []
        return {
            "run": self.name,
            "model": self.model,
            "plan": self.plan.conditions() | {"hash": self.plan.hash},
            "tokens": int(self.lengths.sum()),
            "tokens_of_a_cell": {
                f"{q:.0%}": int(x) for q, x in zip(QUANTILES, quantiles, strict=len(quantiles) > 0)
            },
            "weights": self.weights,
            "memory": self.parts,
            "shards_finished": len(self.finished),
            "shards_to_run": len(self.mine),
            "differs": self.differs,
            "run_seconds": self.seconds,
            "cost": None
            if cost is None
            else cost._asdict() | {"samples": [x._asdict() for x in cost.samples]},
        }


@dataclass
class Planned:
    """What :func:`planning` found.

    Attributes
    ----------
    runs
        Of the tool, in their order.
    preparation
        Seconds for what comes before the runs: every cell is read and tokenised once.
    ended_by
        The error with which the tool ended after its last planned run, because it got no results; a run that would have
        followed is not known then.
    """

    runs: list[PlannedRun] = field(default_factory=list)
    preparation: float = 0.0
    ended_by: Exception | None = None

    @property
    def seconds(self) -> float | None:
        """Of preparation and runs together; None where nothing was timed."""
        times = [run.seconds for run in self.runs]
        return None if None in times else self.preparation + sum(x for x in times if x is not None)

    @property
    def error(self) -> float:
        """By how much the estimate may be mistaken, as a share: that of the least certain run; nan: not known."""
        return max((run.cost.error for run in self.runs if run.cost is not None), default=float("nan"))


@dataclass
class Planner(Store):
    """A store in which nothing is run: see :func:`planning`; ``begun``: its folder may hold an unfinished run."""

    begun: bool = False
    calibration: float = 0.0
    planned: Planned = field(default_factory=Planned)
    _costs: dict[Any, Cost | None] = field(default_factory=dict, repr=False)
    _since: float = field(default_factory=perf_counter, repr=False)

    @property
    def plans_only(self) -> bool:
        """Nothing is run here."""
        return True

    def execute(self, run: ShardedRun) -> Results:
        """Note the next run; its results are those of no cell at all."""
        assert run.lengths is not None
        self.planned.preparation += perf_counter() - self._since
        name = self._name_next(run)
        finished, differs = self._found(self.folder / name, run)
        index, count = self.part
        mine = [x for x in range(run.plan.n_shards) if x % count == index and x not in set(finished)]
        self.planned.runs.append(
            PlannedRun(
                name, run.source.name, run.plan, run.lengths[run.plan.rows], weights_bytes(run.source), run.parts(),
                self._cost(run, run.lengths), finished, mine, differs,
            )
        )  # fmt: skip
        results = Results((name, _nothing(x, run.counts.n_cells)) for name, x in run.analyses.items())
        results.plan = run.plan
        warnings.simplefilter("ignore")  # what the tool says of no cells means nothing
        self._since = perf_counter()
        return results

    def granted_memory(self, memory: str | int | None, device: torch.device) -> int:
        """That of the run in the folder, else what is free now; nothing is noted."""
        if self.begun and (self.folder / MEMORY).exists():
            return super().granted_memory(memory, device)
        return budget.granted_memory(memory, device)

    def _found(self, folder: Path, run: ShardedRun) -> tuple[list[int], list[str]]:
        """Shards that are finished, and in what an unfinished run differs from this one."""
        if not self.begun or not (folder / MANIFEST).exists():
            return [], []
        differs = Ledger.differences(folder, run.identity(), run.plan.n_shards)
        return ([], list(differs.values())) if differs else (Ledger(folder, run.plan.n_shards).finished(), [])

    def _cost(self, run: ShardedRun, lengths: np.ndarray) -> Cost | None:
        """Measured once for all runs by one plan of models of one shape."""
        if not self.calibration:
            return None
        source = run.source
        shape = (type(source), source.n_layers, source.n_heads, source.hidden_size, source.dtype)
        key = (run.plan.hash, shape, tuple(sorted(run.options["kept"].items())))
        if key not in self._costs:
            self._costs[key] = calibrate(run, lengths, self.calibration)
        return self._costs[key]


def _nothing(analysis: Accumulator | RowWriter, n_cells: int) -> Any:
    """The result of no cell; that of a row writer takes no memory."""
    if isinstance(analysis, Accumulator):
        return analysis.result()
    shape = (n_cells, analysis.n_columns)
    if analysis.fill is None:
        return sparse.csr_matrix(shape, dtype=np.float32)
    return np.broadcast_to(np.float32(analysis.fill), shape)


@contextmanager
def planning(
    folder: str | Path | None = None,
    *,
    shard_cells: int = SHARD_CELLS,
    part: tuple[int, int] = (0, 1),
    seconds: float = 20.0,
) -> Iterator[Planned]:
    """Say what the tools in this block would run, without running more than a few cells, and without any result.

    Every cell is read and tokenised once, because the plan follows from the lengths. Pieces of the run are timed, small
    ones first, from which the time of the whole follows.

    Parameters
    ----------
    folder
        That of :func:`resumable`: what it has finished already is not counted. It need not be there, and is left as
        it is. Default: none.
    shard_cells, part
        As for :func:`resumable`.
    seconds
        To time pieces of each different run; 0: nothing is timed.

    Yields
    ------
    Planned
        Complete when the block ends.

    Raises
    ------
    ValueError
        When ``seconds`` is negative.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> with scfast.run.planning(seconds=0) as planned:
    ...     scfast.tl.rollout(adata, model, groupby="cell_type", null="untrained")
    >>> [run.name for run in planned.runs], "rollout" in adata.uns
    (['1-rollout', '2-untrained'], False)
    """
    if seconds < 0:
        raise ValueError(f"seconds={seconds} must not be negative")
    where = Path() if folder is None else Path(folder).expanduser()
    planner = Planner(where, shard_cells, part, calibration=seconds, begun=folder is not None)
    with warnings.catch_warnings(), using(planner):
        try:
            yield planner.planned
        except Exception as error:
            if not planner.planned.runs:
                raise
            planner.planned.ended_by = error
