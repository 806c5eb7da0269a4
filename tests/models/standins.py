"""The smallest recorder that runs attention: softmax, materialised, cell by cell."""

from __future__ import annotations

from typing import Any

import torch

from scfast import Packing
from scfast.attention import LayerAttention


class SoftmaxRecorder:
    """Keeps every hidden state and map; ``needs_output=False`` lets the model stop after the last q and k."""

    needs_parts = False
    target = None

    def __init__(self, needs_output: bool = True, hidden: bool = True) -> None:
        self.needs_output = needs_output
        self.wanted = hidden
        self.states: dict[int, torch.Tensor] = {}
        self.maps: list[list[torch.Tensor]] = []
        self.saw_v: list[bool] = []
        self.begun: dict[str, Any] = {}
        self.finished = False

    def begin(self, n_layers: int, packing: Packing, **options: Any) -> None:
        self.begun = {"n_layers": n_layers, "packing": packing, **options}

    def wants_hidden(self, layer: int) -> bool:
        return self.wanted

    def hidden(self, layer: int, states: torch.Tensor) -> None:
        self.states[layer] = states.clone()

    def attend(self, attention: LayerAttention) -> torch.Tensor | None:
        scale = attention.options.scale
        assert scale is not None
        q, k = (attention.packing.split_q(x) for x in (attention.q, attention.k))
        scores = [torch.einsum("ihd,jhd->hij", a, b) * scale for a, b in zip(q, k, strict=True)]
        maps = [score.softmax(-1) for score in scores]
        self.maps.append(maps)
        self.saw_v.append(attention.v is not None)
        if attention.v is None:
            return None
        v = attention.packing.split_k(attention.v)
        return torch.cat([torch.einsum("hij,jhd->ihd", m, x) for m, x in zip(maps, v, strict=True)])

    def passes(self, n_layers: int) -> int:
        return 1

    def finish(self) -> None:
        self.finished = True
