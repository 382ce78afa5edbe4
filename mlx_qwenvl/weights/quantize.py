"""Group quantization: telling a stored format from its shapes, and quantizing in place.

A format is what MLX calls bits, group size and mode. Stored modules are recognized one by one, by
whether they have scales, so checkpoints with mixed formats, with a quantized vision tower or
without a statement in `config.json` load alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.models.linear import DequantizingEmbedding, DequantizingLinear
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from mlx_qwenvl.weights.files import PACKED, StoredTensor

BITS_PER_WORD = 32  # quantized weights are packed into 32-bit words
AFFINE_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Format:
    """How a module's weights are quantized.

    Attributes:
        bits: Bits per weight.
        group_size: Weights that share a scale.
        mode: MLX's name of the number format.
    """

    bits: int
    group_size: int
    mode: str


RECIPES = {f"{bits}bit": Format(bits, 64, "affine") for bits in AFFINE_BITS} | {
    "mxfp4": Format(4, 32, "mxfp4"),
    "mxfp8": Format(8, 32, "mxfp8"),
    "nvfp4": Format(4, 16, "nvfp4"),
}

_MODE_OF_BYTE_SCALES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}


def recipe(name: str) -> Format:
    """The format that a recipe's name stands for.

    Raises:
        OptionError: No such recipe.
    """
    if name not in RECIPES:
        raise OptionError(f"unknown quantization {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def stored_format(path: str, inputs: int, tensors: dict[str, StoredTensor]) -> Format | None:
    """Format of a stored module, or None where it is not quantized.

    Args:
        path: The module.
        inputs: Length of its unquantized rows.
        tensors: Everything stored.

    Raises:
        CheckpointError: Packed weights without scales, or shapes that no format explains.
    """
    weight, scales = tensors.get(f"{path}.weight"), tensors.get(f"{path}.scales")
    if scales is None:
        if weight is not None and weight.dtype == PACKED:
            raise CheckpointError(f"{path}.weight is quantized but {path}.scales is missing")
        return None
    if weight is None or len(weight.shape) != 2 or len(scales.shape) != 2:
        raise CheckpointError(f"{path}.scales belongs to no quantized {path}.weight")
    bits, bits_left = divmod(weight.shape[1] * BITS_PER_WORD, inputs)
    group_size, group_left = divmod(inputs, max(1, scales.shape[1]))
    mode = "affine"
    if scales.dtype == "U8":
        mode = _MODE_OF_BYTE_SCALES.get((bits, group_size), "")
    if bits_left or group_left or not mode:
        raise CheckpointError(
            f"{path} has weight {weight.shape} and scales {scales.shape} ({scales.dtype}), which "
            f"is no quantization of rows of {inputs}"
        )
    return Format(bits, group_size, mode)


def quantized_module(module: nn.Module, form: Format) -> nn.Module:
    """An empty quantized module in place of a dense one of the same shape."""
    on_cpu = mx.default_device() == mx.cpu
    rows, inputs = module.weight.shape
    if isinstance(module, nn.Embedding):
        embedding = DequantizingEmbedding if on_cpu else nn.QuantizedEmbedding
        return embedding(rows, inputs, form.group_size, form.bits, form.mode)
    linear = DequantizingLinear if on_cpu else nn.QuantizedLinear
    return linear(inputs, rows, "bias" in module, form.group_size, form.bits, form.mode)


def quantizable(model: Qwen2VL, form: Format) -> set[str]:
    """Paths of the modules that a recipe quantizes: the decoder's linear layers and embeddings.

    The vision tower stays as it is: it is a few large matmuls, faster in 16 bits, and the part
    whose loss shows first. Modules whose rows no group divides stay dense.
    """
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding))
        and not path.startswith("visual.")
        and module.weight.shape[-1] % form.group_size == 0
    }


def quantized_tensors(path: str, weight: mx.array, form: Format) -> dict[str, mx.array]:
    """A module's weight [out, in] as the tensors that a quantized module holds, by their names."""
    packed, scales, *biases = mx.quantize(
        weight, group_size=form.group_size, bits=form.bits, mode=form.mode
    )
    tensors = {f"{path}.weight": packed, f"{path}.scales": scales}
    return tensors | ({f"{path}.biases": biases[0]} if biases else {})
