"""Reading and writing data, gene vocabularies and medians."""

from scfast.io.anndata_files import read, write_h5ad
from scfast.io.gene_sets import read_clusters, read_gmt
from scfast.io.gene_tables import read_medians, read_vocabulary
from scfast.io.networks import read_network, write_network
from scfast.io.stored import convert, open

__all__ = [
    "convert",
    "open",
    "read",
    "read_clusters",
    "read_gmt",
    "read_medians",
    "read_network",
    "read_vocabulary",
    "write_h5ad",
    "write_network",
]
