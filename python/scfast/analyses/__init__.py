"""Results over many cells: accumulators that update and merge, and writers of one row per cell."""

from scfast.analyses.base import Accumulator, Addition, Batch, RowBlock, RowWriter
from scfast.analyses.cell_edges import CellEdges
from scfast.analyses.cell_means import CellMeans
from scfast.analyses.cell_scores import CellScores, CellTokens
from scfast.analyses.embedding import Embedding
from scfast.analyses.gene_edges import GeneEdges, GeneStateTotals
from scfast.analyses.gene_pairs import GenePairs
from scfast.analyses.gene_shares import GeneShares
from scfast.analyses.gene_states import GeneStates
from scfast.analyses.group_expression import GroupExpression
from scfast.analyses.group_scores import GroupScores
from scfast.analyses.layer_cosines import LayerCosines
from scfast.analyses.layer_scores import LayerScores
from scfast.analyses.map_cosines import MapCosines
from scfast.analyses.rank_profile import RankProfile
from scfast.analyses.state_sums import StateGram, StateSums
from scfast.analyses.strata import Strata
from scfast.analyses.token_similarity import TokenSimilarity

__all__ = [
    "Accumulator",
    "Addition",
    "Batch",
    "CellEdges",
    "CellMeans",
    "CellScores",
    "CellTokens",
    "Embedding",
    "GeneEdges",
    "GenePairs",
    "GeneShares",
    "GeneStateTotals",
    "GeneStates",
    "GroupExpression",
    "GroupScores",
    "LayerCosines",
    "LayerScores",
    "MapCosines",
    "RankProfile",
    "RowBlock",
    "RowWriter",
    "StateGram",
    "StateSums",
    "Strata",
    "TokenSimilarity",
]
