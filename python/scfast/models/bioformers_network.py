"""BioFormers' weights, its embedding of gene, value and condition, its layers, and the head that predicts bins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from scfast.attention import ScoreOptions
from scfast.models import torch_layers
from scfast.models.bioformers_conditions import EMPTY
from scfast.models.checkpoint import MAX_LAYERS, MAX_SIZE, check_tensors
from scfast.models.encoder import ACTIVATIONS, PackedEncoder
from scfast.models.text_files import shown

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.models.base import Tokens

PREFIX = "encoder.layers."
EPS = 1e-5
#: The value of a gene whose bin is to be guessed.
MASKED = -1
ARCHITECTURES = ("encoder", "decoder")
VALUE_EMBEDDINGS = ("linear", "table")


@dataclass(frozen=True)
class BioformersShape:
    """Sizes and kinds of a BioFormers; ``n_genes`` is without <cls>, ``n_bins`` with that of zero.

    Attributes
    ----------
    architecture
        ``"encoder"``: every token sees every other. ``"decoder"``: only itself and those before it.
    value_embedding
        ``"linear"``: two linear maps of the bin, over n_bins - 1. ``"table"``: a row for every bin.
    n_conditions
        Rows of the table of external tokens, the mark's among them, beside that of none; 0: there is no such table.
    """

    n_layers: int
    n_heads: int
    hidden: int
    intermediate: int
    n_genes: int
    n_bins: int
    n_conditions: int = 0
    architecture: str = "encoder"
    value_embedding: str = "linear"
    activation: str = "gelu"

    def __post_init__(self) -> None:
        least = {"n_conditions": 0, "n_bins": 2}
        for name, value in asdict(self).items():
            if not isinstance(value, str) and (type(value) is not int or value < least.get(name, 1)):
                raise ValueError(f"{name} must be a whole number from {least.get(name, 1)}, got {value!r}")
            if not isinstance(value, str) and value > (MAX_LAYERS if name == "n_layers" else MAX_SIZE):
                raise ValueError(f"{name} must be at most {MAX_LAYERS} for layers, {MAX_SIZE:,} for sizes")
        for name, allowed in (
            ("architecture", ARCHITECTURES),
            ("value_embedding", VALUE_EMBEDDINGS),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, allowed))}"
                )
        if self.hidden % self.n_heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by n_heads {self.n_heads}")

    @property
    def causal(self) -> bool:
        """Whether tokens see only those before them."""
        return self.architecture == "decoder"

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""
        d = self.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.gene.weight": (self.n_genes + 1, d),
            "embeddings.mask.weight": (1, d),
            "embeddings.norm.weight": (d,),
            "embeddings.norm.bias": (d,),
        }
        if self.value_embedding == "table":
            shapes["embeddings.value.weight"] = (self.n_bins, d)
        else:
            shapes |= torch_linear("embeddings.value.linear1", d, 1)
            shapes |= torch_linear("embeddings.value.linear2", d, d)
        if self.n_conditions:
            shapes["embeddings.external.weight"] = (self.n_conditions + 1, d)
        return {
            **shapes,
            **torch_layers.shapes(PREFIX, self.n_layers, d, self.intermediate),
            **torch_linear("head.dense", d, d),
            "head.norm.weight": (d,),
            "head.norm.bias": (d,),
            **torch_linear("head.output", self.n_bins, d),
        }


def torch_linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an nn.Linear."""
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


