"""No function compiled for a newer instruction set may be picked up by the generic path."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
SOURCES = sorted((ROOT / "csrc").glob("kernels_*.cpp"))

#: nm letters of symbols that a linker merges across files: weak, COMDAT, unique.
MERGED = "WwVvu"


def flags(source: Path) -> list[str]:
    """Options that CMakeLists.txt gives a kernel file."""
    found = re.search(rf"csrc/{re.escape(source.name)} PROPERTIES COMPILE_OPTIONS \"([^\"]*)\"", CMAKE)
    options = found.group(1) if found else ""
    for variable, value in re.findall(r"set\((\w+) (-m[^)]*)\)", CMAKE):
        options = options.replace(f"${{{variable}}}", value)
    return options.replace(";", " ").split()


def merged_symbols(source: Path, folder: Path, options: list[str]) -> list[str]:
    """Symbols of the compiled file that other files' copies may replace."""
    compiler, nm = shutil.which("c++") or shutil.which("g++"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs a C++ compiler and nm")
    target = folder / f"{source.stem}.o"
    definitions = ["-DSCFAST_X86", "-DSCFAST_EMULATE_BF16"]
    # -O1: what the release build inlines may stay a symbol of its own here, so this is the stricter look.
    command = [
        compiler,
        "-std=gnu++17",
        "-O1",
        "-fPIC",
        "-fopenmp",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-math-errno",
    ]
    subprocess.run(
        [*command, *definitions, *options, "-c", str(source), "-o", str(target)], check=True, timeout=600
    )
    listing = subprocess.run(
        [nm, "--defined-only", "-C", str(target)], check=True, capture_output=True, text=True
    )
    return [line for line in listing.stdout.splitlines() if re.match(rf"[0-9a-f]* +[{MERGED}] ", line)]


def test_flags_are_read_from_the_build() -> None:
    assert {"-mavx2", "-mfma"} <= set(flags(ROOT / "csrc/kernels_avx2.cpp"))
    assert {"-mavx512f", "-mavx512bf16"} <= set(flags(ROOT / "csrc/kernels_avx512_bf16.cpp"))
    assert flags(ROOT / "csrc/kernels_generic.cpp") == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_define_no_symbol_that_a_linker_merges(source: Path, tmp_path: Path) -> None:
    weak = merged_symbols(source, tmp_path, flags(source))
    assert not weak, f"{source.name}: make these static or put them in an anonymous namespace:\n" + "\n".join(
        weak
    )


def test_a_weak_symbol_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "weak.cpp"
    source.write_text(
        "__attribute__((noinline)) inline int f(int x) { return x + 1; }\nint g(int x) { return f(x); }\n"
    )
    assert [line.split()[-1] for line in merged_symbols(source, tmp_path, [])] == ["f(int)"]
