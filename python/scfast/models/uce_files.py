"""The files of a UCE as published: where they lie, and what they say about the genes of a species."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from scfast.models import checkpoint, safe_pickle
from scfast.models.uce_tokens import Genes

#: Published weights, deepest first.
WEIGHTS = ("33l_8ep_1024t_1280.torch", "4layer_model.torch")
TOKENS, CHROMOSOMES, OFFSETS = "all_tokens.torch", "species_chrom.csv", "species_offsets.pkl"
EMBEDDINGS = "protein_embeddings"
#: Columns of species_chrom.csv.
_COLUMNS = ("species", "gene_symbol", "chromosome", "start")


class Species(NamedTuple):
    """A published species.

    ``genome`` names its file of protein embeddings; ``ensembl`` is how its Ensembl ids begin; ``upper``: whether its
    gene symbols are written in upper case.
    """

    genome: str
    ensembl: str
    upper: bool = False


SPECIES = {
    "human": Species("Homo_sapiens.GRCh38", "ENSG", upper=True),
    "mouse": Species("Mus_musculus.GRCm39", "ENSMUSG"),
    "frog": Species("Xenopus_tropicalis.Xenopus_tropicalis_v9.1", "ENSXETG"),
    "zebrafish": Species("Danio_rerio.GRCz11", "ENSDARG"),
    "mouse_lemur": Species("Microcebus_murinus.Mmur_3.0", "ENSMICG", upper=True),
    "pig": Species("Sus_scrofa.Sscrofa11.1", "ENSSSCG", upper=True),
    "macaca_fascicularis": Species("Macaca_fascicularis.Macaca_fascicularis_6.0", "ENSMFAG", upper=True),
    "macaca_mulatta": Species("Macaca_mulatta.Mmul_10", "ENSMMUG", upper=True),
}


@dataclass(frozen=True)
class UceFiles:
    """Paths of what a UCE needs; ``tokens`` may be missing where the weights hold the token table."""

    weights: Path
    tokens: Path | None
    chromosomes: Path
    offsets: Path
    embeddings: Path


@dataclass(frozen=True)
class SpeciesGenes:
    """The genes of a species that the model can read.

    Attributes
    ----------
    symbols
        In upper case, in the order of the token table.
    genes
        Their rows, chromosomes and starts.
    without_place
        How many have a protein embedding, but no chromosome.
    """

    symbols: list[str]
    genes: Genes
    without_place: int


def find(
    folder: Path,
    species: str,
    weights: str | Path | None = None,
    protein_embeddings: str | Path | None = None,
) -> UceFiles:
    """The files in a folder, or in its ``model_files``; the folder may also be the file of the weights.

    Raises
    ------
    FileNotFoundError
        When one is missing; says what was looked for.
    ValueError
        When the folder holds both models and nothing says which.
    """
    if folder.is_file():
        folder, weights = folder.parent, folder if weights is None else weights
    places = (folder, folder / "model_files")

    def look(name: str) -> Path | None:
        return next((place / name for place in places if (place / name).exists()), None)

    def need(name: str, remedy: str) -> Path:
        found = look(name)
        if found is None:
            raise FileNotFoundError(f"{folder} holds no {name}: {remedy}")
        return found

    if weights is None:
        found = [path for path in map(look, WEIGHTS) if path is not None]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise ValueError(f"{folder} holds {names}: say which with weights=, or name the file itself")
        chosen = (
            found[0] if found else need(" or ".join(WEIGHTS), "fetch the published weights, or give weights=")
        )
    else:
        chosen = Path(weights) if Path(weights).is_file() else need(str(weights), "give the path in weights=")
    if protein_embeddings is None:
        if species not in SPECIES:
            raise ValueError(
                f"species={species!r} is none of the published ones ({', '.join(SPECIES)}): for another, give"
                " protein_embeddings=, the file of its protein embeddings"
            )
        name = f"{EMBEDDINGS}/{SPECIES[species].genome}.gene_symbol_to_embedding_ESM2.pt"
        embeddings = need(
            name, "unpack the published protein_embeddings.tar.gz there, or give protein_embeddings="
        )
    else:
        embeddings = Path(protein_embeddings)
        if not embeddings.is_file():
            raise FileNotFoundError(f"protein_embeddings={str(embeddings)!r} is no file")
    return UceFiles(
        weights=chosen,
        tokens=look(TOKENS),
        chromosomes=need(CHROMOSOMES, "it says where the genes of each species lie"),
        offsets=need(OFFSETS, "it says where the genes of each species begin in the token table"),
        embeddings=embeddings,
    )


def read_genes(files: UceFiles, species: str) -> tuple[SpeciesGenes, dict[int, torch.Tensor]]:
    """The genes of a species, and the protein embeddings of a few by their rows of the token table.

    Rows follow the order of the protein embeddings, from the species' offset; chromosome codes are those of all species
    together, so that none may be left out of species_chrom.csv.

    Raises
    ------
    ValueError
        When a file is damaged or another one, or the species is not in it.
    """
    offset = _offset(files.offsets, species)
    embeddings = checkpoint.read_torch(files.embeddings, mmap=True)
    if not isinstance(embeddings, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.dim() == 1
        for key, value in embeddings.items()
    ):
        raise ValueError(
            f"{files.embeddings} must hold a vector for each gene symbol; it holds {_content(embeddings)}"
        )
    if not embeddings:
        raise ValueError(f"{files.embeddings} holds no gene")
    vectors = {key.upper(): value for key, value in embeddings.items()}  # a symbol keeps its first place
    places = _places(files.chromosomes, species)
    symbols = list(vectors)
    known = [number for number, symbol in enumerate(symbols) if symbol in places.index]
    if not known:
        raise ValueError(
            f"{files.chromosomes} knows none of the {len(symbols)} genes of {files.embeddings.name}, such as"
            f" {', '.join(symbols[:3])}; its {species} genes are {', '.join(places.index[:3])}: the two belong together"
        )
    own = places.loc[[symbols[number] for number in known]]
    genes = Genes(
        rows=offset + np.asarray(known, dtype=np.int64),
        chromosomes=own["code"].to_numpy(dtype=np.int64),
        starts=own["start"].to_numpy(dtype=np.int64),
    )
    probes = {offset + n: vectors[symbols[n]] for n in {0, len(symbols) // 2, len(symbols) - 1}}
    found = SpeciesGenes([symbols[number] for number in known], genes, len(symbols) - len(known))
    return found, probes


def _offset(path: Path, species: str) -> int:
    table = safe_pickle.load(path)
    if not isinstance(table, dict) or not all(
        isinstance(key, str) and isinstance(value, int | np.integer) for key, value in table.items()
    ):
        raise ValueError(
            f"{path} must hold the first row of each species in the token table, such as human: 13466; it holds"
            f" {_content(table)}"
        )
    if species not in table:
        raise ValueError(f"species={species!r} is not in {path}, which has {_some(sorted(table))}")
    return int(table[species])


def _places(path: Path, species: str) -> pd.DataFrame:
    """Code of the chromosome and start of every gene of the species, by symbol."""
    try:
        table = pd.read_csv(path, dtype={"species": str, "gene_symbol": str, "chromosome": str})
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(_COLUMNS)}; it has {_some(list(map(str, table.columns)))}"
        )
    table["code"] = pd.Categorical(table["species"] + "_" + table["chromosome"]).codes
    own = table[table["species"] == species]
    if own.empty:
        known = sorted(table["species"].dropna().unique())
        raise ValueError(f"species={species!r} is not in {path}, which has {_some(known)}")
    own = own.assign(start=pd.to_numeric(own["start"], errors="coerce"))
    nowhere = own[(own["code"] < 0) | own["start"].isna() | own["gene_symbol"].isna()]
    if len(nowhere):
        raise ValueError(
            f"{path} has no chromosome or start for {len(nowhere)} {species} genes, such as"
            f" {_some(nowhere['gene_symbol'].astype(str).tolist())}: remove those lines"
        )
    return (
        own.assign(gene_symbol=own["gene_symbol"].str.upper())
        .drop_duplicates("gene_symbol")
        .set_index("gene_symbol")
    )


def _content(value: object) -> str:
    """What a file holds that should hold something else, for messages."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    key, entry = next(iter(value.items()), ("nothing", None))
    shown = f"{entry:.4g}" if isinstance(entry, float) else type(entry).__name__
    return f"{len(value)} entries such as {key!r}: {shown}"


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
