"""Leiden clusters of a graph; igraph and leidenalg are imported when they are needed."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def leiden(graph: sparse.csr_matrix, resolution: float, seed: int) -> np.ndarray:
    """Cluster of every node, int64 [n], by modularity with a resolution (Reichardt & Bornholdt 2006).

    Parameters
    ----------
    graph
        [n, n], upper triangle: weights of the edges.
    resolution, seed
        Of the algorithm (Traag et al. 2019).

    Raises
    ------
    ModuleNotFoundError
        Without igraph and leidenalg.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> blocks = np.triu(np.kron(np.eye(2), np.ones((4, 4))), 1)
    >>> cluster = leiden(sparse.csr_matrix(blocks), 1.0, 0)
    >>> len(set(cluster[:4])), len(set(cluster))
    (1, 2)
    """
    try:
        import igraph
        import leidenalg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is needed for Leiden clusters: pip install 'scfast[networks]'"
        ) from None
    edges = graph.tocoo()
    made = igraph.Graph(n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]).tolist())
    found = leidenalg.find_partition(
        made, leidenalg.RBConfigurationVertexPartition, weights=edges.data.astype(float).tolist(),
        resolution_parameter=resolution, seed=seed, n_iterations=-1,
    )  # fmt: skip
    return np.array(found.membership, dtype=np.int64)
