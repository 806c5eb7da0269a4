"""Weights of nn.TransformerEncoder: names, shapes, fresh values, and the layers made of them without a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from scfast.models.encoder import Affine, Layer


def shapes(prefix: str, n_layers: int, hidden: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of ``n_layers`` layers, as nn.TransformerEncoderLayer saves them.

    Parameters
    ----------
    prefix
        What stands before the number of a layer, such as ``"transformer_encoder.layers."``.
    n_layers, hidden, intermediate
        Sizes; the last one is that of the feed-forward part.

    Examples
    --------
    >>> shapes("layers.", 1, 8, 16)["layers.0.self_attn.in_proj_weight"]
    (24, 8)
    """
    d, f = hidden, intermediate
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.in_proj_weight": (3 * d, d),
        "self_attn.in_proj_bias": (3 * d,),
        "self_attn.out_proj.weight": (d, d),
        "self_attn.out_proj.bias": (d,),
        "linear1.weight": (f, d),
        "linear1.bias": (f,),
        "linear2.weight": (d, f),
        "linear2.bias": (d,),
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
    }
    return {f"{prefix}{n}.{name}": shape for n in range(n_layers) for name, shape in layer.items()}


def from_tensors(tensors: Mapping[str, torch.Tensor], prefix: str, n_layers: int) -> list[Layer]:
    """The layers whose weights have the names of :func:`shapes`; they are views of ``tensors``."""

    def affine(name: str) -> Affine:
        return Affine(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    layers = []
    for number in range(n_layers):
        name = f"{prefix}{number}."
        weight, bias = (tensors[f"{name}self_attn.in_proj_{part}"] for part in ("weight", "bias"))
        width = weight.shape[1]
        layers.append(
            Layer(
                qk=Affine(weight[: 2 * width], bias[: 2 * width]),
                v=Affine(weight[2 * width :], bias[2 * width :]),
                output=affine(f"{name}self_attn.out_proj"),
                attention_norm=affine(f"{name}norm1"),
                up=affine(f"{name}linear1"),
                down=affine(f"{name}linear2"),
                output_norm=affine(f"{name}norm2"),
            )
        )
    return layers


def initialised(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Fresh float32 weights of layers, linear maps and norms, distributed as torch initialises its modules.

    in_proj is uniform within (6 / (fan in + fan out))^0.5 (Glorot and Bengio 2010), every other matrix and the bias
    of a linear map within (fan in)^-0.5; the biases of in_proj, out_proj and norms are 0, the weights of norms 1.

    Parameters
    ----------
    shapes
        Name -> shape, such as :func:`shapes`; a weight with one axis is that of a norm.
    generator
        Where the numbers come from.
    """
    tensors = {}
    for name, shape in shapes.items():
        stem, _, part = name.rpartition(".")
        weight = shapes.get(f"{stem}.weight", ())
        if len(shape) == 2:
            bound = (6 / sum(shape)) ** 0.5 if part == "in_proj_weight" else shape[1] ** -0.5
            tensors[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        elif part == "bias" and len(weight) == 2 and not stem.endswith("out_proj"):
            bound = weight[1] ** -0.5
            tensors[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        else:
            tensors[name] = torch.full(shape, float(part == "weight"))
    return tensors
