import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

from scfast.cli import COMMANDS, cli, main

QUICK = ["--steps", "2", "--batch-tokens", "400"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(0.8, size=(40, 25)).astype(np.float32)))
    adata.obs["cell_type"] = pd.Categorical(["B", "T/NK"] * 20)
    adata.obs["donor"] = pd.Categorical(list("aabb") * 10)
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def model(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    result = CliRunner().invoke(cli, ["pretrain", str(data), "-o", str(folder), *QUICK, "--text"])
    assert result.exit_code == 0, result.output
    assert "Held-out loss" in result.output
    return folder


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def failure(capsys, *arguments: object) -> str:
    """The one line that a user error ends in."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command):
    text = invoke(command, "--help")
    assert "Examples:" in text
    assert f"scfast {command}" in text


def test_help_lists_the_commands_and_imports_none():
    code = "import sys; from scfast_cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'anndata', 'scfast') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert all(command in done.stdout for command in COMMANDS)


def test_run_writes_cells_tables_and_figure(data, model, tmp_path):
    text = invoke(
        "run",
        data,
        "--model",
        f"geneformer:{model}",
        "--groupby",
        "cell_type",
        "--report",
        "-o",
        tmp_path,
        "--text",
    )
    assert "Genes with the largest share of attention" in text
    assert "T/NK" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "about.json",
        "cells.h5ad",
        "genes.csv",
        "groups.csv",
        "report.html",
        "stages.json",
        "top_genes.png",
    ]
    written = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(np.asarray(written.layers["rollout"].sum(axis=1)).ravel(), 1.0, rtol=1e-5)
    genes = pd.read_csv(tmp_path / "genes.csv")
    assert {"gene", "group", "mean", "se", "null"} <= set(genes.columns)


def test_json_lines_are_json(data, model, tmp_path):
    text = invoke(
        "run", data, "--model", f"geneformer:{model}", "--groupby", "cell_type", "--replicate-key", "donor",
        "--layers", "0-1", "--no-null", "-o", tmp_path, "--json",
    )  # fmt: skip
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["start", "group", "group", "stages", "done"]
    assert events[1]["group"] == "B"
    assert len(events[1]["top_genes"]) == 6
    assert "spearman_expression" in events[1]
    assert "spearman_null" not in events[1]


def test_received(data, model, tmp_path):
    options = ["--analysis", "received", "--groupby", "cell_type", "--by", "layer", "-o", tmp_path]
    text = invoke("run", data, "--model", f"geneformer:{model}", *options, "--text")
    assert "Genes that receive most attention" in text
    assert "by layer; 2 groups of cell_type, beside the untrained model" in text
    written = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert written.uns["received"]["by_layer"].shape[1:] == (25, 2)
    genes = pd.read_csv(tmp_path / "genes.csv")
    assert {"mean", "rank_sd", "null"} <= set(genes.columns)
    assert (tmp_path / "top_genes.png").stat().st_size > 5000


def test_attention_norms(data, model, tmp_path):
    options = ["--analysis", "attention_norms", "--groupby", "cell_type", "--no-null", "-o", tmp_path]
    text = invoke("run", data, "--model", f"geneformer:{model}", *options, "--text")
    assert "GlobEnc of mean, mixing ratios and norms per head; 2 groups of cell_type" in text
    heads, layers = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("heads", "layers"))
    assert {"group", "layer", "head", "weighted", "weighted_se"} <= set(heads.columns)
    assert {"mixing_attn-n", "mixing_attnresln-n_se"} <= set(layers.columns)
    assert (tmp_path / "heads.png").stat().st_size > 5000


def test_rollout_matrix(data, model, tmp_path):
    adata = ad.read_h5ad(data)
    names = [str(name) for name in adata.var_names]
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join(names[:2]) + "\n")
    run = ("run", data, "--model", f"geneformer:{model}", "--analysis", "rollout_matrix", "--no-null")
    text = invoke(*run, "--genes", listed, "--groupby", "cell_type", "-o", tmp_path / "all", "--text")
    assert "2 groups of cell_type" in text
    assert "What genes read from" in text
    written = ad.read_h5ad(tmp_path / "all" / "cells.h5ad")
    assert list(written.varm["rollout_matrix"].columns) == names[:2]
    pairs = pd.read_csv(tmp_path / "all" / "gene_pairs.csv", dtype={"target": str, "source": str})
    assert {"group", "target", "source", "mean", "cells", "rank", "expression"} <= set(pairs.columns)
    assert (tmp_path / "all" / "targets.csv").exists()
    assert (tmp_path / "all" / "rollout_matrix.png").stat().st_size > 5000
    chosen = ",".join(names[2:5])
    lines = invoke(*run, "--genes", names[0], "--sources", chosen, "-o", tmp_path / "few", "--json")
    events = [json.loads(line) for line in lines.splitlines()]
    (target,) = [event for event in events if event["event"] == "target"]
    assert set(target["sources"]) == set(names[2:5])


def test_relevance(data, model, tmp_path):
    run = ("run", data, "--model", f"geneformer:{model}", "--analysis", "relevance", "-o", tmp_path)
    gene = str(ad.read_h5ad(data).var_names[0])
    text = invoke(
        *run, "--target", f"gene:{gene}", "--method", "gradient-attention", "--by", "layer", "--text"
    )
    assert f"gradient-attention relevance of genes for gene:{gene}" in text
    written = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert written.uns["relevance"]["params"]["target"] == f"gene:{gene}"
    assert "by_layer" in written.uns["relevance"]
    assert (tmp_path / "top_genes.png").stat().st_size > 5000


def test_rank_profile(data, model, tmp_path):
    options = [
        "--against",
        f"geneformer:{model}",
        "--genes",
        "3,5",
        "--quantiles",
        "2",
        "--equal-length",
        "6",
    ]
    text = invoke(
        "run", data, "--model", f"geneformer:{model}", "--analysis", "rank_profile", *options, "-o", tmp_path, "--json"
    )  # fmt: skip
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["start", *["profile"] * 4, "stages", "done"]
    assert {event["model"] for event in events[1:5]} == {"tiny (1)", "tiny (2)"}
    ranks = pd.read_csv(tmp_path / "ranks.csv")
    assert ranks["rank"].max() == 6
    np.testing.assert_allclose(ranks.loc[ranks["model"] == "tiny (2)", "change"], 0, atol=1e-9)
    assert set(pd.read_csv(tmp_path / "marked_genes.csv")["gene"]) == {3, 5}
    assert {"lengths.csv", "rank_profile.png", "cells.h5ad"} <= {file.name for file in tmp_path.iterdir()}


def test_attention_shift(data, model, tmp_path):
    of = f"geneformer:{model}"
    options = ["--analysis", "attention_shift", "--against", of, "--groupby", "cell_type", "-o", tmp_path]
    text = invoke("run", data, "--model", of, *options, "--text")
    assert f"how attention shifts to {of}, by layer, head, gene and rank; 2 groups of cell_type" in text
    np.testing.assert_allclose(pd.read_csv(tmp_path / "cosines.csv")[["mean", "concatenated"]], 1)
    assert {file.name for file in tmp_path.iterdir()} == {
        "cells.h5ad", "cosines.csv", "genes.csv", "ranks.csv", "groups.csv", "attention_shift.png",
        "about.json", "stages.json",
    }  # fmt: skip
    assert "attention_shift" in ad.read_h5ad(tmp_path / "cells.h5ad").uns


def test_key_genes(data, model, tmp_path):
    (tmp_path / "set.txt").write_text("3\n5\n999\n")
    options = [
        "--highlight",
        tmp_path / "set.txt",
        "--groupby",
        "cell_type",
        "--no-null",
        "-o",
        tmp_path / "out",
    ]
    run = ("run", data, "--model", f"geneformer:{model}", "--analysis", "key_genes", *options)
    text = invoke(*run, "--text")
    for words in (
        "Key genes",
        "Rank correlation of attention with cells",
        "A gene of the highlighted set (*)",
    ):
        assert words in text
    table = pd.read_csv(tmp_path / "out" / "key_genes.csv")
    assert {"rank_B", "rank_T|NK", "attention"} <= set(table.columns)
    assert set(table.loc[table["highlight"], "gene"]) == {3, 5}
    assert (tmp_path / "out" / "key_genes.png").stat().st_size > 5000
    events = [json.loads(line)["event"] for line in invoke(*run, "--json").splitlines()]
    assert events == ["start", *["gene"] * 12, "correlations", "highlight", "stages", "done"]


def test_embed(data, model, tmp_path):
    invoke("run", data, "--model", f"geneformer:{model}", "--analysis", "embed", "-o", tmp_path)
    (embedding,) = ad.read_h5ad(tmp_path / "cells.h5ad").obsm.values()
    assert embedding.shape == (40, 64)


def test_dry_run_says_what_would_be_done_and_writes_nothing(data, model, tmp_path):
    out = tmp_path / "none"
    text = invoke(
        "run",
        data,
        "--model",
        f"geneformer:{model}",
        "--groupby",
        "cell_type",
        "-o",
        out,
        "--dry-run",
        "--text",
    )
    assert "40 cells x 25 genes" in text
    assert "2 groups of cell_type" in text
    assert "25 of 25 genes are in the vocabulary (the index of var read as gene ids); 0 are lost" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.h5ad"}, "no file nowhere.h5ad"),
        ({"--groupby": "celltype"}, "--groupby celltype is no column of obs; there are cell_type, donor"),
        ({"--model": "geneformer"}, "must be KIND:FOLDER"),
        ({"--model": "geneformer:nowhere"}, "config.json is missing"),
        ({"--layers": "first"}, "must be prefix, suffix, or FIRST-LAST"),
        ({"--memory": "lots"}, "memory='lots'"),
        ({"--device": "tpu"}, "device='tpu' is no device that models run on: use 'cpu', 'cuda' or 'cuda:N'"),
        ({"--device": "cuda:99"}, "device='cuda:99', but torch"),
        ({"--counts-layer": "raw"}, "counts_layer='raw'"),
        (
            {"--analysis": "attention_shift"},
            "compares 2 models and 1 is named: --model is one, --against the",
        ),
        ({"--quantiles": "4"}, "--quantiles means nothing to --analysis rollout; it belongs to rank_profile"),
        ({"--analysis": "relevance"}, "--analysis relevance needs --target class:NAME or gene:NAME"),
        ({"--analysis": "relevance", "--target": "class:high"}, "has no classifier; fine-tune one"),
        (
            {"--analysis": "rollout_matrix"},
            "--analysis rollout_matrix needs --genes, as A,B,C or a file of names",
        ),
        ({"--sources": "A"}, "--sources means nothing to --analysis rollout; it belongs to rollout_matrix"),
        ({"--target": "class:high"}, "--target means nothing to --analysis rollout; it belongs to relevance"),
        ({"--analysis": "embed", "--readout": "mean"}, "--readout means nothing to --analysis embed"),
        (
            {"--analysis": "rank_profile", "--against": "geneformer"},
            "--against geneformer must be KIND:FOLDER",
        ),
        (
            {"--analysis": "rank_profile", "--equal-length": "long"},
            "--equal-length long must be a number of genes",
        ),
        ({"--analysis": "key_genes", "--highlight": "X,Y"}, "none of the 2 genes (['X', 'Y'], ...)"),
    ],
)
def test_user_errors_are_one_line(data, model, tmp_path, capsys, changes, message):
    options = {"--model": f"geneformer:{model}", "-o": tmp_path / "out", **changes}
    given = options.pop("data", data)
    arguments = [x for pair in options.items() for x in pair]
    assert message in failure(capsys, "run", given, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_device_can_be_named(data, model, tmp_path):
    out = tmp_path / "out"
    options = ["--model", f"geneformer:{model}", "--analysis", "embed", "--device", "cpu", "-o", out]
    assert "device    cpu" in invoke("run", data, *options, "--dry-run", "--text")
    invoke("run", data, *options)
    assert ad.read_h5ad(out / "cells.h5ad").uns["X_geneformer"]["params"]["plan"]["device"] == "cpu"


def test_too_little_memory_for_one_cell_is_one_line(data, model, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError("the cell in row 3 has 9 tokens, for which the model needs about 1 MB")

    monkeypatch.setattr("scfast.tl.rollout", full)
    line = failure(capsys, "run", data, "--model", f"geneformer:{model}", "-o", tmp_path / "out")
    assert line == "error: the cell in row 3 has 9 tokens, for which the model needs about 1 MB"


def test_pretrain_refuses_another_run_in_the_same_folder(data, model, capsys):
    line = failure(capsys, "pretrain", data, "-o", model, *QUICK, "--seed", "5")
    assert "differs in seed (0 there, 5 now)" in line
    assert "--restart" in line


def test_pretrain_takes_a_vocabulary_and_medians(data, tmp_path):
    (tmp_path / "genes.txt").write_text("3\n5\n")
    (tmp_path / "medians.csv").write_text("gene,median\n3,1.5\n5,2\n")
    text = invoke(
        "pretrain", data, "-o", tmp_path / "m", *QUICK, "--vocabulary", tmp_path / "genes.txt",
        "--medians", tmp_path / "medians.csv", "--json",
    )  # fmt: skip
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "progress", "done"]
    assert events[1]["training"]["unigram_loss"] > 0
    assert json.loads((tmp_path / "m" / "gene_median_dictionary.json").read_text()) == {"3": 1.5, "5": 2.0}


def test_doctor_names_machine_kernels_and_backends():
    text = invoke("doctor")
    for word in ("processor", "instruction set", "attention_colsum", "torch threads", "scanpy"):
        assert word in text
    assert set(json.loads(invoke("doctor", "--json"))) >= {"machine", "kernels", "backends"}


def test_demo_rehearsal(tmp_path):
    text = invoke("demo", "-o", tmp_path, "--steps", "2")
    for words in (
        "700 blood cells",
        "held-out loss",
        "CD14+ Monocyte",
        "Sum of the ranks",
        "B cells",
        "scfast run",
    ):
        assert words in text
    names = {file.name for file in tmp_path.iterdir()}
    assert {
        "pbmc68k.h5ad",
        "genes.csv",
        "markers.csv",
        "top_genes.png",
        "marker_ranks.png",
        "training.png",
    } <= names
    markers = pd.read_csv(tmp_path / "markers.csv")
    assert set(markers["lineage"]) == {"B cells", "T cells", "Monocytes", "NK cells"}
    assert markers[["trained", "untrained"]].to_numpy().min() >= 1


def test_as_a_module_with_and_without_debugging(tmp_path):
    command = [sys.executable, "-m", "scfast", "pretrain", "nowhere.h5ad", "-o", str(tmp_path)]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert plain.stderr.strip() == "error: no file nowhere.h5ad"
    environment = os.environ | {"SCFAST_DEBUG": "1"}
    debugged = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


def test_models_says_what_each_needs_and_costs(capsys):
    text = invoke("models")
    for words in ("Geneformer V1 and V2", "token_dictionary*", "V2-316M", "21.7 GB", "679 MB"):
        assert words in text
    assert "scfast.models.load('hf', FOLDER, tokenize=...)" in text
    told = [json.loads(line) for line in invoke("models", "geneformer", "--json").splitlines()]
    assert [event["kind"] for event in told] == ["geneformer"]
    assert {"context", "bytes_with_maps", "bytes_with_scfast"} <= set(told[0]["checkpoints"][0])
    assert "there is no model 'genformer'" in failure(capsys, "models", "genformer")
