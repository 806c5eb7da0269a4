"""The record of a run on disk: what it is, which of its shards are finished, and what they gave."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scfast.run.array_files import DamagedFileError, read_arrays, write_arrays
from scfast.run.atomic import UNFINISHED, publish, to_disk
from scfast.run.attempts import ALIVE, alive, in_vain, writer
from scfast.run.disk import RunGoneError, writing
from scfast.run.stages import Times, noted_times

_LOG = logging.getLogger(__name__)

MANIFEST = "run.json"
#: The part of it that says nothing of what the run is.
ABOUT = "about"
#: Begins the name of a file in which a run travels to other machines.
PARCEL = "parcel"
_DAMAGED = "damaged"
#: What of a run's identity says on which processor or GPU it runs: one kind for the whole run, because another rounds
#: otherwise.
_MACHINE = {"instruction_set", "device", "machine", "torch kernels"}
#: Names of the folders of runs, and of the files of shards: finished, tried, and with less memory than planned.
_RUN = re.compile(r"\d{1,9}-.*")
_SHARD, _ATTEMPTS = re.compile(r"shard-(\d{6,9})"), re.compile(r"attempts-(\d{6,9})")
_REVISION = re.compile(r"revision-(\d{6,9})")


class OtherRunError(ValueError):
    """The folder holds another run than the one that was asked for."""


@dataclass(frozen=True)
class Ledger:
    """Shards of one run, in a folder.

    A shard is finished when its file is there; it appears in one step, and the first complete one stays. So workers
    need not know of each other, and a run that was killed goes on where the same command is given again.

    Attributes
    ----------
    folder
        ``run.json``, and a file for each finished shard, the attempts at one, what was made smaller in one where memory
        ran out, and each file found damaged.
    n_shards
        How many there are in all.
    """

    folder: Path
    n_shards: int

    @classmethod
    def open(
        cls, folder: Path, identity: Mapping[str, Any], n_shards: int, about: Mapping[str, Any] | None = None
    ) -> Ledger:
        """The ledger of a run, begun where the folder has none.

        Parameters
        ----------
        folder
            Its folder, made where it is missing.
        identity
            What the results depend on, as JSON takes it: a run that differs in any of it is another run.
        n_shards
            Of the plan.
        about
            Noted beside it when the run begins, for people; nothing depends on it.

        Raises
        ------
        OtherRunError
            When the folder has a run of another identity; the message says what differs.
        """
        wanted = {**identity, "shards": n_shards, **({} if about is None else {ABOUT: about})}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        publish(folder / MANIFEST, [json.dumps(wanted, indent=1, sort_keys=True).encode()], keep=True)
        differs = cls.differences(folder, identity, n_shards)
        if differs:
            changes = "; ".join(differs.values())
            where = "on the same kind of machine " if _MACHINE & differs.keys() else ""
            raise OtherRunError(
                f"{folder} holds another run: {changes}. Ask for the same again {where}to continue it, or give another"
                " folder, or remove this one"
            )
        return cls(folder, n_shards)

    @classmethod
    def differences(cls, folder: Path, identity: Mapping[str, Any], n_shards: int) -> dict[str, str]:
        """How another run differs from the one in the folder: name -> what it was there, and is now."""
        wanted, found = {**identity, "shards": n_shards}, cls.manifest(folder)
        names = sorted((wanted.keys() | found.keys()) - {ABOUT})
        return {
            name: f"{name} was {_short(found.get(name))}, now {_short(wanted.get(name))}"
            for name in names
            if found.get(name) != wanted.get(name)
        }

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises
        ------
        DamagedFileError
            When it cannot be read.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except (ValueError, RecursionError):
            manifest = None
        sizes = [manifest.get("shards"), manifest.get("cells", 0)] if isinstance(manifest, dict) else [None]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise DamagedFileError(f"{folder / MANIFEST} is damaged: remove {folder} to begin the run again")
        return manifest

    def path(self, shard: int) -> Path:
        """The file of a finished shard."""
        return self.folder / f"shard-{shard:06d}"

    def finished(self) -> list[int]:
        """Shards whose file is there."""
        return self._numbers(_SHARD)

    def missing(self) -> list[int]:
        """Shards that are not finished."""
        there = set(self.finished())
        return [shard for shard in range(self.n_shards) if shard not in there]

    def store(self, shard: int, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
        """Keep what a shard gave, unless another worker was first."""
        try:
            write_arrays(self.path(shard), arrays, {**note, "shard": shard}, keep=True)
        except FileNotFoundError:
            raise self.gone() from None

    def load(self, shard: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a finished shard gave.

        Raises
        ------
        DamagedFileError
            When its file is not what was written.
        """
        arrays, note = read_arrays(self.path(shard))
        if note.get("shard") != shard:
            raise DamagedFileError(f"{self.path(shard)} is damaged: it holds shard {note.get('shard')}")
        return arrays, note

    def set_aside(self, shard: int) -> Path:
        """Take a damaged file out of the way, so that the shard is run again; where it is now."""
        return self._set_aside(self.path(shard))

    def revise(self, shard: int, cuts: Sequence[int], blocks: Mapping[int, int]) -> None:
        """Note that memory ran out, and how a shard is run instead, so that every later attempt is run like that.

        Parameters
        ----------
        shard
            Whose.
        cuts, blocks
            All that :meth:`scfast.run.Plan.revised` takes, in places of the whole plan.
        """
        places = np.array(sorted(blocks.items()), dtype=np.int64).reshape(-1, 2)
        arrays = {"cuts": np.unique(np.array(cuts, dtype=np.int64)), "blocks": places}
        write_arrays(self._revision(shard), arrays, {"shard": shard})

    def revision(self, shard: int) -> tuple[list[int], dict[int, int]]:
        """What was noted of a shard by :meth:`revise`; a file that is damaged is set aside, which a warning says."""
        if not self._revision(shard).exists():
            return [], {}
        try:
            arrays, _ = read_arrays(self._revision(shard))
            return arrays["cuts"].tolist(), dict(arrays["blocks"].tolist())
        except (DamagedFileError, KeyError) as error:
            self._set_aside(self._revision(shard))
            _LOG.warning("%s; it was set aside, and batches are as large as planned again", error)
            return [], {}

    def revised(self) -> list[int]:
        """Shards in which memory ran out."""
        return self._numbers(_REVISION)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Give signs of life while the block runs: see :func:`scfast.run.attempts.alive`.

        Raises
        ------
        RunGoneError
            When the folder is there no more.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(alive(self.folder))
            except FileNotFoundError:
                raise self.gone() from None
            yield

    def begin(self, shard: int) -> None:
        """Note an attempt at a shard, which may be the last thing that this process does.

        Raises
        ------
        RunGoneError
            When the folder is there no more.
        """
        self._note(shard, f"begun {writer()}")

    def take_back(self, shard: int, whose: str | None = None) -> None:
        """The attempt that was begun does not count: it was stopped from outside.

        ``whose``: by default this process'; empty: that of the process that began last.
        """
        self._note(shard, f"stopped {writer() if whose is None else whose}".strip())

    def lost(self, shard: int) -> None:
        """Note that the process which began last is no more, as a cluster says."""
        self._note(shard, "lost")

    def failed(self, shard: int, reason: str) -> None:
        """Note why an attempt failed."""
        self._note(shard, f"failed {writer()} {' '.join(reason.split())}")

    def attempts(self, shard: int) -> int:
        """How often a shard was begun in vain: see :func:`scfast.run.attempts.in_vain`."""
        return in_vain(self._lines(shard), self.folder)

    def reason(self, shard: int) -> str:
        """Why the last attempt failed, as far as it could say."""
        failures = [line for line in self._lines(shard) if line.startswith("failed ")]
        return failures[-1].split(" ", 2)[-1] if failures else "its process ended without a word"

    def gone(self) -> RunGoneError:
        """What to raise where the folder was removed."""
        return RunGoneError(
            f"{self.folder} was removed while its run was going on: another process has finished the same run, or"
            " somebody forgot it. Look for the results, or give the same command again"
        )

    def forgive(self) -> None:
        """Forget all attempts, so that what was left out is run again."""
        for path in self.folder.glob("attempts-*"):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left; only when nobody writes."""
        for pattern in (f".*{UNFINISHED}", f"{PARCEL}-*", f"{ALIVE}-*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def tried(self) -> list[int]:
        """Shards that are not finished, and were begun."""
        finished = set(self.finished())
        return [shard for shard in self._numbers(_ATTEMPTS) if shard not in finished and self.attempts(shard)]

    def _numbers(self, name: re.Pattern[str]) -> list[int]:
        """Shards that have a file of such a name."""
        try:
            files = [name.fullmatch(path.name) for path in self.folder.iterdir()]
        except FileNotFoundError:
            raise self.gone() from None
        return sorted(int(file[1]) for file in files if file is not None and int(file[1]) < self.n_shards)

    def _set_aside(self, path: Path) -> Path:
        number = sum(1 for _ in self.folder.glob(f"{_DAMAGED}-*")) + 1
        while (aside := self.folder / f"{_DAMAGED}-{number}-{path.name}").exists():
            number += 1
        path.replace(aside)
        return aside

    def _revision(self, shard: int) -> Path:
        return self.folder / f"revision-{shard:06d}"

    def _attempts(self, shard: int) -> Path:
        return self.folder / f"attempts-{shard:06d}"

    def _lines(self, shard: int) -> list[str]:
        path = self._attempts(shard)
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def _note(self, shard: int, line: str) -> None:
        try:
            with writing(self.folder), self._attempts(shard).open("ab") as file:
                file.write(f"{line}\n".encode())
                file.flush()
                to_disk(file.fileno())
        except FileNotFoundError:
            raise self.gone() from None


@dataclass(frozen=True)
class Standing:
    """How far one run of a folder has come.

    Attributes
    ----------
    name
        Of its folder.
    model, cells
        Which model runs over how many cells.
    n_shards, n_finished
        In all, and finished.
    failed
        Attempts that neither finished nor were stopped from outside, of shards that are not finished.
    reasons
        Shard -> why its last attempt failed.
    damaged
        Names of files that are not what was written: those set aside, and those that a check found.
    plan
        Its hash, conditions and the memory for which it was made, as the run began with them.
    revised
        Shards in which memory ran out, so that they are run in smaller batches or blocks.
    times
        Seconds of its shards by stage, of all processes.
    """

    name: str
    model: str
    cells: int
    n_shards: int
    n_finished: int
    failed: int
    reasons: dict[int, str]
    damaged: list[str]
    plan: dict[str, Any]
    revised: list[int]
    times: Times

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "times": self.times.as_dict()}


def ledgers(folder: Path) -> list[Ledger]:
    """Of every run below ``folder``, in their order."""
    runs = [path.parent for path in folder.glob(f"*/{MANIFEST}") if _RUN.fullmatch(path.parent.name)]
    runs.sort(key=lambda path: int(path.name.partition("-")[0]))
    return [Ledger(path, Ledger.manifest(path)["shards"]) for path in runs]


def standing(folder: Path, *, verify: bool = False) -> list[Standing]:
    """Of every run below ``folder``, in their order; with ``verify`` all checksums are compared."""
    found = []
    for ledger in ledgers(folder):
        manifest = Ledger.manifest(ledger.folder)
        damaged = sorted(aside.name for aside in ledger.folder.glob(f"{_DAMAGED}-*"))
        for shard in ledger.finished() if verify else []:
            try:
                ledger.load(shard)
            except DamagedFileError:
                damaged.append(ledger.path(shard).name)
        tried = ledger.tried()
        found.append(
            Standing(
                ledger.folder.name, str(manifest.get("model", "")), manifest.get("cells", 0), ledger.n_shards,
                len(ledger.finished()), sum(map(ledger.attempts, tried)),
                {shard: ledger.reason(shard) for shard in tried}, damaged, _plan(manifest), ledger.revised(),
                noted_times(ledger.folder),
            )
        )  # fmt: skip
    return found


def _plan(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the plan."""
    names = (
        "plan", "batches", "token_budget", "block_tokens", "threads", "instruction_set", "device", "dtype", "seed",
    )  # fmt: skip
    about = manifest.get(ABOUT)
    memory = about.get("memory") if isinstance(about, dict) else None
    return {name: manifest.get(name) for name in names} | {"memory": memory}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
