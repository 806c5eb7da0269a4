"""Every op in float64 torch, as its formula reads. Slow, quadratic in memory: the oracle, and a backend."""

from scfast.reference.attention_backward import attention_backward
from scfast.reference.attention_colsum import attention_colsum
from scfast.reference.attention_compare import attention_compare
from scfast.reference.attention_forward import attention_forward
from scfast.reference.attention_matmul import attention_matmul
from scfast.reference.attention_rowstats import attention_rowstats
from scfast.reference.attention_scatter import attention_scatter
from scfast.reference.attention_topk import attention_topk
from scfast.reference.bin_values import bin_values
from scfast.reference.cosine_histogram import cosine_histogram
from scfast.reference.cosine_matrix import cosine_matrix
from scfast.reference.cosine_threshold import cosine_threshold
from scfast.reference.cosine_topk import cosine_topk
from scfast.reference.rank_values import rank_values

__all__ = [
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