class BioformersNetwork:
    """Weights ready to run, and the packed forward. Differentiable: training runs through the same code.

    Attributes
    ----------
    shape
        Sizes.
    tensors
        Every weight under its name in the checkpoint.
    packed
        The layers; views of ``tensors``. ``recompute``: see :class:`PackedEncoder`.
    """

    def __init__(
        self, shape: BioformersShape, tensors: Mapping[str, torch.Tensor], *, recompute: bool = True
    ) -> None:
        self.shape = shape
        self.tensors = dict(tensors)
        layers = torch_layers.from_tensors(self.tensors, PREFIX, shape.n_layers)
        self.packed = PackedEncoder(layers, shape.n_heads, shape.activation, EPS, recompute)

    @classmethod
    def from_checkpoint(
        cls, shape: BioformersShape, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, origin: str
    ) -> BioformersNetwork:
        """Check names and shapes, refuse what does not fit, and cast to ``dtype``."""
        expected = shape.weights()
        check_tensors(dict(tensors), expected, (), origin)
        return cls(shape, {name: tensors[name].to(dtype).contiguous() for name in expected})

    @classmethod
    def initialised(cls, shape: BioformersShape, dtype: torch.dtype, seed: int) -> BioformersNetwork:
        """Fresh weights, every matrix and table uniform within (its columns)^-0.5, as torch draws linear maps."""
        generator = torch.Generator().manual_seed(seed)
        tensors = torch_layers.initialised(shape.weights(), generator)
        return cls(shape, {name: tensor.to(dtype) for name, tensor in tensors.items()})

    def to(self, device: torch.device | str) -> BioformersNetwork:
        """The same network with its weights on ``device``, itself where they are there already; else a copy."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        here = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if here else BioformersNetwork(self.shape, moved)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.tensors["embeddings.gene.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["embeddings.gene.weight"].device

    def embed(self, tokens: Tokens) -> torch.Tensor:
        """States [T, d] that enter the first layer: norm(gene + value + condition)."""
        assert tokens.values is not None
        states = functional.embedding(tokens.ids, self.tensors["embeddings.gene.weight"])
        masked = (tokens.values == MASKED)[:, None]  # [T, 1]
        values = self._embed_values(tokens.values.clamp(min=0))
        states = states + torch.where(masked, self.tensors["embeddings.mask.weight"], values)
        if tokens.external is not None:
            states = states + self._embed_external(tokens.external)
        return self._norm(states, "embeddings.norm")

    def _embed_external(self, rows: torch.Tensor) -> torch.Tensor:
        """[T, d]: the sum of each token's external tokens, rows [T] or [T, W]."""
        table = self.tensors["embeddings.external.weight"]
        if rows.dim() == 1:
            return functional.embedding(rows, table)
        there = (rows != EMPTY)[..., None]  # [T, W, 1]
        return torch.where(there, functional.embedding(rows.clamp(min=0), table), 0).sum(1)

    def _embed_values(self, bins: torch.Tensor) -> torch.Tensor:
        if self.shape.value_embedding == "table":
            return functional.embedding(bins.long(), self.tensors["embeddings.value.weight"])
        share = (bins / (self.shape.n_bins - 1)).to(self.dtype)[:, None]  # [T, 1]
        inner = torch.relu(self._linear(share, "embeddings.value.linear1"))
        return self._linear(inner, "embeddings.value.linear2")

    def forward(
        self,
        tokens: Tokens,
        recorder: Recorder,
        block_tokens: int | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Run all layers over packed cells, as :meth:`PackedEncoder.forward` does: the last states [T, d], if any."""
        options = ScoreOptions(causal=self.shape.causal)
        return self.packed.forward(self.embed(tokens), tokens.packing, recorder, options, block_tokens, rows)

    def bin_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [m, n_bins] of the bins of the genes at last states [m, d]."""
        inner = ACTIVATIONS[self.shape.activation](self._linear(states, "head.dense"))
        return self._linear(self._norm(inner, "head.norm"), "head.output")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, (self.shape.hidden,), weight, bias, EPS)


def shape_from_config(config: Mapping[str, Any], n_genes: int, n_bins: int, origin: str) -> BioformersShape:
    """Read sizes and kinds from ``config.json``.

    Raises
    ------
    ValueError
        When a needed key is missing, or a value is none that can be run.
    """
    keys = {
        "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_size": "hidden",
        "intermediate_size": "intermediate", "architecture": "architecture",
        "value_embedding": "value_embedding", "hidden_act": "activation",
    }  # fmt: skip
    missing = [key for key in keys if key not in config]
    if config.get("model_type") != "bioformers" or missing:
        lacks = ", ".join(missing) or "model_type='bioformers'"
        raise ValueError(f"{origin} lacks {lacks}: it is not the config.json of a BioFormers")
    conditions = config.get("conditions", [])
    if not isinstance(conditions, list | tuple) or not all(isinstance(name, str) for name in conditions):
        raise ValueError(f"{origin}: conditions must be a list of names, got {shown(conditions)}")
    given = {name: config[key] for key, name in keys.items()}
    try:
        return BioformersShape(
            **given, n_genes=n_genes, n_bins=n_bins,
            n_conditions=len(conditions) + bool(config.get("mark_targets", False)),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
