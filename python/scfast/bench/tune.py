"""Which tile is fastest on the GPU at hand: rows for ``kernels/tiles.toml``, measured and dated.

A launch takes the first row that fits it (``scfast.kernels.tiles``). For each class of launches, a visit with the
width of its elements and heads, tiles are tried in the order of what decides most: sides and warps first, then the
number of pipeline stages. A tile counts only if its answers are as exact as those of the present one. Every visit is
timed inside an op that launches it, all its other visits as they are.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch

from scfast import ops
from scfast.bench.timing import Clock, Inputs, Run, clock_of, medians

if TYPE_CHECKING:
    from scfast.kernels.tiles import Tile

Answer = tuple[torch.Tensor, ...]

#: Cells that fill the chip: 12 heads make 1536 tiles of 128 rows for the 132 multiprocessors of an H200.
HEADS, LENGTHS = 12, (2048,) * 8
#: Cells on which answers are compared with float64: one token, partial tiles, several tiles.
SMALL_HEADS, SMALL_LENGTHS = 2, (1, 33, 130, 64)
#: Rounding that any order of sums may add, relative to the largest entry of an answer.
ROUNDING = 2e-6
SIDES, WARPS, STAGES = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
#: Scores of a tile that a thread holds, at least and at most, by bits of an input element: float32 products are
#: unrolled multiply-adds, which want few.
SCORES_PER_THREAD = {16: (8, 64), 32: (1, 16)}
#: Tiles that go on to the timing that decides, and its rounds; before it, the rounds of the first look.
FINALISTS, ROUNDS, FIRST_ROUNDS = 4, 20, 3
#: A tile replaces the present one if it takes at most this share of its time: less is noise.
WORTH_IT = 0.98


def _forward(x: Inputs, backend: str) -> Answer:
    full = ops.attention_forward(x.q, x.k, x.v, x.packing, backend=backend)
    return full.out, full.lse


def _norm(x: Inputs) -> ops.Norm:
    return ops.Norm(x.gram, lse=x.lse)


def _relevance(x: Inputs) -> ops.Relevance:
    return ops.Relevance(x.v, x.d_out, lse=x.lse)


def _colsum(
    x: Inputs,
    backend: str,
    *,
    many: bool = False,
    heads: str | None = None,
    map: Callable[[Inputs], ops.Norm | ops.Relevance] | None = None,
) -> Answer:
    weights, of = x.weights if many else x.weights[0], None if map is None else map(x)
    sums = ops.attention_colsum(x.q, x.k, x.packing, weights, map=of, heads=heads, backend=backend)
    assert isinstance(sums, torch.Tensor)
    return (sums,)


def _rowstats(
    x: Inputs,
    backend: str,
    *,
    heads: str | None = "mean",
    map: Callable[[Inputs], ops.Norm | ops.Relevance] | None = None,
) -> Answer:
    of = None if map is None else map(x)
    return tuple(ops.attention_rowstats(x.q, x.k, x.packing, map=of, heads=heads, backend=backend))


def _matmul(x: Inputs, backend: str) -> Answer:
    columns = x.v.flatten(1)[:, :64].contiguous()
    return (ops.attention_matmul(x.q, x.k, x.packing, columns, backend=backend),)


def _compare(x: Inputs, backend: str) -> Answer:
    return tuple(ops.attention_compare(x.q, x.k, x.d_out, x.v, x.packing, backend=backend))


def _topk(x: Inputs, backend: str) -> Answer:
    return (ops.attention_topk(x.q, x.k, x.packing, 16, backend=backend).values,)


def _scatter(x: Inputs, backend: str) -> Answer:
    longest = max(x.packing.lengths_k)
    ids = torch.cat(
        [torch.arange(n, device=x.q.device) for n in x.packing.lengths_k]
    )  # the same in every cell
    out = torch.zeros(longest, longest, dtype=torch.float64, device=x.q.device)
    return (ops.attention_scatter(x.q, x.k, x.packing, ids, out, backend=backend),)


def _backward(x: Inputs, backend: str) -> Answer:
    return tuple(ops.attention_backward(x.d_out, x.q, x.k, x.v, x.out, x.lse, x.packing, backend=backend))


def _pairs(x: Inputs, backend: str) -> Answer:
    found = ops.cosine_histogram(x.q.flatten(1), packing=x.packing, backend=backend)
    return found.sum, found.sum_of_squares, found.max


def _nearest(x: Inputs, backend: str, k: int = 16) -> Answer:
    found = ops.cosine_topk(x.q.flatten(1), k, packing=x.packing, backend=backend)
    return (found.values.nan_to_num(),)  # cells may have fewer rows


#: Visit -> an op that launches it.
VISITS: dict[str, Callable[[Inputs, str], Answer]] = {
    "forward": _forward,
    "softmax": _colsum,
    "colsum": _colsum,
    "colsum many": partial(_colsum, many=True),
    "fused rows": _rowstats,
    "fused keys": partial(_colsum, heads="max"),
    "fused keys many": partial(_colsum, heads="max", many=True),
    "matmul": _matmul,
    "compare": _compare,
    "topk": _topk,
    "scatter": _scatter,
    "pairs": _pairs,
    "nearest": _nearest,
    "nearest many": partial(_nearest, k=128),
    "norm rows": partial(_rowstats, map=_norm, heads=None),
    "norm keys": partial(_colsum, map=_norm),
    "norm keys many": partial(_colsum, map=_norm, many=True),
    "relevance rows": partial(_rowstats, map=_relevance),
    "relevance keys": partial(_colsum, map=_relevance),
    "relevance keys many": partial(_colsum, map=_relevance, many=True),
    "backward rows": _backward,
    "backward keys": _backward,
}


@dataclass(frozen=True)
class Shape:
    """A class of launches: what rows of tiles.toml tell apart on one GPU."""

    visit: str
    dtype: torch.dtype
    dim: int

    @property
    def bits(self) -> int:
        """Of an input element."""
        return 8 * self.dtype.itemsize

    def candidates(self, stages: int) -> Iterator[Tile]:
        """Tiles worth a try, with one number of stages."""
        from scfast.kernels.tiles import Tile

        least, most = SCORES_PER_THREAD[self.bits]
        for queries, keys, warps in product(SIDES, SIDES, WARPS):
            if least <= queries * keys / (32 * warps) <= most:
                yield Tile(queries, keys, warps, stages, "measured")


@dataclass(frozen=True)
class Proposal:
    """The fastest tile of a shape on a GPU, beside the one that its launches take now.

    Attributes
    ----------
    shape, gpu
        Which launches; ``"sm_90"`` and so on.
    best, present
        The tiles.
    seconds, present_seconds
        Of an op call with each.
    refused
        Tiles that were tried and do not count -> why.
    where
        What was measured on: GPU, torch and Triton.
    """

    shape: Shape
    gpu: str
    best: Tile
    present: Tile
    seconds: float
    present_seconds: float
    refused: dict[Tile, str] = field(default_factory=dict)
    where: str = ""

    def row(self, date: datetime.date | None = None) -> str:
        """A row for tiles.toml."""
        from scfast.kernels.scores import padded

        tile = {name: getattr(self.best, name) for name in ("queries", "keys", "warps", "stages")}
        now = ", ".join(f"{value} {name}" for name, value in self.present._asdict().items() if name in tile)
        lines = [
            f"# {self.where}: {self.seconds * 1e3:.4g} ms; {self.present_seconds * 1e3:.4g} ms with {now}.",
            "[[row]]",
            f'gpus = ["{self.gpu}"]',
            f'visits = ["{self.shape.visit}"]',
            f"bits = {self.shape.bits}",
            f"width = {padded(self.shape.dim)}",
            *(f"{name} = {value}" for name, value in tile.items()),
            f"date = {date or datetime.date.today()}",
            'basis = "measured"',
        ]
        return "\n".join(lines) + "\n"


class Bench:
    """Times tiles of one shape on one device, and tells which of them are wrong.

    Parameters
    ----------
    shape
        The launches.
    device
        A GPU.
    clock
        Default: that of the device.
    heads, lengths
        Of the batch that is timed.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        clock: Clock | None = None,
        heads: int = HEADS,
        lengths: Sequence[int] = LENGTHS,
    ) -> None:
        self.shape, self._clock = shape, clock or clock_of(device)
        self._call = VISITS[shape.visit]
        self._large = Inputs.random(lengths, heads, shape.dim, shape.dtype, device)
        self._small = Inputs.random(SMALL_LENGTHS, SMALL_HEADS, shape.dim, shape.dtype, device)
        self._exact = self._call(self._small, "reference")
        self._allowed: list[float] = []
        self.refused: dict[Tile, str] = {}

    def times(self, tiles: Sequence[Tile], rounds: int) -> dict[Tile, float]:
        """Seconds of an op call with each tile that runs and is right; the first one ever sets what is right."""
        runs: dict[Tile, Run] = {}
        for tile in tiles:
            if reason := self.refused.get(tile) or self._refusal(tile):
                self.refused[tile] = reason
            else:
                runs[tile] = partial(self._run, tile, self._large)
                runs[tile]()  # compiled and warm from here on
        return medians(runs, rounds, self._clock)

    def _run(self, tile: Tile, x: Inputs) -> Answer:
        from scfast.kernels import tiles

        with tiles.on_trial(self.shape.visit, tile):
            return self._call(x, "triton")

    def _refusal(self, tile: Tile) -> str | None:
        from triton.errors import TritonError

        try:
            answer = self._run(tile, self._small)
        except TritonError as error:  # too little shared memory, or nothing that compiles
            return (str(error) or type(error).__name__).splitlines()[0]
        errors = [_error(ours, exact) for ours, exact in zip(answer, self._exact, strict=True)]
        if not self._allowed:
            self._allowed = [2 * error + ROUNDING for error in errors]
        wrong = [
            f"{error:.1e}" for error, most in zip(errors, self._allowed, strict=True) if not error <= most
        ]
        return f"its answer is off by {', '.join(wrong)}" if wrong else None


