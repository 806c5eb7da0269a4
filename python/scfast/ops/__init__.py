"""The ops: contract, checks, dispatch and torch registration of each kernel."""

from scfast.maps import Norm, Prob, Relevance
from scfast.ops.attention_backward import AttentionGradients, attention_backward
from scfast.ops.attention_colsum import attention_colsum
from scfast.ops.attention_compare import MapProducts, attention_compare
from scfast.ops.attention_forward import AttentionOutput, attention_forward
from scfast.ops.attention_matmul import attention_matmul
from scfast.ops.attention_rowstats import RowStats, attention_rowstats
from scfast.ops.attention_scatter import attention_scatter
from scfast.ops.attention_topk import TopKeys, attention_topk
from scfast.ops.bin_values import bin_values
from scfast.ops.cosine_histogram import CosineHistogram, cosine_histogram
from scfast.ops.cosine_matrix import cosine_matrix
from scfast.ops.cosine_threshold import SimilarRows, cosine_threshold
from scfast.ops.cosine_topk import NearestRows, cosine_topk
from scfast.ops.rank_values import RankedCells, rank_values

__all__ = [
    "AttentionGradients",
    "AttentionOutput",
    "CosineHistogram",
    "MapProducts",
    "NearestRows",
    "Norm",
    "Prob",
    "RankedCells",
    "Relevance",
    "RowStats",
    "SimilarRows",
    "TopKeys",
    "attention_backward",
    "attention_colsum",
    "attention_compare",
    "attention_forward",
    "attention_matmul",
    "attention_rowstats",
    "attention_scatter",
    "attention_topk",
    "bin_values",
    "cosine_histogram",
    "cosine_matrix",
    "cosine_threshold",
    "cosine_topk",
    "rank_values",
]
