"""Scripts one after the other in a process of their own: to import torch takes longer than what most of them do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

#: Runs the scripts of a JSON list as Python would, and prints what became of each.
RUN = """
import contextlib, io, json, runpy, sys, traceback
done = []
for words in json.loads(sys.argv[1]):
    sys.argv[:] = words
    sys.path.insert(0, words[0].rpartition("/")[0])
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = runpy.run_path(words[0], run_name="__main__") and 0
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
    del sys.path[0]
    done.append((code, out.getvalue(), errors.getvalue()))
print(json.dumps(done))
"""


class Done(NamedTuple):
    """What became of a script."""

    returncode: int
    stdout: str
    stderr: str


def run_scripts(commands: Sequence[Sequence[object]], folder: Path, **environment: str) -> list[Done]:
    """Run commands, each a script and its words, in ``folder``."""
    given = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN, given], cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return [Done(*each) for each in json.loads(done.stdout)]