def _error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    if not exact.numel():
        return 0.0
    scale = exact.double().abs().max().clamp(min=1e-30)
    return float((ours.double() - exact.double()).abs().max() / scale)


def tune(shape: Shape, gpu: str, bench: Bench, where: str = "") -> Proposal:
    """The fastest tile of a shape.

    Parameters
    ----------
    shape
        The launches.
    gpu
        As in tiles.toml.
    bench
        Of that shape, on that GPU.
    where
        What the row will say of the machine.
    """
    from scfast.kernels import tiles
    from scfast.kernels.scores import padded

    present = tiles.choose(gpu, shape.visit, shape.bits, padded(shape.dim))
    first = bench.times([present], FIRST_ROUNDS)
    if present not in first:
        raise RuntimeError(f"the present tile of {shape} does not run: {bench.refused[present]}")
    found = first | bench.times([*shape.candidates(present.stages)], FIRST_ROUNDS)
    fastest = min(found, key=found.__getitem__)
    found |= bench.times([fastest._replace(stages=n) for n in STAGES if n != fastest.stages], FIRST_ROUNDS)
    finalists = sorted(found, key=found.__getitem__)[:FINALISTS]
    final = bench.times([*dict.fromkeys([present, *finalists])], ROUNDS)
    best = min(final, key=final.__getitem__)
    if final[best] > WORTH_IT * final[present]:
        best = present
    return Proposal(shape, gpu, best, present, final[best], final[present], dict(bench.refused), where)


