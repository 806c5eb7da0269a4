"""cosine_histogram: how the cosine similarities of all pairs of rows are distributed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _triton
from scfast.ops._cosine import ROWS, Rows, check_count, check_rows, n_cells
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY
from scfast.packing import Packing

LIBRARY.define(f"cosine_histogram({ROWS}, int bins) -> (Tensor, Tensor, Tensor, Tensor)")

MAX_BINS = 2**16


class CosineHistogram(NamedTuple):
    """The distribution of similarities: of all pairs, or, with a packing, of each cell [B] of it.

    Histograms of the same bins are merged by adding ``counts``, ``n_nan``, ``n_zero``, ``sum`` and
    ``sum_of_squares``, and taking the smaller ``min`` and the larger ``max``.

    Attributes
    ----------
    counts
        int64 [bins] or [B, bins]: similarities s with ``edges[b] <= s < edges[b + 1]``; 1 is in the last bin.
    n_nan
        int64: pairs that are NaN and counted nowhere else.
    n_zero
        int64 [2] or [B, 2]: rows of x and of y that are all 0 (x with itself: 0 for y).
    min, max
        float32: inf and -inf without pairs.
    sum, sum_of_squares
        float64, of the similarities that are not NaN.
    """

    counts: torch.Tensor
    n_nan: torch.Tensor
    n_zero: torch.Tensor
    min: torch.Tensor
    max: torch.Tensor
    sum: torch.Tensor
    sum_of_squares: torch.Tensor

    @property
    def edges(self) -> torch.Tensor:
        """float32 [bins + 1]: borders of the bins, evenly from -1 to 1."""
        return cosine_edges(self.counts.shape[-1]).to(self.counts.device)

    @property
    def n_pairs(self) -> torch.Tensor:
        """int64: pairs counted, those that are NaN left out."""
        return self.counts.sum(-1)

    @property
    def mean(self) -> torch.Tensor:
        """float64: mean similarity; NaN without pairs."""
        return self.sum / self.n_pairs

    @property
    def second_moment(self) -> torch.Tensor:
        """float64: mean of the squared similarity; NaN without pairs."""
        return self.sum_of_squares / self.n_pairs


def cosine_edges(bins: int) -> torch.Tensor:
    """float32 [bins + 1]: the borders of ``bins`` even bins over [-1, 1]."""
    return torch.linspace(-1, 1, bins + 1, dtype=torch.float64).to(torch.float32)


def cosine_histogram(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    packing: Packing | None = None,
    bins: int = 200,
    backend: str = "auto",
) -> CosineHistogram:
    """Distribution of <a, b> / (|a| |b|) over all pairs of rows, without holding the pairs.

    Similarities are float32, within [-1, 1]. A row of zeros has similarity 0 with every row; a row that holds NaN
    or an infinity has NaN with every row. Counts are exact for the op's own similarities, those that
    :func:`cosine_matrix` returns: equal to ``numpy.histogram`` over :attr:`CosineHistogram.edges`.

    Parameters
    ----------
    x
        [N, D]; float32, bfloat16 or float16; may be a view of a memory map. Each pair of rows i < j is counted once.
    y
        [M, D], dtype of x: all N x M pairs of a row of x and a row of y instead.
    packing
        Only pairs within a cell: ``lengths_q`` of it are the cells' rows in x, ``lengths_k`` those in y.
    bins
        1 to 65536.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    CosineHistogram
        It does not depend on the number of threads, nor on the run. Memory: about 6 MB a thread; on a GPU as much as
        the rows, and 36 MB.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    >>> found = scfast.ops.cosine_histogram(x, bins=4)
    >>> found.counts.tolist(), found.mean.item(), found.n_zero.tolist()
    ([0, 0, 5, 1], 0.16666666666666666, [1, 0])
    """
    cu_x, cu_y = check_rows(x, y, packing)
    check_count("bins", bins, MAX_BINS, "bins cannot be counted")
    tensors = {"x": x} if y is None else {"x": x, "y": y}
    chosen = choose("cosine_histogram", backend, **tensors)
    if chosen == "reference":
        counts, zeros, extremes, moments = reference.cosine_histogram(x, y, packing=packing, bins=bins)
    else:
        run = _triton.runner("cosine_histogram", chosen, x, _triton_impl)
        counts, zeros, extremes, moments = run(x, y, cu_x, cu_y, bins)
    if packing is None:
        counts, zeros, extremes, moments = counts[0], zeros[0], extremes[:, 0], moments[:, 0]
    return CosineHistogram(counts[..., :-1], counts[..., -1], zeros, *extremes.unbind(0), *moments.unbind(0))


def _cpu_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    *given, bins = args
    rows = Rows(*given)
    n, edges = len(rows.lengths), cosine_edges(bins)
    counts = torch.zeros(n, bins + 1, dtype=torch.int64)
    extremes, moments = torch.empty(2, n), torch.empty(2, n, dtype=torch.float64)
    _kernels.cosine_histogram(
        rows.kernel, bins, edges.data_ptr(), counts.data_ptr(),
        *(x.data_ptr() for x in (*extremes.unbind(0), *moments.unbind(0))),
    )  # fmt: skip
    return counts, rows.zeros, extremes, moments


def _triton_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    from scfast.ops._cosine_triton import PreparedRows

    *given, bins = args
    rows = PreparedRows(*given)
    n, x = len(rows.lengths), given[0]
    counts = x.new_zeros((n, bins + 1), dtype=torch.int64)
    extremes = torch.tensor([torch.inf, -torch.inf], device=x.device)[:, None].repeat(1, n)
    moments = x.new_zeros((2, n), dtype=torch.float64)
    with rows.device():
        rows.kernel("cosine_histogram").launch(
            rows.walk, cosine_edges(bins).to(x.device), counts, extremes, moments
        )
    return counts, rows.zeros, extremes, moments


def _fake(
    x: torch.Tensor, y: Any, cu_x: torch.Tensor | None, cu_y: Any, bins: int
) -> tuple[torch.Tensor, ...]:
    n = n_cells(cu_x)
    return (
        x.new_empty((n, bins + 1), dtype=torch.int64),
        x.new_empty((n, 2), dtype=torch.int64),
        x.new_empty((2, n), dtype=torch.float32),
        x.new_empty((2, n), dtype=torch.float64),
    )


LIBRARY.impl("cosine_histogram", _cpu_impl, "CPU")
LIBRARY.impl("cosine_histogram", _triton_impl, "CUDA")
torch.library.register_fake("scfast::cosine_histogram", _fake, lib=LIBRARY)
