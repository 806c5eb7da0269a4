"""The logits of a BERT's heads as targets of a gradient: one number per cell, part of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scfast.models.base import TokenKind, Tokens
from scfast.models.bert import BertEncoder
from scfast.observables.target import Target, TargetLike


def check_target(
    target: TargetLike,
    encoder: BertEncoder,
    classes: Sequence[str],
    gene_names: Sequence[str] | None,
    name: str,
) -> Target:
    """The target, with the column of its gene; refused where the model has no such logit.

    Parameters
    ----------
    target
        Given to the observables.
    encoder, classes
        The model's weights, and the classes that it tells apart.
    gene_names
        Names of the counts' columns, for genes whose column is not known yet.
    name
        Of the model.

    Raises
    ------
    ValueError
        A head, a class or a gene that does not exist.
    """
    if not isinstance(target, Target):
        raise ValueError(
            f"{name} has no output to apply a function to: use target='class:NAME' or 'gene:NAME'"
        )
    if target.kind == "class":
        if not classes:
            raise ValueError(
                f"target='{target}': {name} has no classifier; fine-tune one with scfast.tl.finetune, or explain a gene"
            )
        if target.name not in classes:
            raise ValueError(f"target='{target}': {name} has the classes {', '.join(map(repr, classes))}")
        return target
    if not encoder.has_head:
        raise ValueError(f"target='{target}': {name} has no masked-gene head (cls.predictions.*)")
    return gene_column(target, gene_names)


def gene_column(target: Target, gene_names: Sequence[str] | None) -> Target:
    """The target with the column of its gene, looked up where it is not known yet.

    Raises
    ------
    ValueError
        When no column or several have the name.
    """
    if target.gene is not None:
        return target
    columns = [column for column, other in enumerate(gene_names or ()) if other == target.name]
    if len(columns) != 1:
        raise ValueError(
            f"target='{target}': that gene occurs {len(columns)} times in gene_names; it must occur once (give "
            "gene_names to the recorder)"
        )
    return Target(target.kind, target.name, columns[0])


def target_values(
    target: Target, encoder: BertEncoder, classes: Sequence[str], tokens: Tokens, states: torch.Tensor
) -> torch.Tensor:
    """The target of every cell, float32 [B], from the last states [T, d]; 0 for cells without the gene.

    A class is read from each cell's first token, as BertForSequenceClassification does; a gene at its own tokens,
    unmasked, whose logits are added up.
    """
    cell = tokens.packing.cell_of_query()
    values = torch.zeros(tokens.n_cells, device=states.device)
    if target.kind == "class":
        first = tokens.packing.position_of_query() == 0
        logits = encoder.classify(states[first])[:, list(classes).index(target.name)]
        return values.index_add(0, cell[first], logits.float())
    own = (tokens.gene_index == target.gene) & (tokens.kind == int(TokenKind.GENE))
    return values.index_add(0, cell[own], encoder.gene_logits(states[own], tokens.ids[own]).float())
