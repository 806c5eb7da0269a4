import anndata as ad
import numpy as np
import pandas as pd

from scfast.demo import draw_marker_ranks, draw_training, marker_ranks


def test_ranks_weigh_cell_types_by_their_cells(tmp_path):
    genes = ["CD3D", "LYZ", "ACTB", "CD79A", "IL7R"]
    adata = ad.AnnData(np.zeros((1, 5)), var=pd.DataFrame(index=genes))
    groups = ["CD4+/CD45RO+ Memory", "CD8+ Cytotoxic T", "CD19+ B", "CD14+ Monocyte", "CD56+ NK"]
    columns = [name.replace("/", "|") for name in groups]
    scores = np.array(
        # memory, cytotoxic, B, monocyte, NK
        [
            [0.0, 0.3, 0.1, 0.1, 0.0],
            [0.5, 0.0, 0.1, 0.5, 0.0],
            [0.2, 0.2, 0.2, 0.2, 1.0],
            [0.0, 0.1, 0.6, 0.0, 0.0],
            [0.3, 0.4, 0.0, 0.2, 0.0],
        ]
    )
    adata.varm["rollout"] = pd.DataFrame(scores, index=genes, columns=columns)
    adata.varm["rollout_null"] = pd.DataFrame(0.2, index=genes, columns=columns)
    adata.uns["rollout"] = {"groups": pd.DataFrame({"cells": [10, 30, 5, 5, 5]}, index=groups)}
    ranks = marker_ranks(adata)
    assert ranks[ranks["panel"] == "tutorial"]["gene"].tolist() == [
        "CD79A",
        "CD3D",
    ]  # those that the data have
    got = ranks[ranks["panel"] == "usual"].set_index(["lineage", "gene"])
    # T cells: IL7R .375, CD3D .225, ACTB .2, LYZ .125, CD79A .075
    assert got.loc[("T cells", "IL7R"), "trained"] == 1
    assert got.loc[("T cells", "CD3D"), "trained"] == 2
    assert got.loc[("B cells", "CD79A"), "trained"] == 1
    assert got.loc[("Monocytes", "LYZ"), "trained"] == 1
    assert (ranks["untrained"] == 3).all()  # all tied: the mean place
    draw_marker_ranks(ranks, tmp_path / "ranks.png")
    entry = {"step": 1, "train_loss": 2.0, "held_out_loss": 2.5}
    draw_training({"unigram_loss": 3.0, "history": [entry, entry | {"step": 2}]}, tmp_path / "training.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5000
