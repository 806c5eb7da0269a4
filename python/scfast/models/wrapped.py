"""A torch module that tokenises counts and runs under a recorder, whoever said how it does either."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from scfast.attention.session import EnoughSeen
from scfast.models.base import AttentionSource, TokenBytes, Tokens
from scfast.models.calls import ModelBatch
from scfast.models.tokenizer import Encoded, Tokenizer
from scfast.observables.target import Target, TargetLike

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from scfast.attention.recorder import Recorder

#: Records one forward of a module over a batch.
Record: TypeAlias = "Callable[[Called, Recorder, int | None, ModelBatch], AbstractContextManager[None]]"


@dataclass(frozen=True)
class ModuleShape:
    """What cannot be seen from outside: layers, heads (and those of k and v), their width, that of the states."""

    n_layers: int
    n_heads: int
    head_dim: int
    hidden_size: int
    n_key_heads: int


class Called(nn.Module):
    """A module together with how it is called: one forward of this is one batch, whatever parts of the module run.

    Parameters
    ----------
    module
        The user's; its parts are found under ``"module."``.
    call
        Runs it on a batch.
    """

    def __init__(self, module: nn.Module, call: Callable[[Any, ModelBatch], Any]) -> None:
        super().__init__()
        self.module, self.call = module, call
        self.config = getattr(module, "config", None)

    @classmethod
    def of(cls, module: nn.Module, call: Callable[[Any, ModelBatch], Any]) -> Called:
        """The same under the name of the module's class, which is what errors name."""
        return type(type(module).__name__, (cls,), {})(module, call)

    def forward(self, batch: ModelBatch) -> Any:
        """Whatever the call returns."""
        return self.call(self.module, batch)


