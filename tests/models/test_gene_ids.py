"""Genes are found by their id first, then by their symbol, and what is lost is said."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scfast.models.dictionaries import Dictionaries
from scfast.models.gene_ids import match_genes

IDS = [f"ENSG{number:011d}" for number in range(1, 6)]
TABLES = Dictionaries(
    tokens={"<pad>": 0, "<mask>": 1} | {gene: 2 + number for number, gene in enumerate(IDS)},
    medians=dict.fromkeys(IDS, 1.0),
    gene_names={f"S{number}": gene for number, gene in enumerate(IDS, start=1)},
)


def test_a_gene_without_an_id_is_found_by_its_symbol() -> None:
    var = pd.DataFrame(
        {"ensembl_id": [IDS[0], IDS[1] + ".7", np.nan, "ENSG99999999999", "", IDS[4]]},
        index=["S1", "S2", "S3", "S4", "unknown", "S5"],
    )
    match = match_genes(var, TABLES)
    assert (match.source, match.by) == ("ensembl_id", "id")
    # S4 has an id, which the vocabulary lacks: its symbol does not overrule it
    assert match.token_ids.tolist() == [2, 3, 4, -1, -1, 6]
    assert (match.n_matched, match.n_by_symbol, match.n_collapsed) == (4, 1, 0)
    assert match.describe() == (
        "4 of 6 genes are in the vocabulary (var['ensembl_id'] read as gene ids, 1 without an id by their symbol); "
        "2 are lost (ENSG99999999999, no name); 0 were added to another column of the same gene"
    )


def test_a_symbol_of_a_gene_that_is_there_is_added_to_it() -> None:
    var = pd.DataFrame({"gene_ids": [*IDS[:3], None]}, index=["a", "b", "c", "S2"])
    match = match_genes(var, TABLES)
    assert match.target.tolist() == [0, 1, 2, 1]
    assert (match.n_by_symbol, match.n_collapsed) == (1, 1)


def test_the_first_names_that_are_lost_are_shown() -> None:
    names = [*IDS, *(f"ENSG000001{number:05d}" for number in range(9))]
    match = match_genes(pd.DataFrame(index=names), TABLES)
    assert "9 are lost (ENSG00000100000, ENSG00000100001, ENSG00000100002, ...)" in match.describe()
    everything = match_genes(pd.DataFrame(index=IDS), TABLES)
    assert "0 are lost; 0 were added" in everything.describe()
