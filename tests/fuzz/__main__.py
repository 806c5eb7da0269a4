"""One target under atheris: python -m tests.fuzz NAME [--seconds 60] [--kept FOLDER].

Seconds are those of the processor: on a machine that others use too, time passes without an input being tried.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType

import atheris

from tests.fuzz import TARGETS, harness

#: Modules whose branches guide the mutation.
READERS = (
    "scfast.io",
    "scfast.kernels.tiles",
    "scfast.models",
    "scfast.run",
    "pickletools",
    "tomllib",
    "zipfile",
)
#: Beyond what is loaded already: more is a find, as a MemoryError.
MEMORY = 2**30
#: Seconds for one input.
PATIENCE = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="Of the processor.  [default: 60]")
    parser.add_argument(
        "--kept", type=Path, default=Path("build/fuzz"), help="inputs worth keeping, and finds"
    )
    options = parser.parse_args()
    inputs, finds = options.kept / options.target, options.kept / f"{options.target}-finds"
    for made in (inputs, finds):
        made.mkdir(parents=True, exist_ok=True)
    ways = harness.ways(options.target)
    instrument()
    for seed in harness.seeds(options.target):
        (inputs / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    known = options.kept / f"{options.target}.words"
    known.write_text("".join(f'"{escaped(word)}"\n' for word in harness.words(options.target)))
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    arguments = [
        f"-timeout={PATIENCE}", "-max_len=16384", f"-artifact_prefix={finds}/", f"-dict={known}", "-verbosity=1",
        str(inputs),
    ]  # fmt: skip
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages is not None:
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    started, tried = time.process_time(), 0

    def one(data: bytes) -> None:
        nonlocal tried
        harness.attempt(ways, data, folder)
        tried += 1
        if (used := time.process_time() - started) >= options.seconds:
            shutil.rmtree(folder)
            print(f"{options.target}: {tried:,} inputs in {used:.0f} s of the processor, no find", flush=True)
            os._exit(0)  # the fuzzer has no other end than a find, or the time of the clock

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def instrument() -> None:
    """Have the branches of all readers followed; an editable install's modules cannot be as they are imported."""
    for name, module in list(sys.modules.items()):
        if not name.startswith(READERS):
            continue
        here = [x for x in vars(module).values() if getattr(x, "__module__", None) == name]
        inside = [x for kind in here if isinstance(kind, type) for x in vars(kind).values()]
        for function in (*here, *(getattr(x, "__func__", x) for x in inside)):
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)


def escaped(word: bytes) -> str:
    """As dictionaries of libFuzzer have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