def shapes(visits: Sequence[str], dtypes: Sequence[torch.dtype], dims: Sequence[int]) -> list[Shape]:
    """Every combination; an error for a visit that does not exist.

    Examples
    --------
    >>> import torch
    >>> from scfast.bench.tune import shapes
    >>> [shape.visit for shape in shapes(["colsum", "softmax"], [torch.bfloat16], [64])]
    ['colsum', 'softmax']
    """
    if unknown := [visit for visit in visits if visit not in VISITS]:
        raise ValueError(f"there is no visit {unknown[0]!r}; use some of {', '.join(VISITS)}")
    if wrong := [dim for dim in dims if not 1 <= dim <= 256]:
        raise ValueError(f"head dim {wrong[0]} has no kernel: 1 to 256")
    return [Shape(visit, dtype, dim) for dtype, dim, visit in product(dtypes, dims, visits or VISITS)]


def gpu_to_tune(device: torch.device) -> str:
    """The name of a GPU in tiles.toml, once it is known that tiles can be timed on it.

    Raises
    ------
    ValueError
        When there is no GPU, or its kernels cannot run.
    """
    from scfast.ops import _triton

    if device.type != "cuda":
        raise ValueError(
            f"tiles are timed on the GPU that they are for, and device={str(device)!r} is none: run this on a machine"
            " where torch sees one"
        )
    reasons = _triton.unsupported("attention_colsum", q=torch.empty((), device=device))
    if reasons:
        raise ValueError(f"the Triton kernels do not run here: {'; '.join(reasons)}")
    return _triton._gpu(device)


def machine(device: torch.device) -> str:
    """What a measurement rests on.

    Examples
    --------
    On a machine with a GPU, ``machine(torch.device("cuda"))`` is such as ``"NVIDIA H200, torch 2.13.0, Triton 3.7.0"``.
    """
    import triton

    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, Triton {triton.__version__}"
