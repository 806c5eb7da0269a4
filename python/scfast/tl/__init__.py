"""Tools: what a model attends to, written into an AnnData."""

from scfast.tl.attention_norms import attention_norms
from scfast.tl.attention_shift import attention_shift
from scfast.tl.avg_bio import avg_bio
from scfast.tl.compare_de import compare_de
from scfast.tl.embed import embed
from scfast.tl.enrich import enrich
from scfast.tl.expression_modelling import expression_modelling
from scfast.tl.finetune import finetune
from scfast.tl.gene_programs import gene_programs
from scfast.tl.grn import grn
from scfast.tl.grn_agreement import grn_agreement
from scfast.tl.grn_score import grn_score
from scfast.tl.key_genes import key_genes
from scfast.tl.layers_report import layers_report
from scfast.tl.predict_perturbation import predict_perturbation
from scfast.tl.pretrain import pretrain
from scfast.tl.prevalence import prevalence
from scfast.tl.probe import probe
from scfast.tl.rank_profile import rank_profile
from scfast.tl.received import received
from scfast.tl.regulator import regulator
from scfast.tl.relevance import relevance
from scfast.tl.rollout import rollout
from scfast.tl.rollout_matrix import rollout_matrix
from scfast.tl.similarity import similarity
from scfast.tl.strongest_edges import strongest_edges
from scfast.tl.train_bioformers import train_bioformers
from scfast.tl.train_perturbation import perturbation_summary, train_perturbation

__all__ = [
    "attention_norms",
    "attention_shift",
    "avg_bio",
    "compare_de",
    "embed",
    "enrich",
    "expression_modelling",
    "finetune",
    "gene_programs",
    "grn",
    "grn_agreement",
    "grn_score",
    "key_genes",
    "layers_report",
    "perturbation_summary",
    "predict_perturbation",
    "pretrain",
    "prevalence",
    "probe",
    "rank_profile",
    "received",
    "regulator",
    "relevance",
    "rollout",
    "rollout_matrix",
    "similarity",
    "strongest_edges",
    "train_bioformers",
    "train_perturbation",
]
