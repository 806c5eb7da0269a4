"""The CUDA sources without a GPU: what nvcc makes of them, and that their build needs no driver."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from scfast import _kernels

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
#: The compute capabilities that kernels are compiled for ahead of time everywhere.
CAPABILITIES = (80, 90, 100)
#: Registers of a thread that leave a multiprocessor room for 512 threads.
MOST_REGISTERS = 128

MAIN = """
#include "cuda_info.hpp"
#include <cstdio>
int main() {
  const scfast::CudaInfo info = scfast::cuda_info();
  std::printf("%d|%d|%zu|%s", info.toolkit, info.driver, info.devices.size(), info.error.c_str());
}
"""


def nvcc(*options: object) -> str:
    command = [str(NVCC), "-std=c++17", "-O3", "-I", str(ROOT / "csrc"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def register_report(text: str) -> dict[str, tuple[int, int]]:
    """Kernel -> (registers, bytes of stack and spills), from what ptxas says with -v."""
    found = {}
    for part in text.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", part)
        memory = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        registers = re.search(r"Used (\d+) registers", part)
        assert name, part
        assert memory, part
        assert registers, part
        found[name[1]] = int(registers[1]), sum(map(int, memory.groups()))
    return found


def test_a_register_report_is_read() -> None:
    text = (
        "ptxas info    : Compiling entry function '_Z4slowv' for 'sm_90'\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 0 barriers\n"
    )
    assert register_report(text) == {"_Z4slowv": (255, 28)}


def test_every_cuda_source_is_built() -> None:
    built = set(re.findall(r"csrc/(\w+\.cu)\b", CMAKE))
    assert {path.name for path in SOURCES} == built, "CMakeLists.txt compiles every csrc/*.cu"


@needs_nvcc
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_keep_to_their_registers(source: Path, capability: int, tmp_path: Path) -> None:
    text = nvcc(f"-arch=sm_{capability}", "-Xptxas", "-v", "-c", source, "-o", tmp_path / "kernels.o")
    kernels = source.read_text().count("__global__")
    report = register_report(text)
    assert len(report) == kernels, text
    for name, (registers, spilled) in report.items():
        assert registers <= MOST_REGISTERS, f"{name}: {registers} registers for sm_{capability}"
        assert not spilled, f"{name}: {spilled} bytes of stack and spills for sm_{capability}"


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_it_loads_and_says_why_there_are_no_devices(tmp_path: Path) -> None:
    main, program = tmp_path / "main.cpp", tmp_path / "program"
    main.write_text(MAIN)
    nvcc("-arch=sm_80", "-cudart=static", main, ROOT / "csrc/cuda_info.cu", "-o", program)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    toolkit, driver, devices, error = said.split("|")
    assert int(toolkit) >= 12000
    assert (driver, devices) == ("0", "0")
    assert error


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_extension_asks_for_no_cuda_library() -> None:
    """A build with CUDA imports on machines without it: the runtime is inside, and it looks for the driver itself."""
    listing = subprocess.run(
        ["readelf", "-d", _kernels.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", listing)
    assert needed
    assert not [name for name in needed if name.startswith(("libcuda", "libnv"))]


def test_a_build_with_cuda_has_devices_or_a_reason() -> None:
    build = _kernels.cuda_build()  # None: built without CUDA
    assert build is None or bool(build["devices"]) == (not build["error"])
