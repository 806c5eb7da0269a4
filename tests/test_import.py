"""What ``import scfast`` brings along, and what the extension needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scfast._kernels

ROOT = Path(__file__).parents[1]

#: Packages that take long to import; each is imported where it is used.
HEAVY = ("anndata", "h5py", "matplotlib", "pandas", "scanpy", "scipy", "sklearn", "transformers", "triton")


def python(code: str) -> str:
    """Standard output of a fresh interpreter with warnings as errors."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_brings_no_heavy_package_but_torch() -> None:
    with_torch = "import sys, torch; torch_alone = set(sys.modules); import scfast;"
    report = f"print(*[name for name in {HEAVY} if name in set(sys.modules) - torch_alone])"
    loaded = python(with_torch + report).split()
    assert not loaded, f"import scfast brings {', '.join(loaded)}: import them in the functions that use them"


#: Seconds of processor time for the help, Python's own start included.
HELP_SECONDS = 0.5


def processor_seconds(code: str) -> float:
    """What a fresh interpreter takes for ``code``, without the time for which it waits on a busy machine."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_the_help_comes_at_once() -> None:
    taken = min(
        processor_seconds("from scfast_cli import cli; cli(['--help'], 'scfast', standalone_mode=False)")
        for _ in range(3)
    )
    assert taken < HELP_SECONDS, f"scfast --help takes {taken:.2f} s of processor time"


def test_rooms_bring_nothing_that_draws_or_is_optional_or_slow() -> None:
    later = (
        "distributed",
        "igraph",
        "leidenalg",
        "matplotlib",
        "scanpy",
        "scipy.linalg",
        "scipy.optimize",
        "scipy.stats",
        "sklearn",
        "transformers",
        "zarr",
    )
    rooms = "scfast.io, scfast.models, scfast.pp, scfast.run, scfast.tl"
    loaded = python(f"import sys, {rooms}; print(*[name for name in {later} if name in sys.modules])")
    assert not loaded.split(), f"rooms bring {loaded.strip()}: import them in the functions that use them"


def test_every_room_is_there_when_it_is_named() -> None:
    assert python("import scfast; print(scfast.run.resumable.__name__)").strip() == "resumable"


def test_torch_comes_before_the_extension() -> None:
    order = python("import sys, scfast; print(*sys.modules)").split()
    assert order.index("torch") < order.index("scfast._kernels"), "one OpenMP runtime serves both: torch's"


#: Column sums of one head by pointers, with NumPy alone.
NUMPY_ALONE = """
import importlib.util, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("the extension asked for torch")
sys.meta_path.insert(0, NoTorch())
spec = importlib.util.spec_from_file_location("_kernels", {path!r})
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
import numpy as np
q, k = np.random.default_rng(0).standard_normal((2, 9, 1, 8), dtype=np.float32)
index = lambda *values: np.array(values, dtype=np.int32)
cu_seqlens, work, offset = index(0, 9), index(0, 0), index(0)
weights, sums = np.ones((1, 9), np.float32), np.full((1, 1, 9), np.nan, np.float32)
at = lambda x: x.ctypes.data
where = kernels.Geometry(
    dtype=0, q=at(q), k=at(k), q_strides=(8, 8), k_strides=(8, 8), sizes=(9, 9, 1, 1, 8),
    cu_seqlens_q=at(cu_seqlens), cu_seqlens_k=at(cu_seqlens), work=at(work), n_cells=1, n_work=1,
    causal_offset=at(offset), key_bias=0, bias_heads=0, scale=0.5, softcap=0.0, causal=False, threads=2)
kernels.attention_colsum(where, at(weights), 1, 1, 0, -1.0, at(sums), 0, kernels.Map())
p = np.exp(0.5 * q[:, 0].astype(float) @ k[:, 0].T)
np.testing.assert_allclose(sums[0, 0], (p / p.sum(1, keepdims=True)).sum(0), rtol=2e-6)
assert "torch" not in sys.modules
"""


def test_the_extension_runs_with_numpy_alone() -> None:
    python(NUMPY_ALONE.format(path=scfast._kernels.__file__))


def test_the_build_needs_no_torch() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        requires = tomllib.load(file)["build-system"]["requires"]
    assert not [name for name in requires if name.startswith(("torch", "numpy"))]


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"instruction set 'mmx' is not available here; use one of .*generic"
    ):
        scfast._kernels.use_instruction_set("mmx")


#: A wrong name is refused before anything is computed; a right one is taken.
OLDER_SET = """
import os
for name in ("mmx", "generic"):
    os.environ["SCFAST_INSTRUCTION_SET"] = name
    try:
        import scfast
    except ValueError as error:
        print(error)
print(scfast._kernels.instruction_set())
"""


def test_an_older_instruction_set_can_be_asked_for() -> None:
    """By a variable of the environment, so that workers and programs that are started take it too."""
    refusal, taken = python(OLDER_SET).splitlines()
    assert refusal.startswith(
        "SCFAST_INSTRUCTION_SET: instruction set 'mmx' is not available here; use one of "
    )
    assert taken == "generic"
