"""Plots; each returns its Axes and takes ``ax=``, ``show=`` and ``save=``."""

from scfast.pl.attention_norms import attention_norms
from scfast.pl.attention_shift import attention_shift
from scfast.pl.clustermap import clustermap
from scfast.pl.compare_de import compare_de
from scfast.pl.confusion import confusion
from scfast.pl.enrich import enrich
from scfast.pl.grn import grn
from scfast.pl.grn_score import grn_score
from scfast.pl.key_genes import key_genes
from scfast.pl.layer_map import layer_map
from scfast.pl.perturbation import perturbation
from scfast.pl.prevalence import prevalence
from scfast.pl.probe import probe
from scfast.pl.rank_profile import rank_profile
from scfast.pl.received import received
from scfast.pl.regulator import regulator
from scfast.pl.relevance import relevance
from scfast.pl.rollout import rollout
from scfast.pl.rollout_matrix import rollout_matrix
from scfast.pl.similarity_distribution import similarity_distribution
from scfast.pl.similarity_heatmap import similarity_heatmap
from scfast.pl.training import training

__all__ = [
    "attention_norms",
    "attention_shift",
    "clustermap",
    "compare_de",
    "confusion",
    "enrich",
    "grn",
    "grn_score",
    "key_genes",
    "layer_map",
    "perturbation",
    "prevalence",
    "probe",
    "rank_profile",
    "received",
    "regulator",
    "relevance",
    "rollout",
    "rollout_matrix",
    "similarity_distribution",
    "similarity_heatmap",
    "training",
]
