"""Cell embeddings: the vector that a model's readout gives for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from scfast.analyses import Embedding
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import HiddenStates
from scfast.run import survey
from scfast.tl._batches import Conditions, given, make_batches, stays_on_disk
from scfast.tl._inputs import commit, get_counts, get_rows, get_source

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def embed(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    pool: Literal["cls", "mean"] | None = None,
    layer: int = -1,
    key_added: str | None = None,
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """One vector per cell: the model's state at the cls token, or its mean over the cell's genes.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    pool
        ``"cls"`` or ``"mean"`` (over gene tokens). Default: what the model's authors use.
    layer
        State after this many layers; 0 is the output of the embeddings, -1 the last layer.
    key_added
        Name in ``adata.obsm``. Default: ``"X_"`` and the kind of model; what is there is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. Cells that do not fit as a whole are run in blocks of tokens, which takes about
        half the memory; a batch that does not fit after all is run in halves, a cell in smaller blocks.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the result instead of writing it into ``adata``.

    Returns
    -------
    AnnData or None
        ``obsm[key_added]``: float32 [cells, d]; nan for cells without a gene of the vocabulary.
        ``uns[key_added]["params"]``: the arguments, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit; the message names it and the remedy. ``adata`` is unchanged after any
        error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.embed(adata, model)
    >>> adata.obsm["X_geneformer"].shape
    (60, 64)
    """
    if pool not in (None, "cls", "mean"):
        raise ValueError(f"pool={pool!r} is unknown; use 'cls' or 'mean'")
    how = Conditions(memory, backend, progress)
    counts = get_counts(adata, counts_layer)
    source = get_source(model, device)
    key = f"X_{source.name.partition(':')[0]}" if key_added is None else key_added
    pool = source.default_readout if pool is None else pool
    if pool == "cls" and source.cls_position is None:
        raise ValueError(f"pool='cls': {source.name} has no cls token; use pool='mean'")
    if not -source.n_layers - 1 <= layer <= source.n_layers:
        raise ValueError(
            f"layer={layer} does not exist: {source.name} has states 0 (embeddings) to {source.n_layers}"
        )

    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    batches = make_batches(
        source,
        counts,
        found,
        rows,
        how,
        results_bytes=0 if stays_on_disk(counts) else 4 * source.hidden_size * adata.n_obs,
        hidden_kept=1,
        in_blocks=True,
    )

    def observe(tokens: Tokens) -> Sequence[HiddenStates]:
        return [HiddenStates(layer, pool=pool)]

    results = batches.run({"vectors": Embedding(source.hidden_size)}, observe, "embed", rows_on_disk=True)
    noted = {**given(counts_layer=counts_layer), **batches.params(results.plan)}
    params = {"pool": pool, "layer": layer, **noted}
    target = adata.copy() if copy else adata
    commit(target, obsm={key: results["vectors"]}, uns={key: {"params": params}})
    return target if copy else None
