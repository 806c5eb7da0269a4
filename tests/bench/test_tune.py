"""The search for tiles, with a stand-in for the GPU: what is tried, what is refused, what is proposed."""

from __future__ import annotations

import datetime
import importlib.util
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from scfast.bench import tune
from scfast.bench.timing import host_clock
from scfast.cli import cli
from scfast.ops import _triton
from scfast.ops._dispatch import BACKENDS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

COLSUM = tune.Shape("colsum", torch.bfloat16, 64)
BEST = (64, 128, 8, 4)


class Chip:
    """Stands for a bench: every tile has a time, the further from the best the longer; some do not run."""

    def __init__(self, gain: float = 10.0) -> None:
        self.gain, self.asked, self.refused = gain, [], {}

    def times(self, tiles: list[Any], rounds: int) -> dict[Any, float]:
        self.asked.append((len(tiles), rounds))
        found = {}
        for tile in tiles:
            if tile.queries == 128 and tile.keys == 128:
                self.refused[tile] = "out of resource: shared memory"
                continue
            off = sum(abs(x.bit_length() - y.bit_length()) for x, y in zip(tile[:4], BEST, strict=True))
            found[tile] = 1e-3 + self.gain * 1e-6 * off
        return found


def present() -> Any:
    from scfast.kernels import tiles

    return tiles.choose("sm_90", "colsum", 16, 64)


def test_the_fastest_tile_is_found_and_the_present_one_takes_part_to_the_end() -> None:
    chip = Chip()
    found = tune.tune(COLSUM, "sm_90", chip, "GPU X")
    assert found.best[:4] == BEST
    assert found.present == present()
    assert found.seconds < found.present_seconds
    assert set(found.refused.values()) == {"out of resource: shared memory"}
    assert chip.asked[0] == (1, tune.FIRST_ROUNDS)
    assert chip.asked[-1] in ((tune.FINALISTS, tune.ROUNDS), (tune.FINALISTS + 1, tune.ROUNDS))


def test_a_gain_within_the_noise_changes_nothing() -> None:
    found = tune.tune(COLSUM, "sm_90", Chip(gain=0.5))
    assert found.best == found.present
    assert found.seconds == found.present_seconds


def test_a_present_tile_that_does_not_run_is_an_error() -> None:
    class Broken(Chip):
        def times(self, tiles: list[Any], rounds: int) -> dict[Any, float]:
            self.refused[tiles[0]] = "its answer is off by 1.0e+00"
            return {}

    with pytest.raises(RuntimeError, match=r"present tile .* does not run: its answer is off"):
        tune.tune(COLSUM, "sm_90", Broken())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_candidates_give_every_thread_its_share(dtype: torch.dtype) -> None:
    shape = tune.Shape("colsum", dtype, 64)
    least, most = tune.SCORES_PER_THREAD[shape.bits]
    tiles = [*shape.candidates(2)]
    assert 5 < len(tiles) == len(set(tiles)) < 30
    assert all(least <= t.queries * t.keys / (32 * t.warps) <= most and t.stages == 2 for t in tiles)


def test_a_proposed_row_is_taken_by_its_own_launches_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scfast.kernels import tiles

    row = tune.tune(COLSUM, "sm_90", Chip(), "GPU X").row(datetime.date(2026, 1, 2))
    assert row.startswith("# GPU X: 1 ms; 1.04 ms with 128 queries, 64 keys, 4 warps, 2 stages.\n[[row]]\n")
    assert tomllib.loads(row)["row"][0]["date"] == datetime.date(2026, 1, 2)
    before = tiles.choose("sm_90", "colsum", 16, 128)
    path = tmp_path / "rows.toml"
    path.write_text(row)
    monkeypatch.setenv(tiles.OWN_ROWS, str(path))
    own, *shipped = tiles.rows.__wrapped__()
    monkeypatch.setattr(tiles, "rows", lambda: (own, *shipped))
    choose = tiles._first_fit.__wrapped__
    assert choose("sm_90", "colsum", 16, 64) == (*BEST, "measured")
    assert choose("sm_90", "colsum", 16, 32) == (*BEST, "measured")
    assert choose("sm_90", "colsum", 16, 128) == before
    assert choose("sm_90", "colsum", 32, 64).basis == "compiled"
    assert choose("sm_90", "softmax", 16, 64).basis == "compiled"
    assert choose("sm_80", "colsum", 16, 64).basis == "compiled"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("[[row", "cannot be read"),
        ('[[row]]\ngpus = "sm_90"', r"row 1: gpus must be of type list, got 'sm_90'; `scfast bench --tune"),
        ('[[row]]\ngpus = ["sm_90"]', "row 1: visits must be of type list, got None"),
    ],
)
def test_rows_of_ones_own_are_checked(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scfast.kernels import tiles

    path = tmp_path / "rows.toml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(tiles.OWN_ROWS, str(path))
    with pytest.raises(ValueError, match=message):
        tiles.rows.__wrapped__()


def test_every_visit_is_timed_in_an_op_that_launches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from scfast.kernels import batch, cosine, tiles
    from triton.runtime.jit import JITFunction

    taken: list[tuple[str, Any]] = []

    def telling(find: Any) -> Any:
        def tile(self: Any, visit: str, *width: int) -> Any:
            taken.append((visit, find(self, visit, *width)))
            return taken[-1][1]

        return tile

    inputs = tune.Inputs.random([5, 40], 2, 64, torch.bfloat16, "cpu")
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: None)
    for place in (batch.Batch, cosine.Walk):
        monkeypatch.setattr(place, "tile", telling(place.tile))
    monkeypatch.setattr(_triton, "_gpu", lambda device: "sm_90")
    monkeypatch.setitem(BACKENDS, "triton", lambda op, **tensors: [])
    trial = tiles.Tile(16, 32, 4, 1, "measured")
    for visit, call in tune.VISITS.items():
        taken.clear()
        with tiles.on_trial(visit, trial):
            call(inputs, "triton")
        assert [name for name, tile in taken if tile == trial] == [visit]
    known = {visit for row in tiles.rows() for visit in row["visits"]}
    assert known == set(tune.VISITS)


