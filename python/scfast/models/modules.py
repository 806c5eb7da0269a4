"""Any torch module as a source: its user says how it is called, how cells become tokens, and where attention is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from scfast.attention import declared, multihead
from scfast.attention.declared import AttentionLayers
from scfast.models.calls import ModelBatch
from scfast.models.tokenizer import Encoded, Tokenizer
from scfast.models.wrapped import Called, ModuleShape, Record, WrappedSource

if TYPE_CHECKING:
    from scfast.attention.recorder import Recorder


def wrap(
    module: nn.Module,
    *,
    call: Callable[[Any, ModelBatch], Any],
    max_tokens: int,
    tokenize: Callable[..., Encoded] | None = None,
    vocabulary: Mapping[str, int] | None = None,
    gene_names: Mapping[str, str] | None = None,
    layers: AttentionLayers | None = None,
    blocks: Sequence[nn.Module] | None = None,
    packed: bool = False,
    pad: int = 0,
    n_ids: int | None = None,
    cls_position: int | None = 0,
    default_readout: Literal["cls", "mean"] | None = None,
    untrained: Callable[[int], nn.Module] | None = None,
    name: str | None = None,
) -> WrappedSource:
    """Make a source of a torch module, for :func:`scfast.record` and every tool in ``scfast.tl``.

    Parameters
    ----------
    module
        In eval mode. Its attention is that of its ``nn.MultiheadAttention`` modules (those of
        ``nn.TransformerEncoder`` among them), or what ``layers`` declares.
    call
        ``call(module, batch)`` runs the module, or the parts of it that hold the attention, on a
        :class:`~scfast.models.ModelBatch`: ``batch.ids``, ``batch.positions``, ``batch.values`` [B, L], and
        ``batch.pads``, True on pads.
    max_tokens
        Longest cell that the module takes, special tokens included.
    tokenize
        ``tokenize(counts, var)``, or ``tokenize(counts, var, n_counts)``: from counts (CSR [cells, genes]) and their
        genes to the token ids of every cell, a list of sequences; or a mapping with ``ids`` and any of ``values``,
        ``external``, ``gene_index`` and ``kind``; or :class:`~scfast.models.Tokens`. With a vocabulary, ``var`` has a
        column ``token`` (-1 for genes that it lacks), columns of one gene are added up beforehand, and
        ``gene_index`` and ``kind`` follow from the ids. None: see :meth:`WrappedSource.with_tokens`.
    vocabulary
        Gene -> token id.
    gene_names
        Symbol -> gene of the vocabulary, for data that have symbols only.
    layers
        Attention of the user's own making.
    blocks
        Modules whose outputs [B, L, d] are the states after each layer, for ``tl.embed``, ``tl.probe`` and the like.
        Default: the ``nn.TransformerEncoderLayer`` in ``module``.
    packed
        Whether the module may be called with all cells in one row [1, T]: when nothing in it but attention lets tokens
        see each other, and positions are taken from ``batch.positions``. Saves all work on pads.
    pad
        Token id on pads.
    n_ids
        Rows of the token table, against which ids are checked.
    cls_position
        Token of each cell that stands for the cell, -1 for the last; None if there is none.
    default_readout
        Default: "cls" where there is one, else "mean".
    untrained
        Makes the same module with fresh weights from a seed. Default: a copy, every part of which has its
        parameters reset by its own ``reset_parameters``.
    name
        Default: the name of the class.

    Returns
    -------
    AttentionSource
        What every tool in ``scfast.tl`` takes.

    Raises
    ------
    ValueError
        A module in training mode, or that has no attention that is known.

    Examples
    --------
    >>> import torch
    >>> class Encoder(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.genes = torch.nn.Embedding(10, 8)
    ...         layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ...         self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ...     def forward(self, ids, pads=None):
    ...         return self.encoder(self.genes(ids), src_key_padding_mask=pads)
    >>> source = wrap(
    ...     Encoder().eval(), call=lambda model, batch: model(batch.ids, batch.pads), max_tokens=64,
    ...     tokenize=lambda counts, var: [var["token"].to_numpy()[row.indices] for row in counts],
    ...     vocabulary={"CD3D": 1, "CD19": 2, "ACTB": 3},
    ... )  # fmt: skip
    >>> import anndata, numpy as np, scfast
    >>> adata = anndata.AnnData(np.array([[3.0, 0.0], [1.0, 2.0]], dtype="float32"))
    >>> adata.var_names = ["CD3D", "ACTB"]
    >>> scfast.tl.rollout(adata, source, readout="mean", progress=False)
    >>> adata.layers["rollout"].shape
    (2, 2)
    """
    if module.training:
        raise ValueError(
            f"{type(module).__name__} is in training mode, where dropout makes every run another: call module.eval()"
        )
    title = name or type(module).__name__
    shape, record = _attention_of(module, layers, blocks)
    return WrappedSource(
        title, module, shape, call, record, Tokenizer(tokenize, vocabulary, gene_names, n_ids, title),
        max_tokens=max_tokens, cls_position=cls_position, default_readout=default_readout, packed=packed, pad=pad,
        fresh=untrained or partial(_reset, module),
    )  # fmt: skip


def _attention_of(
    module: nn.Module, layers: AttentionLayers | None, blocks: Sequence[nn.Module] | None
) -> tuple[ModuleShape, Record]:
    """Shape of a module's attention, and how it is recorded; copies of the module are recorded alike."""
    block_names = None if blocks is None else _names(module, blocks, "blocks")
    if layers is not None:
        names = _names(module, layers.modules, "layers")
        heads = layers.n_heads
        shape = ModuleShape(
            len(names), heads, layers.head_dim, layers.hidden_size, layers.n_key_heads or heads
        )

        def record_declared(
            called: Called, recorder: Recorder, cls_position: int | None, batch: ModelBatch
        ) -> AbstractContextManager[None]:
            own = replace(layers, modules=_of(called, names))
            return declared.recording(called, own, recorder, cls_position, batch, _of(called, block_names))

        return shape, record_declared
    attention = multihead.attention_modules(module)
    if not attention:
        raise ValueError(
            f"{type(module).__name__} has no nn.MultiheadAttention: say where its attention is with "
            "layers=AttentionLayers(...), or load a Hugging Face model with scfast.models.load('hf', folder)"
        )
    sizes = {(layer.num_heads, layer.head_dim) for layer in attention}
    if len(sizes) > 1:
        raise ValueError(
            f"the attention layers of {type(module).__name__} differ in heads and head dim: {sorted(sizes)}"
        )
    first = attention[0]
    shape = ModuleShape(len(attention), first.num_heads, first.head_dim, first.embed_dim, first.num_heads)

    def record_multihead(
        called: Called, recorder: Recorder, cls_position: int | None, batch: ModelBatch
    ) -> AbstractContextManager[None]:
        return multihead.recording(
            called, recorder, cls_position, tokens=batch.tokens, packed=batch.is_packed,
            blocks=_of(called, block_names),
        )  # fmt: skip

    return shape, record_multihead


def _names(module: nn.Module, parts: Sequence[nn.Module], argument: str) -> list[str]:
    """Where the parts are in a :class:`~scfast.models.wrapped.Called` of the module, or of a copy."""
    known = {id(part): name for name, part in module.named_modules()}
    for part in parts:
        if id(part) not in known:
            raise ValueError(f"{argument}: a {type(part).__name__} is no part of {type(module).__name__}")
    return [f"module.{known[id(part)]}".rstrip(".") for part in parts]


def _of(called: Called, names: Sequence[str] | None) -> Any:
    return None if names is None else [called.get_submodule(name) for name in names]


def _reset(module: nn.Module, seed: int) -> nn.Module:
    """A copy with every parameter set anew by the part that owns it."""
    fresh = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in fresh.named_modules():
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is not None:
                reset()
            elif own := [parameter for parameter, _ in part.named_parameters(recurse=False)]:
                raise ValueError(
                    f"an untrained copy cannot be made: {name or type(module).__name__} has parameters "
                    f"({', '.join(own)}) and no reset_parameters(): give untrained= to scfast.models.wrap, or null=None"
                )
    return fresh
