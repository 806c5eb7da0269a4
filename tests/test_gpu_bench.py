"""The scripts for a GPU machine, as far as a machine without one can tell."""

from __future__ import annotations

import importlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.scripts import run_scripts

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


#: What a machine may lack that has torch and Triton for a GPU, and how they are hidden.
LACKING = ("anndata", "zarr", "scanpy", "distributed", "igraph", "leidenalg")
HIDES = f"""import sys
from importlib.abc import MetaPathFinder
class Lacking(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {LACKING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
"""


def call(*command, **environment):
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The environment of a machine that has torch and Triton, and little else."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(HIDES)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_tests_for_the_device_need_no_more_than_a_bare_machine_has(bare):
    files = sorted(ROOT.glob("tests/*/test_cuda*.py"))
    done = call(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *files, **bare
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(file.name in done.stdout for file in files)


def test_dry_run_takes_every_step(tmp_path, bare):
    done = call(sys.executable, BENCH / "run_gpu.py", "--dry-run", "--out", tmp_path, **bare)
    assert done.returncode == 0, done.stderr
    reductions = ("attention_matmul", "attention_compare", "attention_topk", "attention_scatter")
    for op in ("attention_colsum", "attention_forward", "attention_backward", *reductions):
        assert f"{op}: errors scfast" in done.stdout
    assert "left out" not in done.stdout
    assert " ms" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_of_whole_models(tmp_path, bare):
    done = call(sys.executable, BENCH / "gpu_models.py", "--dry-run", "--out", tmp_path, **bare)
    assert done.returncode == 0, done.stderr
    assert "the scores of every cell sum to 1" in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_of_cosines(tmp_path, bare):
    done = call(sys.executable, BENCH / "gpu_cosine.py", "--dry-run", "--out", tmp_path, **bare)
    assert done.returncode == 0, done.stderr
    for case in ("cosine_histogram bins 200", "cosine_topk k 16", "cosine_topk k 128", "cosine_threshold"):
        assert case in done.stdout
    assert "left out" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_and_an_unknown_op(tmp_path):
    scripts = [BENCH / name for name in ("run_gpu.py", "gpu_models.py", "gpu_cosine.py")]
    *helps, refused = run_scripts(
        [*((script, "--help") for script in scripts), (scripts[0], "rank_values")], tmp_path
    )
    for done in helps:
        assert done.returncode == 0, done.stderr
        assert "--dry-run" in done.stdout
    assert refused.returncode == 2
    assert "no GPU bench for rank_values" in refused.stderr


@without_gpu
def test_no_gpu_is_said_and_nothing_is_written(tmp_path):
    names = ("run_gpu.py", "gpu_small.py", "gpu_models.py", "gpu_cosine.py")
    for done in run_scripts([[BENCH / name] for name in names], tmp_path, OUT=str(tmp_path)):
        assert done.returncode == 1
        assert "sees no CUDA device" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


class Event:
    """The host's clock in the place of a CUDA event."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


def test_results_of_a_gpu_can_be_reported(monkeypatch, tmp_path, capsys):
    """The whole of the timed bench, its tensors on the CPU: what is written is what the report reads."""
    monkeypatch.syspath_prepend(str(BENCH))
    gpu_peers, run_gpu, report = (
        importlib.import_module(name) for name in ("gpu_peers", "run_gpu", "report")
    )
    chip = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=10**11
    )
    for name, value in {"is_available": True, "memory_allocated": 5, "max_memory_allocated": 12}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: chip)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    inputs, kernels = gpu_peers.inputs, gpu_peers.kernels

    def with_a_broken_kernel(dry):
        def broken(q, k, v):
            raise RuntimeError("No available kernel. Aborting execution.\nmore")

        return kernels(True) | {"SDPA cuDNN": broken}

    monkeypatch.setattr(
        gpu_peers, "inputs", lambda lengths, heads, device, dtype: inputs(lengths, heads, "cpu", dtype)
    )
    monkeypatch.setattr(gpu_peers, "kernels", with_a_broken_kernel)
    monkeypatch.setattr(run_gpu, "SHAPES", ((2, (40,)), (2, (20, 60))))
    monkeypatch.setattr(run_gpu, "BATCH_TOKENS", 160)
    monkeypatch.setattr(sys, "argv", ["run_gpu.py", "--rounds", "3", "--out", str(tmp_path / "nvidia-h200")])
    run_gpu.main()
    said = capsys.readouterr().out
    assert "attention_colsum: SDPA cuDNN backward trick is left out: No available kernel." in said
    assert "attention_forward    2 x 20-60" in said
    assert "attention_backward: SDPA cuDNN backward is left out" in said
    assert "/ SDPA forward" in said
    assert "/ Flex trick" in said
    assert set(json.loads((tmp_path / "nvidia-h200" / "attention_colsum.json").read_text())["left_out"]) == {
        "SDPA cuDNN forward",
        "SDPA cuDNN backward trick",
    }
    machines = report.read(tmp_path)
    results = machines["nvidia-h200"]
    assert set(results) == set(run_gpu.OPS)
    row = results["attention_forward"]["rows"][1]
    assert row["case"] == {"heads": 2, "tokens": "20-60", "cells": 4, "dtype": "bfloat16"}
    ours = row["contenders"]["scfast, with received"]
    elements = 2 * 2 * (20**2 + 60**2)
    assert ours["floor_seconds"] == pytest.approx(elements * 2 / (16 * 132 * 1.83e9))  # two exponentials
    assert ours["times_floor"] == pytest.approx(ours["seconds"] / ours["floor_seconds"])
    assert ours["peak_bytes"] == 7
    page = report.benchmarks_page(machines)
    assert "2 × 20-60, bfloat16" in page
    assert "FlexAttention backward trick" in page


def test_rows_of_whole_models_can_be_reported(monkeypatch, tmp_path, capsys):
    """What a GPU would give, as the report reads it."""
    monkeypatch.syspath_prepend(str(BENCH))
    gpu_models, report = (importlib.import_module(name) for name in ("gpu_models", "report"))
    row = gpu_models.measure("toy", 1, dry=True)
    for name, seconds in ((gpu_models.PLAIN, 0.2), (gpu_models.ROLLOUT, 0.24)):
        row["contenders"][name] |= {
            "peak_bytes": 10**9,
            "seconds": seconds,
            "quartiles": [seconds, seconds],
        }
    gpu_models.show(row)
    assert "toy, 2 cells of 64: rollout 0.240 s, / forward 1.20, peak 1.00 GB of 8" in capsys.readouterr().out
    result = {
        "op": "gpu_models",
        "machine": gpu_models.machine(),
        "yardstick": gpu_models.PLAIN,
        "rows": [row],
    }
    gpu_models.write(result, tmp_path / "gpu")
    page = report.benchmarks_page(report.read(tmp_path))
    assert "scfast rollout of all layers | 240 ms" in page


SMI = "#!/bin/bash\necho 'NVIDIA X, 580.1, 80000 MiB'\n"
#: Stands for python3: makes environments of itself, and says yes to everything else but what FAILS names.
PYTHON = """#!/bin/bash
echo "python $*" >&2
case "$*" in
  *"-m venv"*) [[ "$FAILS" == venv ]] && exit 1
    mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *get_path*) echo "$STUBS/borrowed" ;;
  *pytest*) exit "${PYTEST_CODE:-0}" ;;
  *run_gpu*) [[ -n "$SLEEP" ]] && sleep "$SLEEP" ;;