def test_a_wrong_tile_and_one_that_does_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from scfast.kernels.tiles import Tile, _trial
    from triton.runtime.errors import OutOfResources

    def op(x: tune.Inputs, backend: str) -> tune.Answer:
        exact = x.weights[0].double()
        if backend == "reference":
            return (exact,)
        visit, tile = _trial.get() or ("", None)
        assert visit == "colsum"
        if tile.stages == 4:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return ((exact * (1 + {1: 1e-7, 2: 2e-7, 3: 1e-3}[tile.stages])).float(),)

    monkeypatch.setitem(tune.VISITS, "colsum", op)
    bench = tune.Bench(COLSUM, torch.device("cpu"), clock=host_clock, heads=1, lengths=[9])
    tiles = [Tile(64, 64, 4, stages, "measured") for stages in (1, 2, 3, 4)]
    assert list(bench.times(tiles, 2)) == tiles[:2]
    assert "off by 1.0e-03" in bench.refused[tiles[2]]
    assert "shared memory" in bench.refused[tiles[3]]


def test_what_cannot_be_tuned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="device='cpu' is none: run this on a machine"):
        tune.gpu_to_tune(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"no visit 'rank_values'; use some of forward, softmax"):
        tune.shapes(["rank_values"], [torch.float32], [64])
    with pytest.raises(ValueError, match="head dim 300 has no kernel"):
        tune.shapes([], [torch.float32], [300])
    assert len(tune.shapes([], [torch.float32, torch.bfloat16], [64, 128])) == 4 * len(tune.VISITS)


def test_the_command_prints_rows_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scfast.run.resolve_device", torch.device)
    monkeypatch.setattr(tune, "gpu_to_tune", lambda device: "sm_90")
    monkeypatch.setattr(tune, "machine", lambda device: "GPU X")
    monkeypatch.setattr(tune, "Bench", lambda shape, device: Chip())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    out = tmp_path / "new" / "rows.toml"
    asked = [
        "--tune",
        "--device",
        "cuda",
        "--visit",
        "colsum",
        "--visit",
        "softmax",
        "-o",
        str(out),
        "--text",
    ]
    planned = CliRunner().invoke(cli, ["bench", *asked, "--dry-run"], catch_exceptions=False)
    assert not out.parent.exists()
    assert all(word in planned.output for word in ("Dry run", "shapes", str(out)))
    result = CliRunner().invoke(cli, ["bench", *asked], catch_exceptions=False)
    rows = tomllib.loads(out.read_text())["row"]
    assert [(row["visits"], row["width"]) for row in rows] == [
        ([visit], width) for width in (64, 128) for visit in ("colsum", "softmax")
    ]
    assert tomllib.loads(result.output)["row"] == rows  # the rest of the output is comments
    assert f"SCFAST_TILES={out}" in result.output
    stopped = CliRunner().invoke(cli, ["bench", *asked, "--seconds", "-1"], catch_exceptions=False)
    assert "# 4 shapes were not reached" in stopped.output


def test_the_command_without_a_gpu_and_with_options_of_the_other_half() -> None:
    for arguments, message in (
        (["--tune", "--device", "cpu"], "run this on a machine"),
        (["-o", "x"], "--output goes with --tune"),
        (["--dry-run"], "--dry-run goes with --tune"),
        (["--visit", "colsum"], "--visit goes with --tune"),
        (["--dim", "8", "--dim", "16"], "several go with --tune"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(cli, ["bench", *arguments], catch_exceptions=False)


def test_the_command_times_the_ops() -> None:
    text = CliRunner().invoke(
        cli, ["bench", "--device", "cpu", "--tokens", "16", "--text"], catch_exceptions=False
    )
    assert "attention_colsum" in text.output
    assert "torch SDPA forward" in text.output
