"""Observables: what can be computed while a model runs, without its attention maps."""

from scfast.observables.attention_norms import AttentionNorms
from scfast.observables.attribution import AttentionAttribution
from scfast.observables.base import BatchInfo, Observable
from scfast.observables.entropy import Entropy
from scfast.observables.gene_edges import GeneEdges, GeneQueriesKeys
from scfast.observables.gene_state_sums import GeneStateSums
from scfast.observables.globenc import GlobEnc
from scfast.observables.hidden_states import HiddenStates
from scfast.observables.map_shift import MapShift, ReceivedShift
from scfast.observables.norms import HeadNorms, MixingRatio
from scfast.observables.received import Received
from scfast.observables.relevance import GradientAttention, Relevance
from scfast.observables.rollout import Rollout
from scfast.observables.strongest_edges import StrongestEdges
from scfast.observables.target import Target
from scfast.observables.token_cosines import TokenCosines
from scfast.observables.token_states import TokenStates

__all__ = [
    "AttentionAttribution",
    "AttentionNorms",
    "BatchInfo",
    "Entropy",
    "GeneEdges",
    "GeneQueriesKeys",
    "GeneStateSums",
    "GlobEnc",
    "GradientAttention",
    "HeadNorms",
    "HiddenStates",
    "MapShift",
    "MixingRatio",
    "Observable",
    "Received",
    "ReceivedShift",
    "Relevance",
    "Rollout",
    "StrongestEdges",
    "Target",
    "TokenCosines",
    "TokenStates",
]
