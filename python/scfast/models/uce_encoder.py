"""UCE over packed cells: its shape, its weights, how tokens become states, and a cell's state its embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from scfast.attention import Recorder, ScoreOptions
from scfast.models import torch_layers
from scfast.models.base import TokenKind, Tokens
from scfast.models.checkpoint import check_tensors
from scfast.models.encoder import PackedEncoder
from scfast.models.uce_table import TokenTable

#: What the names of the layers' weights begin with.
LAYERS = "transformer_encoder.layers."
#: The token table, which a file of weights may bring.
TABLE = "pe_embedding.weight"
#: Of every layer norm, as torch has it.
EPS = 1e-5
#: Rows of the token table that are projected at once: 21 MB of them.
ROWS_AT_ONCE = 1024
#: What the authors' code adds to the scores of a pad.
PAD_BIAS = 1.0

_LAYER = re.compile(re.escape(LAYERS) + r"(\d+)\.")


@dataclass(frozen=True)
class UceShape:
    """Sizes of a UCE; all but the number of heads can be read off its weights."""

    n_layers: int
    n_heads: int
    hidden: int
    intermediate: int
    token_dim: int
    output: int
    decoder: int = 1024
    positions: int = 1536

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], n_heads: int, origin: str) -> UceShape:
        """Read the sizes off the weights.

        Raises
        ------
        ValueError
            When they are none of a UCE, or the width is not divisible by the heads.
        """
        sizes = {}
        for name in ("encoder.0", f"{LAYERS}0.linear1", "decoder.0.0", "decoder.3"):
            weight = tensors.get(f"{name}.weight")
            if weight is None or weight.dim() != 2:
                raise ValueError(f"{origin} holds no weights of a UCE: there is no matrix {name}.weight")
            sizes[name] = tuple(weight.shape)
        hidden, token_dim = sizes["encoder.0"]
        if hidden % n_heads:
            raise ValueError(
                f"{origin}: its width {hidden} is not divisible by {n_heads} heads: give n_heads="
            )
        numbers = [int(match[1]) for name in tensors if (match := _LAYER.match(name))]
        return cls(
            n_layers=max(numbers) + 1, n_heads=n_heads, hidden=hidden, token_dim=token_dim,
            intermediate=sizes[f"{LAYERS}0.linear1"][0], output=sizes["decoder.3"][0],
            decoder=sizes["decoder.0.0"][0], positions=len(tensors.get("pos_encoder.pe", range(1536))),
        )  # fmt: skip

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that a forward uses."""
        d, output = self.hidden, self.output
        shapes: dict[str, tuple[int, ...]] = {"pos_encoder.pe": (self.positions, 1, d)}
        shapes |= _projection("encoder", self.token_dim, d)
        shapes |= torch_layers.shapes(LAYERS, self.n_layers, d, self.intermediate)
        for number, (into, out) in enumerate(((d, self.decoder), (self.decoder, output), (output, output))):
            shapes |= _block(f"decoder.{number}", into, out)
        return shapes | _linear("decoder.3", output, output)

    def unused(self) -> dict[str, tuple[int, ...]]:
        """The same of the parts for training; the third is as wide as the published model, whatever this one is."""
        shapes = _projection("gene_embedding_layer", self.token_dim, self.hidden)
        for number, (into, out) in enumerate(((self.output + 1280, 2048), (2048, 512), (512, 128))):
            shapes |= _block(f"binary_decoder.{number}", into, out)
        return shapes | _linear("binary_decoder.3", 128, 1)


class UceEncoder:
    """Weights ready to run, and the packed forward.

    Attributes
    ----------
    shape
        Sizes.
    tensors
        Every weight that is used, under its name in the authors' code.
    table
        Vectors of the tokens, which stay on the CPU, in their file.
    packed
        The layers.
    """

    def __init__(self, shape: UceShape, tensors: Mapping[str, torch.Tensor], table: TokenTable) -> None:
        self.shape, self.tensors, self.table = shape, dict(tensors), table
        layers = torch_layers.from_tensors(self.tensors, LAYERS, shape.n_layers)
        self.packed = PackedEncoder(layers, shape.n_heads, "relu", EPS)

    @classmethod
    def from_checkpoint(
        cls,
        shape: UceShape,
        tensors: dict[str, torch.Tensor],
        table: TokenTable,
        dtype: torch.dtype,
        origin: str,
    ) -> UceEncoder:
        """Check names and shapes, refuse what does not fit, and cast to ``dtype``; float32 stays in its file."""
        expected = shape.weights()
        check_tensors(tensors, expected, (*shape.unused(), TABLE), origin, against="architecture")
        return cls(shape, {name: tensors[name].to(dtype) for name in expected}, table)

    def initialised(self, seed: int) -> UceEncoder:
        """The same with fresh weights; token table and positions, which are not trained, are kept."""
        generator = torch.Generator().manual_seed(seed)
        fresh = torch_layers.initialised(self.shape.weights(), generator)
        fresh["pos_encoder.pe"] = self.tensors["pos_encoder.pe"]
        moved = {name: tensor.to(self.device, self.dtype) for name, tensor in fresh.items()}
        return UceEncoder(self.shape, moved, self.table)

    def to(self, device: torch.device | str) -> UceEncoder:
        """The same with its weights on ``device``, itself where they are there already; else a copy."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        here = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if here else UceEncoder(self.shape, moved, self.table)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.tensors["encoder.0.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["encoder.0.weight"].device

    def embed(self, tokens: Tokens) -> torch.Tensor:
        """States [T, d] that enter the first layer; each vector of the table is read and projected once a batch."""
        ids, place = tokens.ids.unique(return_inverse=True)
        projected = torch.cat([self._project(part) for part in ids.cpu().split(ROWS_AT_ONCE)])
        states = projected[place]
        states += functional.embedding(tokens.positions, self.tensors["pos_encoder.pe"][:, 0])
        return states

    def _project(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.table.unit_rows(ids).to(self.device, self.dtype)
        states = self._norm(functional.gelu(self._linear(rows, "encoder.0")), "encoder.2")
        return states.mul_(self.shape.hidden**0.5)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], EPS
        )

    def forward(
        self, tokens: Tokens, recorder: Recorder, block_tokens: int | None = None
    ) -> torch.Tensor | None:
        """Run all layers over packed cells: the last states [T, d], if anybody wants them.

        Pads that are among the tokens take part as in the authors' code, their scores raised by 1.
        """
        pad = tokens.kind == int(TokenKind.PAD)
        options = ScoreOptions(key_bias=PAD_BIAS * pad.float()) if bool(pad.any()) else None
        return self.packed.forward(self.embed(tokens), tokens.packing, recorder, options, block_tokens)

    def decode(self, states: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, output] of cells from the last states [B, d] of their cls tokens, of Euclidean length 1."""
        for number in range(3):
            states = functional.gelu(
                self._norm(self._linear(states, f"decoder.{number}.0"), f"decoder.{number}.1")
            )
        return functional.normalize(self._linear(states, "decoder.3"), dim=-1)


def _linear(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _projection(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    """Linear map, GELU, layer norm."""
    return _linear(f"{name}.0", into, out) | _norm(f"{name}.2", out)


def _block(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    """Linear map, layer norm, GELU."""
    return _linear(f"{name}.0", into, out) | _norm(f"{name}.1", out)
