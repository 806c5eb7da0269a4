"""UCE files that are missing, damaged, or others than they should be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scfast.models import load
from scfast.models.uce import UceSource
from scfast.models.uce_encoder import TABLE
from scfast.models.uce_table import chromosome_vectors
from tests.models import uce_files

WEIGHTS = "4layer_model.torch"


def change(file: Path, **replaced: torch.Tensor | None) -> None:
    """Replace or drop weights; names with __ for dots."""
    tensors = torch.load(file, weights_only=True)
    for name, tensor in replaced.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    torch.save(tensors, file)


@pytest.fixture
def written(tmp_path: Path) -> uce_files.Written:
    return uce_files.write(tmp_path)


def test_drawn_chromosomes_are_those_of_a_global_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(23)
        assert torch.equal(chromosome_vectors(16), torch.normal(mean=0, std=1, size=(1895, 16)))


@pytest.mark.parametrize(("drawn", "own"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_table_may_lie_in_either_file(tmp_path: Path, drawn: bool, own: bool) -> None:
    written = uce_files.write(tmp_path, drawn=drawn)
    if not own:
        change(tmp_path / WEIGHTS, pe_embedding__weight=None)
    source = load("uce", tmp_path, **written.options)
    assert isinstance(source, UceSource)
    ids = torch.tensor([0, 3, 50, source.rules.chromosome_offset, source.encoder.table.n_rows - 1])
    assert torch.equal(source.encoder.table.rows(ids), written.model.pe_embedding.weight.data[ids])
    assert not source.encoder.table.unit_rows(ids)[0].any()
    (tmp_path / "all_tokens.torch").unlink()
    if own:
        assert load("uce", tmp_path, **written.options).n_layers == 2
    else:
        with pytest.raises(FileNotFoundError, match=r"has no all_tokens\.torch, and its weights hold no"):
            load("uce", tmp_path, **written.options)


def test_the_folder_may_be_the_file_or_hold_model_files(tmp_path: Path) -> None:
    inner = uce_files.write(tmp_path / "model_files")
    assert load("uce", tmp_path, **inner.options).name == "uce:4layer_model"
    uce_files.write(tmp_path / "model_files", name="33l_8ep_1024t_1280.torch", layers=3)
    with pytest.raises(ValueError, match=r"33l_8ep_1024t_1280\.torch and 4layer_model\.torch: say which"):
        load("uce", tmp_path, **inner.options)
    assert load("uce", tmp_path, weights=WEIGHTS, **inner.options).n_layers == 2
    file = tmp_path / "model_files" / "33l_8ep_1024t_1280.torch"
    assert load("uce", file, **inner.options).n_layers == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (WEIGHTS, r"holds no 33l_8ep_1024t_1280\.torch or 4layer_model\.torch"),
        ("species_chrom.csv", r"holds no species_chrom\.csv: it says where"),
        ("species_offsets.pkl", r"holds no species_offsets\.pkl"),
        (f"protein_embeddings/{uce_files.FILES['human']}", r"holds no protein_embeddings/Homo_sapiens"),
    ],
)
def test_missing_files_are_named(written: uce_files.Written, name: str, said: str) -> None:
    (written.folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=said):
        load("uce", written.folder, **written.options)


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "all_tokens.torch", f"protein_embeddings/{uce_files.FILES['human']}", "species_offsets.pkl"],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_files_cut_short(written: uce_files.Written, name: str, share: float) -> None:
    file = written.folder / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"{file.name} is (cut short|no pickle)"):
        load("uce", written.folder, **written.options)


def test_a_pickle_that_runs_code_is_refused(written: uce_files.Written) -> None:
    (written.folder / "species_offsets.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"asks for the global 'builtins\.print'"):
        load("uce", written.folder, **written.options)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"ENSG00000000003": 1.5},
            r"first row of each species .* holds 1 entries such as 'ENSG00000000003': 1\.5",
        ),
        (["human"], "holds a list"),
        ({"frog": 4}, r"species='human' is not in .*species_offsets\.pkl, which has frog"),
    ],
)
def test_a_swapped_dictionary(written: uce_files.Written, table: Any, said: str) -> None:
    (written.folder / "species_offsets.pkl").write_bytes(pickle.dumps(table))
    with pytest.raises(ValueError, match=said):
        load("uce", written.folder, **written.options)


def test_offsets_and_embeddings_of_another_species(written: uce_files.Written) -> None:
    offsets = {"human": 44, "mouse": 4}
    (written.folder / "species_offsets.pkl").write_bytes(pickle.dumps(offsets))
    with pytest.raises(ValueError, match=r"row 44 of the token table is not the vector that Homo_sapiens"):
        load("uce", written.folder, **written.options)
    (written.folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": 10**6}))
    with pytest.raises(ValueError, match=r"asks for row 1000059 of the token table, which has 1999 rows"):
        load("uce", written.folder, **written.options)
    mouse = written.folder / "protein_embeddings" / uce_files.FILES["mouse"]
    (written.folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": 4, "mouse": 64}))
    with pytest.raises(ValueError, match=r"row 4 of the token table is not the vector that Mus_musculus"):
        load("uce", written.folder, protein_embeddings=mouse, **written.options)
    torch.save({"human": 3}, mouse)
    with pytest.raises(ValueError, match=r"must hold a vector for each gene symbol; it holds 1 entries"):
        load("uce", written.folder, species="mouse", **written.options)


def test_unknown_species(written: uce_files.Written) -> None:
    with pytest.raises(ValueError, match=r"species='yeast' is none of the published ones \(human, mouse"):
        load("uce", written.folder, species="yeast", **written.options)
    file = written.folder / "protein_embeddings" / uce_files.FILES["mouse"]
    with pytest.raises(
        ValueError, match=r"species='yeast' is not in .*species_offsets\.pkl, which has human, mouse"
    ):
        load("uce", written.folder, species="yeast", protein_embeddings=file, **written.options)


def rewrite(folder: Path, **columns: Any) -> None:
    table = pd.read_csv(folder / "species_chrom.csv", dtype=str)
    for name, value in columns.items():
        table.loc[3, name] = value
    table.to_csv(folder / "species_chrom.csv", index=False)


def test_unknown_chromosomes(written: uce_files.Written) -> None:
    table = pd.read_csv(written.folder / "species_chrom.csv", dtype=str)
    many = pd.DataFrame({"species": "alien", "gene_symbol": "Q", "start": "1"}, index=range(1895))
    many["chromosome"] = [f"c{number}" for number in range(1895)]
    pd.concat([table, many]).to_csv(written.folder / "species_chrom.csv", index=False)
    with pytest.raises(
        ValueError, match=r"counts human chromosomes up to number 1899, but the\s+token table has"
    ):
        load("uce", written.folder, **written.options)
    table.to_csv(written.folder / "species_chrom.csv", index=False)
    rewrite(written.folder, chromosome=np.nan)
    with pytest.raises(
        ValueError, match=r"has no chromosome or start for 1 human genes, such as GENE3: remove"
    ):
        load("uce", written.folder, **written.options)
    rewrite(written.folder, chromosome="1", start="somewhere")
    with pytest.raises(ValueError, match=r"has no chromosome or start for 1 human genes"):
        load("uce", written.folder, **written.options)
    table.rename(columns={"start": "begin"}).to_csv(written.folder / "species_chrom.csv", index=False)
    with pytest.raises(ValueError, match=r"must have the columns species, .*; it has .*begin"):
        load("uce", written.folder, **written.options)
    table[table["species"] == "mouse"].to_csv(written.folder / "species_chrom.csv", index=False)
    with pytest.raises(ValueError, match=r"species='human' is not in .*species_chrom\.csv, which has mouse"):
        load("uce", written.folder, **written.options)


def test_genes_without_a_place_are_lost_and_said(
    written: uce_files.Written, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.read_csv(written.folder / "species_chrom.csv")
    table[table["gene_symbol"] != "GENE3"].to_csv(written.folder / "species_chrom.csv", index=False)
    source = load("uce", written.folder, **written.options)
    assert len(source.genes) == 59
    assert "GENE3" not in source.genes
    assert "has no chromosome for 1 genes" in caplog.text


def test_tables_that_do_not_match(written: uce_files.Written) -> None:
    with pytest.raises(ValueError, match=r"all_tokens\.torch of .* has 104 rows, expected 143574 or 145469"):
        load("uce", written.folder, n_heads=4)
    tokens = torch.load(written.folder / "all_tokens.torch", weights_only=True)
    tokens[3] += 1
    torch.save(tokens, written.folder / "all_tokens.torch")
    with pytest.raises(
        ValueError, match=r"row 3 of all_tokens\.torch is not that of the token table in the weights"
    ):
        load("uce", written.folder, **written.options)
    torch.save(tokens[:, :8], written.folder / "all_tokens.torch")
    with pytest.raises(ValueError, match=r"\[104, 8\]; the model takes rows of 16 numbers"):
        load("uce", written.folder, **written.options)
    torch.save({"table": tokens}, written.folder / "all_tokens.torch")
    with pytest.raises(ValueError, match="must hold one tensor, the token table; it holds a dict"):
        load("uce", written.folder, **written.options)


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"decoder__1__0__bias": None}, r"1 weights are missing: decoder\.1\.0\.bias"),
        ({"more": torch.ones(1)}, "1 weights have no place in the model: more"),
        (
            {"encoder__2__weight": torch.ones(3)},
            r"encoder\.2\.weight has shape \(3,\), architecture asks for \(32,\)",
        ),
        ({"encoder__0__weight": None}, r"no weights of a UCE: there is no matrix encoder\.0\.weight"),
    ],
)
def test_weights_that_do_not_fit(written: uce_files.Written, replaced: dict[str, Any], said: str) -> None:
    change(written.folder / WEIGHTS, **replaced)
    with pytest.raises(ValueError, match=said):
        load("uce", written.folder, **written.options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masking": "loose"}, "masking='loose' is unknown; use 'strict' or 'published'"),
        ({"n_heads": 5}, "width 32 is not divisible by 5 heads"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"sample_size": 1536}, "sample_size=1536 does not fit the model's 1536 positions"),
    ],
)
def test_options_that_do_not_exist(written: uce_files.Written, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load("uce", written.folder, **{**written.options, **options})
    with pytest.raises(TypeError, match=r"dtype=torch\.int8 cannot be run"):
        load("uce", written.folder, dtype=torch.int8)
    assert TABLE in torch.load(written.folder / WEIGHTS, weights_only=True)