esac
exit 0
"""
SANITIZER = """#!/bin/bash
[[ "$2" == "$FAILS" ]] && { echo "ERROR SUMMARY: 3 errors"; echo "RACECHECK SUMMARY: 1 hazards"; exit 0; }
[[ "$2" == memcheck ]] && echo "========= ERROR SUMMARY: 0 errors"
[[ "$2" == racecheck ]] && echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
exit 0
"""


@pytest.fixture
def stubs(tmp_path):
    """A copy of the script with a GPU and tools that are only said to be there; a function that runs it."""
    for name, text in (("nvidia-smi", SMI), ("python3", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "repo" / "bench").mkdir(parents=True)
    (tmp_path / "repo" / "bench" / "gpu.sh").write_text((BENCH / "gpu.sh").read_text())
    (tmp_path / "out").mkdir()
    (tmp_path / "borrowed").mkdir()

    def run(*parts, out=True, **environment):
        given = {"OUT": str(tmp_path / "out")} if out else {}
        path = f"{tmp_path}:{os.environ['PATH']}"
        script = tmp_path / "repo" / "bench" / "gpu.sh"
        return call("bash", script, *parts, PATH=path, STUBS=str(tmp_path), **given, **environment)

    return run


def outcomes(done):
    """Part -> outcome, from the table that is printed last."""
    table = done.stdout.split("NVIDIA X, 580.1, 80000 MiB\n")[-1].splitlines()
    return {line.split()[0]: line[11:23].strip() for line in table}


def test_script_is_executable():
    assert (BENCH / "gpu.sh").stat().st_mode & stat.S_IXUSR


def test_all_parts_run_in_order_and_a_table_ends_them(stubs, tmp_path):
    done = stubs()
    assert done.returncode == 0, done.stdout + done.stderr
    parts = ["build", "tests", "sanitizer", "bench"]
    assert outcomes(done) == dict.fromkeys(parts, "passed")
    assert list(outcomes(done)) == parts
    log = done.stdout
    assert "--no-index --no-build-isolation --no-deps" in log
    assert "-n auto tests/ops/test_cuda*.py" in log
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(parts)


def test_parts_can_be_chosen(stubs):
    done = stubs("build", "bench", out=False)
    assert outcomes(done) == {"build": "passed", "bench": "passed"}
    assert "-m pytest" not in done.stdout


def test_without_an_environment_a_folder_is_built_into(stubs):
    done = stubs("build", "tests", FAILS="venv")
    assert outcomes(done)["build"] == "failed"  # the folder stays empty where nothing really builds
    assert "no virtual environment can be made" in done.stdout
    assert "--target" in done.stdout


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_what_the_sanitizer_finds_fails(stubs, tool):
    done = stubs("build", "sanitizer", "bench", FAILS=tool)
    assert done.returncode == 1
    assert outcomes(done) == {"build": "passed", "sanitizer": "failed", "bench": "passed"}
    assert f"{tool}: '" in done.stdout


def test_tests_that_fail_or_are_none_fail_the_part(stubs):
    done = stubs("build", "tests", PYTEST_CODE="5")
    assert done.returncode == 1
    assert outcomes(done) == {"build": "passed", "tests": "failed"}


def test_a_part_has_a_limit(stubs):
    done = stubs("build", "bench", SLEEP="30", LIMIT_BENCH="1")
    assert done.returncode == 1
    assert outcomes(done) == {"build": "passed", "bench": "out of time"}


def test_parts_need_the_build(stubs):
    done = stubs("tests")
    assert done.returncode == 1
    assert "run bench/gpu.sh build first" in done.stdout


def test_limits_end_inside_nine_minutes():
    text = (BENCH / "gpu.sh").read_text()
    limits = [
        int(part.split(":-")[1].split("}")[0]) for part in text.split("LIMIT_")[1:] if ":-" in part[:16]
    ]
    assert len(limits) == 4
    assert sum(limits) + 4 * 3 < 540


def test_unknown_part_and_missing_gpu(stubs, tmp_path):
    done = stubs("build", "nonsense")
    assert done.returncode == 2
    assert "there is no part 'nonsense'" in done.stderr
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\necho 'no devices were found'; exit 6\n")
    done = stubs()
    assert done.returncode == 1
    assert "no NVIDIA GPU: nvidia-smi says: no devices were found" in done.stderr
