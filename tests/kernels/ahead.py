"""Compiling launches for GPUs that are not there: the ordinary calls, with CPU tensors, up to the launch itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from scfast.ops import _triton
from scfast.ops._dispatch import BACKENDS


class Driver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # one cache of compiled kernels each

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and what it was launched with."""

    name: str
    epilogue: str  # name of the function that takes a tile; the kernel's own where there is none
    launch: tuple[Any, ...]  # what tiles.choose was asked: (gpu, visit, bits, width)
    tile: Any  # the row of tiles.toml; None for a kernel that visits no map
    shared: int  # bytes of shared memory that a program takes
    ptx: str
    cubin: bytes

    @cached_property
    def resources(self) -> dict[str, int]:
        """REG, STACK, SHARED, LOCAL of the machine code."""
        usage = self._tool("cuobjdump", "-res-usage")
        return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}

    @cached_property
    def sass(self) -> list[str]:
        """The machine code, a line each: labels and instructions."""
        return self._tool("nvdisasm", "-c").splitlines()

    def loops(self) -> list[list[str]]:
        """Instructions of every loop, by its backward branch; of nested loops each."""
        labels: dict[str, int] = {}
        instructions: list[str] = []
        found = []
        for line in self.sass:
            if label := re.match(r"\s*(\.L_\w+):", line):
                labels[label[1]] = len(instructions)
            elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
                instructions.append(instruction[1])
                target = re.search(r"\bBRA\b.*\((\.L_\w+)\)", instruction[1])
                if target and target[1] in labels:
                    found.append(instructions[labels[target[1]] :])
        return found

    @property
    def spills(self) -> int:
        """Instructions in loops that keep a register in memory; one of them outside a loop costs nothing.

        A program that owns ids has loops over cells and tiles around the one that others have: all but the innermost
        one with exponentials count as outside. Disassembling takes as long as compiling: it is left out where a program
        has no such memory.
        """
        if not self.resources["STACK"] + self.resources["LOCAL"]:
            return 0
        loops = self.loops()
        if self.name == "scatter_blocks":
            loops = [min((loop for loop in loops if any("MUFU.EX2" in line for line in loop)), key=len)]
        return sum(bool(re.search(r"\b(?:LDL|STL)\b", line)) for loop in loops for line in loop)

    def _tool(self, name: str, option: str) -> str:
        import triton

        tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
        with TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(self.cubin)
            return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout


@contextmanager
def compiling_for(capability: int) -> Iterator[list[Kernel]]:
    """Inside, a launch compiles for this compute capability, appends to the list, and runs nothing."""
    from scfast.kernels import batch, cosine, tiles
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    kernels: list[Kernel] = []
    run, choose, chosen = JITFunction.run, tiles.choose, []

    def choose_and_tell(*launch: Any) -> Any:
        chosen.append((launch, choose(*launch)))
        return chosen[-1][1]

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        compiled = run(self, *args, **(options | {"warmup": True}))
        visits = "KEYS" in options
        name = self.fn.__name__
        kernels.append(
            Kernel(
                name,
                options["TILE"].fn.__name__ if "TILE" in options else name,
                *(chosen[-1] if visits else ((), None)),
                compiled.metadata.shared,
                compiled.asm["ptx"],
                compiled.asm["cubin"],
            )
        )
        return compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        for module in (batch, cosine):
            patch.setattr(module, "choose", choose_and_tell)
        patch.setattr(_triton, "_gpu", lambda device: f"sm_{capability}")
        patch.setitem(BACKENDS, "triton", lambda op, **tensors: [])
        patch.setattr(driver, "_active", Driver(capability))
        yield kernels
