"""Gene sets in GMT files, and tables of clusters and of regulators."""

from __future__ import annotations

import gzip
from functools import partial

import scfast
from tests.fuzz.harness import Way

GMT = b"T_CELL\tmarkers\tCD3D\tCD3E\r\nB_CELL\t\tCD79A\tCD79A\nNONE\tempty\n\n"
CLUSTERS = b'gene,cluster\nALB,"liver, and more"\nCD3D,T cells\n'
ATLAS = "\ufeffGene\tEnsembl\tTissue\tRNA TS TPM\nALB\tENSG1\tliver\tliver: 9.5;lung: 2e-1\nX\tENSG2\t\t\n".encode()
NETWORK = b"STAT1\tIRF7\tActivation\t1\nSTAT1\tMYC\tRepression\t2\nSTAT1\tMYC\tUnknown\t3\n"
CHIP_ATLAS = b"Target_genes\tSTAT1|Average\tSRX1|HeLa\nIRF7\t12.5\t3\nMYC\t0\t0\n"

WAYS = [
    Way("sets.gmt", scfast.io.read_gmt, [GMT]),
    Way("network.tsv", scfast.io.read_network, [NETWORK, CHIP_ATLAS, b"source,target,sign\nSTAT1,IRF7,-1\n"]),
    Way("sets.gmt.gz", scfast.io.read_gmt, [gzip.compress(GMT, mtime=0)]),
    Way("clusters.csv", scfast.io.read_clusters, [CLUSTERS]),
    Way("atlas.tsv", partial(scfast.io.read_clusters, column="RNA TS TPM"), [ATLAS], (ValueError, KeyError)),
    Way(
        "atlas.tsv.gz",
        partial(scfast.io.read_clusters, column="Tissue", genes="Gene"),
        [gzip.compress(ATLAS, mtime=0)],
        (ValueError, KeyError),
    ),
]
WORDS = [
    b"\t",
    b"\r",
    b"\r\n",
    b'"',
    b'""',
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b": 1e9;",
    b"RNA TS TPM",
    b"Ensembl",
]
