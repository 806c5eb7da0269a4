"""``map=`` against what the authors' own code gave: norms of Kobayashi et al., relevance of Chefer et al."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scfast import Packing
from scfast.ops import Norm, Relevance, attention_colsum

BACKENDS = ("cpu", "reference")
#: Maps up to 3, computed by the authors in float64; inputs here are rounded to float32.
TOLERANCE = {"rtol": 1e-5, "atol": 3e-6}
HEADS, WIDTH, LAYERS, EPS = 4, 32, 2, 1e-12


class Bert:
    """Attention of one layer of the tiny model, on the tokens of every sequence that are not padding."""

    def __init__(self, file: Any, layer: int) -> None:
        self.file, self.layer = file, layer
        self.lengths = file["in/attention_mask"].sum(1).tolist()
        self.packing = Packing.from_lengths(self.lengths)
        self.x = self.real(file[f"f64/hidden_{layer}"])  # [T, width]
        self.q, self.k, self.v = (
            self.linear(f"attention/self/{name}", self.x).unflatten(1, (HEADS, -1))
            for name in ("query", "key", "value")
        )
        out = self.weight("attention/output/dense/weight").T.unflatten(0, (HEADS, -1))  # [H, dim, width]
        self.f = torch.einsum("jhd,hdw->jhw", self.v, out)

    def weight(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.file[f"sd/encoder/layer/{self.layer}/{name}"]).double()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight(f"{name}/weight").T + self.weight(f"{name}/bias")

    def real(self, padded: np.ndarray) -> torch.Tensor:
        return torch.cat([torch.from_numpy(x[:n]) for x, n in zip(padded, self.lengths, strict=True)])

    def norm(self, residual: bool = False, layer_norm: bool = False) -> Norm:
        f, x, scale = self.f, self.x, None
        if layer_norm:
            attended = torch.cat(
                [
                    torch.einsum("hij,jhw->iw", p, f)
                    for p, f in zip(
                        self.given(f"attention_{self.layer}"), self.packing.split_k(f), strict=True
                    )
                ]
            )
            entered = attended + self.weight("attention/output/dense/bias") + x
            scale = (entered.var(-1, correction=0) + EPS).rsqrt()
            gamma = self.weight("attention/output/LayerNorm/weight")
            f, x = ((y - y.mean(-1, keepdim=True)) * gamma for y in (f, x))
        gram = torch.einsum("jhw,jgw->jhg", f, f)
        if not residual:
            return Norm(gram, row_scale=scale)
        return Norm(gram, 2 * torch.einsum("ihw,iw->ih", f, x), x.square().sum(1), scale)

    def given(self, name: str) -> Iterator[torch.Tensor]:
        """The authors' map of every sequence, padding cut off."""
        for x, n in zip(self.file[f"f64/{name}"], self.lengths, strict=True):
            yield torch.from_numpy(x[..., :n, :n])

    def maps(self, backend: str, **options: Any) -> Iterator[torch.Tensor]:
        """[H or 1, n, n] of every sequence: one set of row weights a query."""
        longest = max(self.lengths)
        rows = torch.cat([torch.eye(longest)[:, :n] for n in self.lengths], dim=1)
        maps = attention_colsum(
            self.q.float(), self.k.float(), self.packing, rows, backend=backend, **options
        )
        for x, n in zip(self.packing.split_k(maps, dim=-1), self.lengths, strict=True):
            yield x[:n].transpose(0, 1)


def assert_maps(ours: Iterator[torch.Tensor], given: Iterator[torch.Tensor]) -> None:
    for x, y in zip(ours, given, strict=True):
        torch.testing.assert_close(x.squeeze(0).double(), y, **TOLERANCE)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("year", [2020, 2021])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kobayashi(shared: Path, backend: str, year: int, layer: int) -> None:
    bert = Bert(np.load(shared / f"golden/kobayashi{year}_a.npz"), layer)
    assert_maps(bert.maps(backend, map=bert.norm()), bert.given(f"summed_weighted_norm_{layer}"))
    assert_maps(bert.maps(backend, map=bert.norm(), heads="none"), bert.given(f"weighted_norm_{layer}"))
    if year == 2021:
        norm = bert.norm(residual=True)
        assert_maps(bert.maps(backend, map=norm), bert.given(f"residual_weighted_norm_{layer}"))
        norm = bert.norm(residual=True, layer_norm=True)
        assert_maps(bert.maps(backend, map=norm), bert.given(f"post_ln_norm_{layer}"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chefer(shared: Path, backend: str) -> None:
    """Given maps go in as q = log P and k = I, given gradients as d_out = dP and v = I."""
    file = np.load(shared / "golden/rollout_a.npz")
    maps, gradients = file["maps"], file["mm/grads"]  # [B, L, H, T, T]
    eye = torch.eye(maps.shape[-1])
    packing = Packing.from_lengths([len(eye)])
    for sample in range(maps.shape[0]):
        rolled = eye.double()
        for layer in range(maps.shape[1]):
            p, gradient = (torch.from_numpy(x[sample, layer]).transpose(0, 1) for x in (maps, gradients))
            cam = Relevance(eye[:, None, :], gradient.float().contiguous())
            q = p.log().float().contiguous()
            ours = attention_colsum(q, eye[:, None, :], packing, eye, map=cam, scale=1.0, backend=backend)[
                :, 0
            ]
            torch.testing.assert_close(
                ours.double(), torch.from_numpy(file["mm/cam_bar"][sample, layer]), **TOLERANCE
            )
            rolled = rolled + ours.double() @ rolled
            torch.testing.assert_close(
                rolled, torch.from_numpy(file["mm/R_after_layer"][sample, layer]), **TOLERANCE
            )
