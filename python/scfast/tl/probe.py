"""Where in a model a concept can be read: linear probes of every layer, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from scfast.models.base import AttentionSource, Tokens
from scfast.observables import TokenStates
from scfast.run import granted_memory, survey
from scfast.run.memory import MB
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._inputs import check_options, commit, get_counts, get_rows, get_source
from scfast.tl._labels import Labelled, label_cells
from scfast.tl._probe_design import make_design
from scfast.tl._probe_tables import fill_logistic, label_table, probe_tables
from scfast.tl._probes import Probes
from scfast.tl._read_places import resolve_places
from scfast.tl._readout import resolve_states

if TYPE_CHECKING:
    from anndata import AnnData

#: The share of the granted memory that Gram matrices may take.
GRAM_SHARE = 0.5


def probe(
    adata: AnnData,
    model: AttentionSource | str,
    labels: str | Sequence[str],
    *,
    readouts: Sequence[str] | None = None,
    positions: Sequence[int] = (),
    genes: Sequence[str] = (),
    gene_symbols: str | None = None,
    layers: Sequence[int] | None = None,
    replicate_key: str | None = None,
    folds: int = 5,
    shrinkage: float | Literal["oas"] = "oas",
    n_sample: int = 2000,
    confirm: Literal["best", "all"] | None = "best",
    key_added: str = "probe",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """How well labels can be read from each layer: linear probes (Alain & Bengio 2018) of several readouts at once.

    The model runs once. Counts, class sums and second moments of the states are summed up in float64, by fold of
    cross-validation; from them come linear discriminants with a shrunk covariance, for every layer, readout and label,
    with memory that does not grow with the cells. They are tested on a sample of cells that is kept, each cell by the
    probe of the folds that it is not in.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    labels
        Columns of ``adata.obs``, one or several. A cell without a label takes no part in that label's probes.
    readouts
        ``"cls"`` and ``"mean"`` (over gene tokens). Default: all that the model has.
    positions
        Single tokens too: places in the encoding, from 1 (the first gene).
    genes
        The tokens of single genes too, from the cells that have them: names from ``adata.var_names`` or
        ``gene_symbols``.
    gene_symbols
        Column of ``adata.var`` that ``genes`` are looked up in.
    layers
        States after so many layers; 0 is the output of the embeddings. Default: all.
    replicate_key
        Column of ``adata.obs`` (donor, batch): cells of one replicate are in one fold, so that a probe is tested on
        replicates that it has not seen.
    folds
        Of cross-validation.
    shrinkage
        s of (1 - s) S + s tr(S) / d I, or ``"oas"``, which takes s from the states (Chen et al. 2010).
    n_sample
        Cells that are kept for the test, drawn by class and fold.
    confirm
        Where logistic regression (L-BFGS, C = 0.1 on standardised states) is fitted to the sample too, to confirm the
        discriminants: ``"best"``, the best layer of each label and readout; ``"all"``; or None.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. The Gram matrices, folds x layers x readouts of width x width float64, may take
        half of it.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    seed
        Of folds, sample and shuffled labels.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per label, layer and readout: ``f1`` (macro-F1 of held-out cells) and ``f1_se`` (between
            folds), ``accuracy``, ``control`` (macro-F1 of probes of shuffled labels: what a probe finds where there is
            nothing), ``chance`` (1 / classes), ``logistic`` (macro-F1 of the confirming regression, nan where there is
            none), ``train`` (cells of an average fold) and ``test`` cells, and ``shrinkage``.
        ``"classes"``
            DataFrame: F1 of every class, ``label``, ``layer``, ``readout``, ``class``, ``f1``.
        ``"tokens"``
            With ``positions`` or ``genes``: DataFrame, one row per label and layer: ``tokens``, the mean F1 of the
            probes of single tokens, beside that of ``cls`` and ``mean``.
        ``"transfer"``
            DataFrame: F1 of a probe that was ``trained_on`` one readout and ``tested_on`` another, in the same layer.
        ``"labels"``
            DataFrame, one row per label: ``classes``, ``cells`` and ``missing`` (cells without it).
        ``"params"``
            The arguments, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit: a label with one value, a class with fewer cells than folds, states that are nan,
        Gram matrices beyond the memory; the message names it and the remedy. ``adata`` is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Notes
    -----
    A probe of an untrained model is what a layer gives for nothing: run ``model.untrained()`` beside, under another
    ``key_added``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.probe(adata, model, ["cell_type", "condition"], replicate_key="donor", folds=3)
    >>> table = adata.uns["probe"]["table"]
    >>> table[["label", "layer", "readout"]].values.tolist()[:3]
    [['cell_type', 0, 'mean'], ['cell_type', 1, 'mean'], ['cell_type', 2, 'mean']]
    >>> bool((table["f1"] > table["control"]).any())  # better than shuffled labels
    True
    """
    check_options(key_added)
    _check_numbers(folds, shrinkage, n_sample, confirm)
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    labelled = _label(adata, labels)
    source = get_source(model, device)
    places = resolve_places(adata, source, readouts, positions, genes, gene_symbols)
    wanted = resolve_states(layers, source)
    found = survey(source, counts)
    design = make_design(
        adata, labelled, get_rows(found, source, adata.var), replicate_key, folds, n_sample, seed
    )
    rows = np.flatnonzero(design.folds >= 0)

    n_units, width = len(wanted) * len(places), source.hidden_size
    n_grams = len(design.patterns[0]) * folds
    _check_memory(
        source, how, n_units, width, n_grams, f"{len(wanted)} layers x {len(places)} readouts", folds
    )
    analyses = design.analyses(n_units, width)
    # float32 from the model and float64 twice on the host, of cells of average length
    observed = 20 * n_units * width // max(1, int(np.mean(found.lengths[rows])))
    batches = make_batches(
        source, counts, found, rows, how, hidden_kept=1, observed=observed, in_blocks=True,
        results_bytes=sum(x.nbytes for x in analyses.values()),
    )  # fmt: skip

    def observe(tokens: Tokens) -> Sequence[TokenStates]:
        return [TokenStates(torch.stack([place.weights(tokens) for place in places]), wanted)]

    results = batches.run(analyses, observe, "probe")
    probes = Probes(design, analyses, len(places), shrinkage)
    tested = {(label, unit): test for unit in range(n_units) for label, test in probes.of_unit(unit)}
    empty = sum(not test.cells for test in tested.values())
    if empty:
        warnings.warn(
            f"{empty} of {len(tested)} probes have cells of fewer than two classes, because few cells have that token:"
            " their F1 is nan",
            UserWarning,
            stacklevel=2,
        )
    uns = probe_tables(design, tested, wanted, places)
    fill_logistic(uns["table"], probes, confirm, len(wanted), len(places))
    uns["labels"] = label_table(labelled, design)
    uns["params"] = {
        "labels": np.array(list(labelled), dtype=str), "folds": folds, "shrinkage": shrinkage,
        "n_sample": len(design.sample), **given(
            replicate_key=replicate_key, counts_layer=counts_layer, gene_symbols=gene_symbols, confirm=confirm,
        ),
        **batches.params(results.plan),
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _check_numbers(folds: int, shrinkage: float | str, n_sample: int, confirm: str | None) -> None:
    if not isinstance(folds, int) or folds < 2:
        raise ValueError(f"folds={folds!r} must be a whole number, 2 or more")
    if shrinkage != "oas" and not (isinstance(shrinkage, float | int) and 0.0 < shrinkage <= 1.0):
        raise ValueError(f"shrinkage={shrinkage!r} must lie above 0 and not above 1, or be 'oas'")
    if not isinstance(n_sample, int) or n_sample < folds:
        raise ValueError(f"n_sample={n_sample!r} must be a number of cells, {folds} or more")
    if confirm not in ("best", "all", None):
        raise ValueError(f"confirm={confirm!r} is unknown; use 'best', 'all' or None")


def _label(adata: AnnData, labels: str | Sequence[str]) -> dict[str, Labelled]:
    names = [labels] if isinstance(labels, str) else list(labels)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"labels={names} must name at least one column of adata.obs, and none twice")
    return {name: label_cells(adata.obs, name) for name in names}


def _check_memory(
    source: AttentionSource, how: Conditions, n_units: int, width: int, n_grams: int, what: str, folds: int
) -> None:
    """Refuse more Gram matrices than their share of the memory holds."""
    of_unit = n_grams * width * width * 8
    granted = granted_memory(how.memory, source.device)
    room = int(granted * GRAM_SHARE)
    if n_units * of_unit > room:
        raise ValueError(
            f"the probes of {what} need {n_units} x {n_grams} Gram matrices of {width} x {width} ({folds} folds),"
            f" {n_units * of_unit / MB:,.0f} MB, and may take half of memory={granted / MB:,.0f}MB, which holds"
            f" {room // of_unit} pairs of layer and readout: name fewer layers=, readouts=, positions= or genes=, fewer"
            f" folds=, or pass memory='{-(-2 * n_units * of_unit // MB)}MB' or more"
        )
