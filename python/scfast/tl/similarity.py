"""How alike a model's states are: those of its layers, of the tokens of a cell, and of genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.analyses import Accumulator, GeneStates, LayerCosines, Strata, TokenSimilarity
from scfast.analyses.layer_cosines import LayerCosinesResult
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import GeneStateSums, HiddenStates, Observable, TokenCosines
from scfast.observables.token_cosines import PAIRS, STATISTICS
from scfast.run import granted_memory, survey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._blocks import find_blocks
from scfast.tl._cell_map import cell_results, choose_cell
from scfast.tl._gene_states import check_gene_memory, choose_genes, gene_results
from scfast.tl._inputs import Groups, check_options, commit, get_counts, get_groups, get_rows, get_source
from scfast.tl._readout import resolve_states
from scfast.tl._tables import categorical
from scfast.tl._token_pairs import ALL, token_results

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def similarity(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    readout: Literal["cls", "mean"] | None = None,
    groupby: str | None = None,
    replicate_key: str | None = None,
    max_blocks: int | None = None,
    tokens: bool = True,
    bins: int = 200,
    genes: Sequence[str] | Literal["all"] | None = None,
    cell: str | None = None,
    gene_symbols: str | None = None,
    layers: Sequence[int] | None = None,
    min_cells: int = 10,
    n_neighbors: int = 10,
    key_added: str = "similarity",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """How alike a model's states are, by cosine: its layers, the tokens of a cell, and genes, in one pass.

    Layers: the readout vector of each cell, layer against layer, averaged over the cells of a group; layers form
    contiguous blocks of the clearest silhouette. A small change from one layer to the next says that the layer adds
    little to this vector.

    Tokens: the distribution of cosines between the tokens of one cell, after each layer, for pairs of genes, of a gene
    and another token, and of two others. States that grow alike carry less of what tells the tokens apart.

    Genes: the mean state of each gene over the cells that have it, and which genes are near each other.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    readout
        ``"cls"`` or ``"mean"`` (over gene tokens). Default: what the model's authors use.
    groupby
        Column of ``adata.obs``: a map per group. Default: one group, ``"all"``.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between cells.
    max_blocks
        Most blocks of layers. Default: one less than there are states.
    tokens
        Whether the tokens of cells are compared: no map of tokens x tokens is held. Cells of a group are pooled, and
        all cells together are a row ``"all"`` beside the groups.
    bins
        Of the distributions, evenly over [-1, 1].
    genes
        Genes whose mean states over all cells are compared, each with each: names from ``adata.var_names`` or
        ``gene_symbols``. ``"all"``: all genes of ``min_cells`` cells, of which the nearest ones are kept. Default:
        none.
    cell
        One cell, of ``adata.obs_names``, of which the similarity of all its tokens is kept, as a map. Default: none.
    gene_symbols
        Column of ``adata.var`` that ``genes`` are looked up in.
    layers
        States of ``genes`` and ``cell`` after so many layers; 0 is the output of the embeddings. Default: all.
    min_cells
        Genes with a token in fewer cells are left out.
    n_neighbors
        Nearest genes of each gene.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. Cells that do not fit as a whole are run in blocks of tokens, which takes about
        half the memory; a batch that does not fit after all is run in halves.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``, with states 0 (the output of the embeddings) to N:

        ``"map"``
            float64 [groups, N + 1, N + 1]: mean cosine of the readout vector between layers; ``"map_se"`` its standard
            error. A vector of zeros is like no other: its cosine is 0.
        ``"table"``
            DataFrame, one row per group and layer: ``block`` (from 0), ``change`` (1 - cosine to the layer before; nan
            for the embeddings), ``to_last`` (cosine to the last layer) and ``zeros`` (cells whose vector is 0).
        ``"groups"``
            DataFrame, one row per group: ``cells``, ``blocks``, and the ``silhouette`` of the partition (1: clear
            blocks, 0: none), and ``last_block``, the layer at which the last block begins: those after it change the
            vector least.
        ``"tokens"``
            DataFrame, one row per group (and ``"all"``), layer and ``pair`` (gene-gene, gene-special,
            special-special; special is all that is neither gene nor padding; kinds that no cell has are left out):
            ``cells`` and ``pairs`` of tokens; of the cosines of these pairs ``mean``, ``sd``, ``min``, ``q05``,
            ``q25``, ``median``, ``q75``, ``q95``, ``max``, where long cells weigh more (quantiles within the width of
            a bin); ``cell_mean``, the mean over cells of the mean of each, and its standard error ``cell_se``; and
            ``zeros``, tokens whose state is 0, which is like no other.
        ``"token_counts"``, ``"token_groups"``, ``"edges"``
            int64 [groups, N + 1, 3, bins]: pairs in each bin; the groups; float32 [bins + 1]: borders of the bins.
        ``"genes"``
            With ``genes``, for G genes and L layers: ``"names"``; ``"cells"`` that have each, which all weigh the same
            (a gene with several tokens in a cell counts by their mean); ``"layers"``; ``"states"`` float32 [L, G, d];
            ``"similarity"`` float32 [L, G, G], for genes that were named; ``"neighbors"``, DataFrame ``layer``,
            ``gene``, ``neighbor``, ``rank``, ``similarity``; and ``"zeros"`` [L], genes whose state is 0.
        ``"cell"``
            With ``cell``, for its n tokens: ``"name"``, ``"tokens"``, DataFrame ``token``, ``kind``, ``place``;
            ``"names"`` of the tokens, ``"layers"``, ``"similarity"`` float32 [L, n, n], ``"zeros"`` [L].
        ``"params"``
            The arguments, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, states that are nan and genes that exceed the memory among it; the message names
        it and the remedy. ``adata`` is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model, groupby="cell_type", genes=["CD3D", "CD3E", "LYZ"])
    >>> found = adata.uns["similarity"]
    >>> found["map"].shape  # groups, states, states
    (3, 3, 3)
    >>> found["table"].columns.tolist()
    ['group', 'layer', 'block', 'change', 'to_last', 'zeros']
    >>> found["tokens"].query("group == 'all' and pair == 'gene-gene'")["layer"].tolist()
    [0, 1, 2]
    >>> found["genes"]["similarity"].shape  # states, genes, genes
    (3, 3, 3)
    """
    check_options(key_added)
    if readout not in (None, "cls", "mean"):
        raise ValueError(f"readout={readout!r} is unknown; use 'cls' or 'mean'")
    if max_blocks is not None and (not isinstance(max_blocks, int) or max_blocks < 1):
        raise ValueError(f"max_blocks={max_blocks!r} must be a whole number, 1 or more")
    _check_numbers(bins=bins, min_cells=min_cells, n_neighbors=n_neighbors)
    how = Conditions(memory, backend, progress)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    if tokens and groupby is not None and ALL in groups.names:
        raise ValueError(
            f"adata.obs[{groupby!r}] has a group {ALL!r}, the name of all cells together: rename it"
        )
    together = get_groups(adata, None, replicate_key).strata if tokens and groupby is not None else None
    source = get_source(model, device)
    pool = source.default_readout if readout is None else readout
    if pool == "cls" and source.cls_position is None:
        raise ValueError(f"readout='cls': {source.name} has no cls token; use readout='mean'")
    wanted = resolve_states(layers, source)
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    row = None
    if cell is not None:
        row = choose_cell(adata, cell, found.lengths, len(wanted), granted_memory(how.memory, source.device))
    chosen = None
    if genes is not None:
        chosen = choose_genes(
            adata, source, counts, found, rows, genes, gene_symbols, wanted, min_cells, n_neighbors
        )
        check_gene_memory(chosen, source, how.memory)

    n_states, width = source.n_layers + 1, source.hidden_size
    analyses: dict[str, Accumulator] = {"cosines": LayerCosines(groups.strata, n_states)}
    # float32 from the model, float64 twice on the host
    bytes_of_cell, hidden_kept = 20 * n_states * width, 1
    if tokens:
        analyses["tokens"] = TokenSimilarity(groups.strata, n_states, bins)
        if together is not None:
            analyses["all tokens"] = TokenSimilarity(together, n_states, bins)
        bytes_of_cell += 24 * n_states * len(PAIRS) * (bins + len(STATISTICS))
        hidden_kept += 1  # those of genes, laid together
    if chosen is not None:
        everyone = Strata.from_codes(np.zeros(adata.n_obs, dtype=np.int64), 1)
        analyses["genes"] = GeneStates(everyone, chosen.columns, len(wanted), width)
        hidden_kept += 3  # those of genes, laid together, in float64
    batches = make_batches(
        source,
        counts,
        found,
        rows,
        how,
        results_bytes=sum(x.nbytes for x in analyses.values())
        + (chosen.bytes_of_sums(width) // 2 if chosen else 0),
        hidden_kept=hidden_kept,
        observed=bytes_of_cell // max(1, int(np.mean(found.lengths[rows]))),
        in_blocks=True,
    )

    def observe(_: Tokens) -> Sequence[Observable]:
        observables: list[Observable] = [HiddenStates(pool=pool)]
        if tokens:
            observables.append(TokenCosines(bins=bins))
        if chosen is not None:
            observables.append(GeneStateSums(chosen.columns, wanted))
        return observables

    results = batches.run(analyses, observe, "similarity")
    uns: dict[str, Any] = {
        **_tables(groups, results["cosines"], max_blocks),
        "map": results["cosines"].mean,
        "map_se": results["cosines"].se,
        "params": {
            "readout": pool,
            **given(
                groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer, max_blocks=max_blocks,
                cell=cell, gene_symbols=gene_symbols,
            ),
            **batches.params(results.plan),
        },
    }  # fmt: skip
    if tokens:
        every = [] if together is None else [([ALL], results["all tokens"])]
        uns |= token_results([(groups.names, results["tokens"]), *every])
    if chosen is not None:
        uns["genes"] = gene_results(adata, chosen, results["genes"])
        uns["params"] |= {"min_cells": min_cells}
    if row is not None:
        uns["cell"] = cell_results(adata, source, counts, row, wanted, how)
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number, 1 or more")


def _tables(groups: Groups, found: LayerCosinesResult, max_blocks: int | None) -> dict[str, pd.DataFrame]:
    """A row per group and layer, and a row per group."""
    parts, abouts = [], []
    for number, name in enumerate(groups.names):
        alike, cells = found.mean[number], int(found.cells[number])
        n = len(alike)
        of_layer, clear = np.full(n, -1, dtype=np.int64), np.nan
        if cells:
            of_layer, clear = find_blocks(alike, max_blocks)
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "layer": np.arange(n),
                    "block": of_layer,
                    "change": np.concatenate([[np.nan], 1.0 - np.diag(alike, 1)]),
                    "to_last": alike[:, -1],
                    "zeros": found.zeros[number],
                }
            )
        )
        last = int(np.argmax(of_layer)) if cells else -1  # the first layer of the last block
        abouts.append((cells, int(of_layer.max()) + 1, clear, last))
    return {
        "table": categorical(pd.concat(parts, ignore_index=True), "group"),
        "groups": pd.DataFrame(
            abouts,
            columns=["cells", "blocks", "silhouette", "last_block"],
            index=pd.Index(groups.names, name="group"),
        ),
    }
