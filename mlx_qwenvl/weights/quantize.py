"""Group quantization: telling a stored format from its shapes, and quantizing in place.

Stored modules are recognized one by one, by whether they have scales, so checkpoints with mixed
formats, with a quantized vision tower or without a statement in `config.json` load alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.models.experts import ExpertLinear, QuantizedExpertLinear
from mlx_qwenvl.models.linear import DequantizingEmbedding, DequantizingLinear
from mlx_qwenvl.weights.files import PACKED, StoredTensor
from mlx_qwenvl.weights.recipes import Format

BITS_PER_WORD = 32  # quantized weights are packed into 32-bit words
_MODE_OF_BYTE_SCALES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}


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
    if weight is None or len(weight.shape) < 2 or len(scales.shape) != len(weight.shape):
        raise CheckpointError(f"{path}.scales belongs to no quantized {path}.weight")
    bits, bits_left = divmod(weight.shape[-1] * BITS_PER_WORD, inputs)
    group_size, group_left = divmod(inputs, max(1, scales.shape[-1]))
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
    if isinstance(module, ExpertLinear):
        experts, outputs, width = module.weight.shape
        return QuantizedExpertLinear(experts, outputs, width, form.group_size, form.bits, form.mode)
    rows, inputs = module.weight.shape
    if isinstance(module, nn.Embedding):
        embedding = DequantizingEmbedding if on_cpu else nn.QuantizedEmbedding
        return embedding(rows, inputs, form.group_size, form.bits, form.mode)
    linear = DequantizingLinear if on_cpu else nn.QuantizedLinear
    return linear(inputs, rows, "bias" in module, form.group_size, form.bits, form.mode)


def quantized_tensors(path: str, weight: mx.array, form: Format) -> dict[str, mx.array]:
    """A weight [..., out, in] as the tensors that a quantized module holds, by their names."""
    packed, scales, *biases = mx.quantize(
        weight, group_size=form.group_size, bits=form.bits, mode=form.mode
    )
    tensors = {f"{path}.weight": packed, f"{path}.scales": scales}
    return tensors | ({f"{path}.biases": biases[0]} if biases else {})


def dequantized(parts: Mapping[str, mx.array], form: Format) -> mx.array:
    """The dense weight [out, in] that a packed one stands for, in the dtype of its scales.

    Args:
        parts: `weight`, `scales` and for affine formats `biases`.
        form: Their format.
    """
    return mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        group_size=form.group_size,
        bits=form.bits,
        mode=form.mode,
    )
