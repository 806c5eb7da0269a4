"""scGPT's weights, whichever layout they were saved in, its embedding of genes and values, and its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from scfast.models import torch_layers
from scfast.models.checkpoint import check_sizes, check_tensors
from scfast.models.encoder import PackedEncoder
from scfast.models.text_files import shown

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.models.base import Tokens

#: What the names of heads and of other parts begin with that no hidden state depends on.
UNUSED = (
    "decoder.",
    "cls_decoder.",
    "mvc_decoder.",
    "grad_reverse_discriminator.",
    "batch_encoder.",  # joins the decoders, not the encoder
    "flag_encoder.",  # marks genes to be perturbed; none are
)
#: Names that flash-attention and its wrapper give to weights of nn.MultiheadAttention.
RENAMED = {
    ".self_attn._impl.Wqkv.": ".self_attn.in_proj_",
    ".self_attn.Wqkv.": ".self_attn.in_proj_",
    ".self_attn._impl.out_proj.": ".self_attn.out_proj.",
}
PREFIX = "transformer_encoder.layers."
EPS = 1e-5
#: Values are clipped to it before they are embedded.
LARGEST_VALUE = 512.0
#: Fresh rows of the gene table lie within it.
INITIAL_RANGE = 0.1


@dataclass(frozen=True)
class ScgptShape:
    """Sizes that ``args.json`` and ``vocab.json`` ask for; ``vocabulary`` counts special tokens too."""

    n_layers: int
    n_heads: int
    hidden: int
    intermediate: int
    vocabulary: int

    @classmethod
    def from_args(cls, args: Mapping[str, Any], vocabulary: int, origin: str) -> ScgptShape:
        """Read ``args.json``, and refuse what the packed forward does not compute.

        Raises
        ------
        ValueError
            When a needed key is missing, or the model is of another kind.
        """
        needed = {"nlayers": "n_layers", "nheads": "n_heads", "embsize": "hidden", "d_hid": "intermediate"}
        check_sizes(args, needed, origin, "args.json of an scGPT")
        supported: dict[str, tuple[Any, ...]] = {
            "input_emb_style": ("continuous",),
            "input_style": ("binned",),
            "pre_norm": (False,),
            "domain_spec_batchnorm": (False, None),
        }
        for key, allowed in supported.items():
            if args.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{origin} has {key}={shown(args[key])}; {allowed[0]!r} can be run")
        shape = cls(**{name: args[key] for key, name in needed.items()}, vocabulary=vocabulary)
        if shape.hidden % shape.n_heads:
            raise ValueError(f"{origin}: embsize {shape.hidden} is not divisible by {shape.n_heads} heads")
        return shape

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that hidden states depend on, in the layout of nn.TransformerEncoder."""
        d = self.hidden
        return {
            "encoder.embedding.weight": (self.vocabulary, d),
            "encoder.enc_norm.weight": (d,),
            "encoder.enc_norm.bias": (d,),
            "value_encoder.linear1.weight": (d, 1),
            "value_encoder.linear1.bias": (d,),
            "value_encoder.linear2.weight": (d, d),
            "value_encoder.linear2.bias": (d,),
            "value_encoder.norm.weight": (d,),
            "value_encoder.norm.bias": (d,),
            **torch_layers.shapes(PREFIX, self.n_layers, d, self.intermediate),
        }


def in_one_layout(tensors: Mapping[str, torch.Tensor], origin: str) -> dict[str, torch.Tensor]:
    """The weights under their names in nn.TransformerEncoder; flash-attention need not be installed.

    Raises
    ------
    ValueError
        When a weight is there in two layouts.

    Examples
    --------
    >>> saved = {"transformer_encoder.layers.0.self_attn.Wqkv.weight": torch.zeros(6, 2)}
    >>> list(in_one_layout(saved, "best_model.pt"))
    ['transformer_encoder.layers.0.self_attn.in_proj_weight']
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for theirs, ours in RENAMED.items():
            new = new.replace(theirs, ours)
        if new in renamed:
            raise ValueError(f"{origin} holds {new} twice, in two layouts of attention weights: keep one")
        renamed[new] = tensor
    return renamed


class ScgptNetwork:
    """Weights ready to run, and the packed forward.

    Attributes
    ----------
    shape
        Sizes.
    tensors
        Every weight that hidden states depend on, named as in nn.TransformerEncoder.
    packed
        The layers; views of ``tensors``.
    """

    def __init__(self, shape: ScgptShape, tensors: dict[str, torch.Tensor]) -> None:
        self.shape = shape
        self.tensors = tensors
        layers = torch_layers.from_tensors(tensors, PREFIX, shape.n_layers)
        self.packed = PackedEncoder(layers, shape.n_heads, "relu", EPS)

    @classmethod
    def from_checkpoint(
        cls, shape: ScgptShape, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, origin: str
    ) -> ScgptNetwork:
        """Check names and shapes, refuse what does not fit, and cast to ``dtype``; heads are left aside."""
        tensors = in_one_layout(tensors, origin)
        expected = shape.weights()
        table = tensors.get("encoder.embedding.weight")
        if table is not None and len(table) != shape.vocabulary:
            raise ValueError(
                f"the gene table of {origin} has {len(table)} rows, but vocab.json has {shape.vocabulary} genes and"
                " special tokens (those it lacks are appended): they belong to different models"
            )
        unused = [name for name in tensors if name.startswith(UNUSED)]
        check_tensors(tensors, expected, unused, origin, "args.json and vocab.json")
        return cls(shape, {name: tensors[name].to(dtype).contiguous() for name in expected})

    @classmethod
    def initialised(cls, shape: ScgptShape, dtype: torch.dtype, seed: int) -> ScgptNetwork:
        """Fresh weights, distributed as the authors' code draws them; every layer has its own."""
        generator = torch.Generator().manual_seed(seed)
        shapes = shape.weights()
        table = torch.empty(shapes.pop("encoder.embedding.weight"))
        table.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator)
        tensors = {"encoder.embedding.weight": table} | torch_layers.initialised(shapes, generator)
        return cls(shape, {name: tensor.to(dtype) for name, tensor in tensors.items()})

    def to(self, device: torch.device | str) -> ScgptNetwork:
        """The same network with its weights on ``device``, itself where they are there already; else a copy."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        here = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if here else ScgptNetwork(self.shape, moved)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.tensors["encoder.embedding.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["encoder.embedding.weight"].device

    def embed(self, tokens: Tokens) -> torch.Tensor:
        """States [T, d] that enter the first layer: the gene's vector, normed, and that of its value."""
        if tokens.values is None:
            raise ValueError(
                "the tokens have no values, the bins of counts that scGPT embeds: tokenise with it"
            )
        genes = functional.embedding(tokens.ids, self.tensors["encoder.embedding.weight"])
        states = self._norm(genes, "encoder.enc_norm")
        values = tokens.values.clamp(max=LARGEST_VALUE).to(self.dtype)[:, None]  # [T, 1]
        values = torch.relu_(self._linear(values, "value_encoder.linear1"))
        values = self._linear(values, "value_encoder.linear2")
        return states + self._norm(values, "value_encoder.norm")

    def forward(
        self, tokens: Tokens, recorder: Recorder, block_tokens: int | None = None
    ) -> torch.Tensor | None:
        """Run all layers over packed cells, as :meth:`PackedEncoder.forward` does: the last states [T, d], if any."""
        return self.packed.forward(self.embed(tokens), tokens.packing, recorder, block_tokens=block_tokens)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, (self.shape.hidden,), weight, bias, EPS)