class WrappedSource(AttentionSource):
    """A torch module that tokenises counts and runs under a recorder.

    Made by :func:`scfast.models.wrap` and ``load("hf", ...)``.

    Attributes
    ----------
    module
        As it was given.
    packed
        Whether cells run in one row; else they are padded, and pads are left out of all that is recorded.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        shape: ModuleShape,
        call: Callable[[Any, ModelBatch], Any],
        record: Record,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        cls_position: int | None,
        default_readout: Literal["cls", "mean"] | None,
        packed: bool,
        pad: int,
        fresh: Callable[[int], nn.Module],
        body: Callable[[nn.Module], nn.Module] = lambda module: module,
        prepared: Tokens | None = None,
    ) -> None:
        weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        self.name, self.module, self.shape = name, module, shape
        self.n_layers, self.n_heads = shape.n_layers, shape.n_heads
        self.head_dim, self.hidden_size = shape.head_dim, shape.hidden_size
        self.max_tokens, self.genes = max_tokens, tokenizer.genes
        self.cls_position = cls_position
        self.default_readout = default_readout or ("mean" if cls_position is None else "cls")
        self.dtype, self.device = weight.dtype, weight.device
        self.packed, self.prepared = packed, prepared
        self._tokenizer, self._call, self._record, self._fresh = tokenizer, call, record, fresh
        self._body, self._pad = body, pad

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """Tokens of every row of ``counts``, by the function that was given."""
        tokens = self._tokenizer(counts, var, n_counts)
        self._check_lengths(tokens)
        return tokens

    def gene_report(self, var: pd.DataFrame) -> str | None:
        """See :meth:`AttentionSource.gene_report`; None without a vocabulary."""
        return None if self._tokenizer.tables is None else self._tokenizer.match(var).describe()

    def with_tokens(
        self, encoded: Encoded, var: pd.DataFrame | None = None, *, mask: torch.Tensor | None = None
    ) -> WrappedSource:
        """The same model for cells that are tokenised already, in the order of the data.

        Parameters
        ----------
        encoded
            What a tokeniser may return; or padded ids [cells, L].
        var
            Genes of the data, for tokens that stand for genes of the vocabulary.
        mask
            [cells, L], True (or 1) on tokens of padded ids; pads may be anywhere.

        Raises
        ------
        ValueError
            When ids are not in the model's table, or a cell is longer than its context.
        """
        if isinstance(encoded, torch.Tensor | np.ndarray):
            rows = torch.as_tensor(encoded)
            kept = torch.ones_like(rows, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
            if rows.dim() != 2 or kept.shape != rows.shape:
                raise ValueError(
                    f"padded ids must be [cells, L] and mask of that shape, got {list(rows.shape)} and "
                    f"{list(kept.shape)}"
                )
            encoded = [row[which] for row, which in zip(rows, kept, strict=True)]
        elif mask is not None:
            raise ValueError(
                "mask belongs to padded ids [cells, L]; cells that are given one by one have no pads"
            )
        tables = self._tokenizer.tables
        match = None if var is None or tables is None else self._tokenizer.match(var)
        tokens = self._tokenizer.pack(encoded, match)
        self._check_lengths(tokens)
        return self._with(self.module, prepared=tokens)

    def _check_lengths(self, tokens: Tokens) -> None:
        longest = max(tokens.lengths, default=0)
        if longest > self.max_tokens:
            raise ValueError(
                f"a cell has {longest} tokens; {self.name} takes {self.max_tokens}: cut cells in the tokeniser"
            )

    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        """Run the module over all cells; the recorder computes the attention.

        Raises
        ------
        ValueError
            When a cell is longer than the context, or the module sees other cells than the batch has.
        NotImplementedError
            What scfast's attention does not do, by name.
        """
        self._check_lengths(tokens)
        tokens = tokens.to(self.device)
        differentiated = recorder.target is not None
        # heads such as classifiers read a padded batch
        packed = self.packed and not differentiated
        batch = ModelBatch.packed(tokens) if packed else ModelBatch.padded(tokens, self._pad)
        called = Called.of(self.module if differentiated else self._body(self.module), self._call)
        with (
            torch.set_grad_enabled(differentiated),
            self._record(called, recorder, self.cls_position, batch),
            suppress(EnoughSeen),
        ):
            called(batch)

    def check_target(  # type: ignore[override]
        self, target: TargetLike, gene_names: Sequence[str] | None = None
    ) -> TargetLike:
        """The target as it is: a function of the module's output, or a class that its configuration names.

        Raises
        ------
        ValueError
            A gene, or a class that there is not.
        """
        if not isinstance(target, Target):
            return target
        labels = getattr(getattr(self.module, "config", None), "label2id", None) or {}
        if target.kind != "class" or target.name not in labels:
            classes = (
                f"it has the classes {', '.join(map(repr, labels))}" if labels else "it names no classes"
            )
            raise ValueError(
                f"target='{target}' cannot be found in what {self.name} returns ({classes}): give a function of its "
                "output, such as lambda output: output.logits[:, 0]"
            )
        return target

    def to(self, device: torch.device | str) -> WrappedSource:
        """The same model with its weights on ``device``; itself where they are there already, else a copy."""
        if torch.empty(0, device=device).device == self.device:
            return self
        return self._with(copy.deepcopy(self.module).to(device))

    def untrained(self, seed: int = 0) -> WrappedSource:
        """The same architecture with fresh weights.

        Raises
        ------
        ValueError
            When a part of the module does not say how it is initialised.
        """
        fresh = self._fresh(seed).to(device=self.device, dtype=self.dtype).eval()
        return self._with(fresh, name=f"{self.name}:untrained")

    def _with(
        self, module: nn.Module, name: str | None = None, prepared: Tokens | None = None
    ) -> WrappedSource:
        return WrappedSource(
            name or self.name, module, self.shape, self._call, self._record, self._tokenizer,
            max_tokens=self.max_tokens, cls_position=self.cls_position, default_readout=self.default_readout,
            packed=self.packed, pad=self._pad, fresh=self._fresh, body=self._body,
            prepared=self.prepared if prepared is None else prepared,
        )  # fmt: skip

    def bytes_per_token(self) -> TokenBytes:
        """What one token costs; activations are those of attention and of the widest matrix, before and after."""
        shape, size = self.shape, self.dtype.itemsize
        d, kv = shape.hidden_size, shape.n_key_heads * shape.head_dim
        tables = {id(part.weight) for part in self.module.modules() if isinstance(part, nn.Embedding)}
        matrices = [x for x in self._body(self.module).parameters() if x.dim() == 2 and id(x) not in tables]
        widest = max((max(matrix.shape) for matrix in matrices), default=d)
        q = shape.n_heads * shape.head_dim
        rows = (
            1 if self.packed else 2
        )  # batches are of cells of like length; what they are padded to is not known
        return TokenBytes(
            activations=rows * size * (4 * d + max(2 * q + 2 * kv, 2 * widest)) + 8 * shape.n_heads,
            qk_per_layer=size * (q + kv),
            hidden=size * d,
            graph_per_layer=rows * size * (4 * d + 2 * widest + q + kv) + 8 * shape.n_heads,
        )
