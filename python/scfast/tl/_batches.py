"""The batches in which one model after another runs over the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scfast.analyses import Accumulator, RowWriter
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Observable
from scfast.run import (
    Counts,
    Plan,
    Results,
    ShardedRun,
    TokenSurvey,
    current_store,
    granted_memory,
    make_plan,
    parse_memory,
    run,
)
from scfast.run.budget import Budget
from scfast.run.memory import fit


@dataclass(frozen=True)
class Conditions:
    """How a tool runs: its arguments of the same names; a ``memory`` that is no amount is refused at once."""

    memory: str | int | None = None
    backend: str = "auto"
    progress: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.memory is not None:
            parse_memory(self.memory)


@dataclass(frozen=True, eq=False)
class Batches:
    """A model, cells, and the plan by which it runs over them.

    Attributes
    ----------
    source
        The model.
    counts
        The cells.
    tokens
        Those of all cells, where there were few enough to keep.
    plan
        Which cells, in which batches.
    kept
        What is kept of a token: arguments of :func:`scfast.run.memory.bytes_per_token`.
    how
        What the user asked for.
    lengths
        int64 [cells]: tokens of each row of the data.
    budget
        The memory for which the plan was made.
    """

    source: AttentionSource
    counts: Counts
    tokens: Tokens | None
    plan: Plan
    kept: Mapping[str, int]
    how: Conditions
    lengths: np.ndarray
    budget: Budget

    def run(
        self,
        analyses: Mapping[str, Accumulator | RowWriter],
        observe: Callable[[Tokens], Sequence[Observable]],
        label: str,
        *,
        gradients: bool = False,
        rows_on_disk: bool = False,
    ) -> Results:
        """See :func:`scfast.run.run`; inside :func:`scfast.run.resumable`, kept there shard by shard.

        With ``rows_on_disk`` the results of row writers are on disk where :func:`stays_on_disk` says so.
        """
        store = current_store()
        if store is None:
            return run(
                self.source, self.counts, analyses, self.plan, observe, tokens=self.tokens,
                backend=self.how.backend, kept=self.kept, progress=self.how.progress, label=label,
                gradients=gradients,
            )  # fmt: skip
        sharded = ShardedRun(
            self.source, self.counts, analyses, self.plan, observe, label=label, progress=self.how.progress,
            lengths=self.lengths, budget=self.budget, rows_on_disk=rows_on_disk, options={
                "tokens": self.tokens, "backend": self.how.backend, "kept": self.kept, "gradients": gradients,
            },
        )  # fmt: skip
        results = store.execute(sharded)
        for (first, last), reason in results.left_out.items():
            warnings.warn(
                f"rows {first} to {last - 1} could not be run and are left out of {label}: {reason}",
                UserWarning,
                stacklevel=3,
            )
        return results

    def again(self, source: AttentionSource, plan: Plan) -> Batches:
        """The same cells and tokens for another model, in the batches that ``plan`` ended with."""
        blocks = plan.block_tokens or max((size for _, size in plan.cells_in_blocks), default=0)
        form = source.in_blocks(blocks) if blocks else source
        if form is None:
            raise ValueError(
                f"memory={self.how.memory} makes {self.source.name} run in blocks, which {source.name} cannot: grant"
                " more"
            )
        return replace(self, source=form if plan.block_tokens else source, plan=plan)

    def params(self, plan: Plan) -> dict[str, Any]:
        """What is noted of the model and of the plan as it was run."""
        return {
            "model": self.source.name,
            "n_layers": self.source.n_layers,
            "n_heads": self.source.n_heads,
            "backend": self.how.backend,
            "plan": plan.conditions() | {"hash": plan.hash},
            **given(
                memory=self.how.memory,
                genes=self.source.gene_report(self.counts.var),
                model_settings=self.source.settings or None,
            ),
        }


def make_batches(
    source: AttentionSource,
    counts: Counts,
    found: TokenSurvey,
    rows: np.ndarray,
    how: Conditions,
    *,
    results_bytes: int,
    layers_kept: int = 0,
    hidden_kept: int = 0,
    readouts: int = 1,
    observed: int = 0,
    in_blocks: bool = False,
) -> Batches:
    """Plan a run within the memory that was granted.

    Parameters
    ----------
    source, counts, how
        See :class:`Batches`.
    found
        What tokenising the cells said.
    rows
        Those to run.
    results_bytes
        What the results take in the end.
    layers_kept, hidden_kept, readouts, observed
        See :func:`scfast.run.memory.bytes_per_token`.
    in_blocks
        Whether all that is observed takes blocks, in which cells that do not fit as a whole are run.

    Raises
    ------
    ValueError
        When not even the longest cell fits.
    """
    kept = {
        "layers_kept": layers_kept, "hidden_kept": hidden_kept, "readouts": readouts, "observed": observed,
    }  # fmt: skip
    on_cpu = source.device.type == "cpu"  # else results do not take memory where the model runs
    budget = Budget(granted_memory(how.memory, source.device), results_bytes if on_cpu else 0)
    fitted = fit(
        source, budget.granted, int(found.lengths[rows].max()), in_blocks=in_blocks, reserved=budget.results,
        **kept,
    )  # fmt: skip
    store = current_store()
    plan = make_plan(
        found.lengths, token_budget=fitted.token_budget, rows=rows, seed=how.seed, device=source.device,
        dtype=str(source.dtype).removeprefix("torch."), block_tokens=fitted.block_tokens,
        shard_cells=counts.shard_cells if store is None else store.shard_cells,
    )  # fmt: skip
    return Batches(fitted.source, counts, found.tokens, plan, kept, how, found.lengths, budget)


def stays_on_disk(counts: Counts) -> bool:
    """Whether results of every cell may stay on disk: the counts do, and the run has a folder."""
    return counts.on_disk and current_store() is not None


def for_anndata(rows: Any) -> Any:
    """The result of a row writer, as AnnData takes it: a group of HDF5 becomes a sparse matrix on disk."""
    import h5py

    if not isinstance(rows, h5py.Group):
        return rows
    import anndata as ad

    return ad.io.sparse_dataset(rows)


def given(**arguments: Any) -> dict[str, Any]:
    """Arguments that are not None: a file of AnnData has no None."""
    return {name: value for name, value in arguments.items() if value is not None}
