"""Gradient-weighted attention of every cell of an AnnData: what a prediction reads, and from which genes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from scfast.models.base import AttentionSource, Tokens
from scfast.observables import AttentionAttribution, GradientAttention, Observable, Relevance
from scfast.observables.target import Target, TargetLike, parse_target
from scfast.run import survey
from scfast.tl._batches import Conditions, given
from scfast.tl._gene_scores import GeneScoring, Parts, score_genes
from scfast.tl._inputs import check_options, get_counts, get_groups, get_rows, get_source
from scfast.tl._readout import Readout, resolve_readout

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("chefer-mm", "row-normalised", "gradient-attention", "attribution")
#: Methods that are rolled back from a readout; the others are sums over all queries.
ROLLED = METHODS[:2]


def relevance(
    adata: AnnData,
    model: AttentionSource | str,
    target: str | Callable[[Any], torch.Tensor],
    *,
    method: Literal["chefer-mm", "row-normalised", "gradient-attention", "attribution"] = "chefer-mm",
    readout: str | None = None,
    steps: int = 20,
    groupby: str | None = None,
    replicate_key: str | None = None,
    by: Literal["layer"] | None = None,
    key_added: str = "relevance",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    store_cells: bool = True,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Which genes a prediction depends on through attention: gradient-weighted attention of whole cells.

    Attention is weighted by the gradient of a logit with respect to it, C = mean over heads of (dP * P)^+, so that what
    does not matter to the prediction does not count. dP = dO V^T comes from the gradient dO at the attention output:
    neither P nor dP is ever held.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    target
        ``"class:NAME"``: the logit of a class of a fine-tuned model. ``"gene:NAME"``, a name from ``adata.var_names``:
        the logit that the masked-gene head gives the gene at its own token, which is not masked; only cells that have
        the gene are run. Of models from :func:`scfast.models.wrap` and ``load("hf", ...)``: a function of what the
        model returns that gives one number per cell, [B].
    method
        ``"chefer-mm"``: R <- R + C R from the first layer to the last (Chefer et al. 2021, ICCV), without the identity
        that R starts from. ``"row-normalised"``: rollout of C + I with rows divided by their sums; the scores of a cell
        sum to 1. ``"gradient-attention"``: C itself, summed over queries and layers. ``"attribution"``: integrated
        gradients along each layer's attention (Hao et al. 2021), signed, summed over queries, heads and layers; it
        costs layers x ``steps`` runs of the model.
    readout
        Of the first two: where R is read. Default: where the target is, the first token of a cell for a class, the
        gene's token for a gene, for a function the model's cls token or the mean. Else ``"cls"``, ``"mean"`` (over
        gene tokens) or ``"gene:NAME"``.
    steps
        Of ``"attribution"``.
    groupby
        Column of ``adata.obs``: statistics per group. Default: one group, ``"all"``. Cells whose group is
        empty get scores, but count in no group.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between
        cells.
    by
        ``"layer"``: for the last two methods, also what each layer gives.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. A batch that does not fit after all is run in halves.
    store_cells
        Keep the scores of every cell in ``adata.layers``.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    seed
        Recorded.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``layers[key_added]``, ``varm[key_added]``, ``uns[key_added]["table"]``, ``["groups"]`` and ``["params"]``: as
        :func:`scfast.tl.rollout` writes them, with relevance as the score; attributions may be negative.

        ``uns[key_added]["by_layer"]`` (``by="layer"``): float64 [layers, genes, groups], mean over all cells.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, such as a class or gene that the model does not know; the message names it and the
        remedy. ``adata`` is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.relevance(adata, model, "gene:LYZ", groupby="cell_type")
    >>> adata.uns["relevance"]["table"].columns.tolist()[:4]
    ['gene', 'group', 'mean', 'se']
    """
    check_options(key_added)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use {', '.join(map(repr, METHODS))}")
    if method not in ROLLED and readout is not None:
        raise ValueError(
            f"readout={readout!r} belongs to {' and '.join(ROLLED)}: {method} sums over all queries"
        )
    if by not in (None, "layer") or (by and method in ROLLED):
        raise ValueError(f"by={by!r}: use 'layer' with 'gradient-attention' or 'attribution', or None")
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    source = get_source(model, device)
    aim, explained = _resolve_target(target, source, adata.var_names)
    read = explained if readout is None else resolve_readout(readout, source, adata.var_names)
    make = _observable(method, aim, read, steps)  # refuses options before any cell is looked at
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    for needed in dict.fromkeys(x for x in (explained, read) if x is not None and x.gene is not None):
        rows = needed.keep(rows, survey(source, counts, gene=needed.gene))
    n_layers = source.n_layers
    graph = source.bytes_per_token()["graph_per_layer"]
    name = {"gradient-attention": "gradient_attention", "attribution": "attribution"}.get(method, "relevance")
    scoring = GeneScoring(
        source, counts, found, rows, lambda tokens: [make(tokens)], name,
        parts=Parts(name, "by_layer", (n_layers,)) if by else None,
        layers_kept=n_layers, observed=n_layers * graph, gradients=True,
    )  # fmt: skip
    params = {
        **given(groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer, readout=readout),
        **({"steps": steps} if method == "attribution" else {}),
        "target": str(aim) if isinstance(aim, Target) else getattr(aim, "__name__", type(aim).__name__),
        "method": method,
    }
    return score_genes(
        adata, scoring, groups, how, key_added=key_added, null=None, store_cells=store_cells, params=params,
        copy=copy,
    )  # fmt: skip


def _resolve_target(
    target: str | Callable[[Any], torch.Tensor], source: AttentionSource, names: pd.Index
) -> tuple[TargetLike, Readout | None]:
    """The target, and the readout where it is read: None for the first token of each cell."""
    if not isinstance(target, str):
        if not callable(target):
            raise TypeError(
                f"target must be 'class:NAME' or 'gene:NAME', got {type(target).__name__}; models of scfast.models.wrap"
                " also take a function of what they return"
            )
        place = "mean" if source.cls_position is None else "cls"
        return source.check_target(target), resolve_readout(place, source, names)
    aim = parse_target(target)
    assert isinstance(aim, Target)
    if aim.kind == "class":
        return source.check_target(aim), None
    try:
        read = resolve_readout(target, source, names)
    except KeyError as error:
        raise KeyError(str(error.args[0]).replace("readout=", "target=", 1)) from None
    return source.check_target(Target("gene", aim.name, read.gene)), read


def _observable(
    method: str, aim: TargetLike, read: Readout | None, steps: int
) -> Callable[[Tokens], Observable]:
    """Makes the method's observable for a batch."""
    if method == "attribution":
        attribution = AttentionAttribution(aim, steps=steps)
        return lambda tokens: attribution
    if method == "gradient-attention":
        attention = GradientAttention(aim, total=True)
        return lambda tokens: attention

    def rolled(tokens: Tokens) -> Observable:
        weights = _first_tokens(tokens) if read is None else read.weights(tokens)
        return Relevance(aim, weights, convention=method, identity=method != "chefer-mm")

    return rolled


def _first_tokens(tokens: Tokens) -> torch.Tensor:
    """float32 [T]: one at the first token of each cell."""
    return (tokens.packing.position_of_query() == 0).to(torch.float32)
