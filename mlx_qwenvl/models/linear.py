"""Linear layers as the checkpoint has them, and two exact ways to run them faster.

Merging stacks the rows of layers that read the same input, so that one matmul replaces several.
`DequantizingLinear` and `DequantizingEmbedding` are for MLX's CPU backend, whose quantized matmul
runs at about 1 GFLOP/s for any number of rows: from a few rows on it is some fifteen times faster
to dequantize and multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn

FEW_ROWS = 4  # rows up to which the CPU's quantized matmul reads less than dequantizing writes

LinearLike: TypeAlias = "nn.Linear | nn.QuantizedLinear"


class DequantizingLinear(nn.QuantizedLinear):
    """`nn.QuantizedLinear` that multiplies with dequantized weights from a few rows on."""

    def __call__(self, x: mx.array) -> mx.array:
        """Apply to x [..., in], giving [..., out]."""
        if x.size // x.shape[-1] <= FEW_ROWS:
            return super().__call__(x)
        weight = _dequantized(self, x.dtype)
        return mx.addmm(self["bias"], x, weight.T) if "bias" in self else x @ weight.T


class DequantizingEmbedding(nn.QuantizedEmbedding):
    """`nn.QuantizedEmbedding` whose head multiplies with dequantized weights for many rows."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits [..., rows of the embedding] for x [..., dims]."""
        if x.size // x.shape[-1] <= FEW_ROWS:
            return super().as_linear(x)
        return x @ _dequantized(self, x.dtype).T


def _dequantized(layer: nn.QuantizedLinear | nn.QuantizedEmbedding, dtype: mx.Dtype) -> mx.array:
    return mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    ).astype(dtype)


def merge_rows(layers: Sequence[LinearLike]) -> LinearLike | None:
    """Make the first layer one whose output is the outputs of all, one after another.

    Rows are independent of each other, quantization groups run along a row, so the merged layer
    computes the same numbers.

    Returns:
        The first layer, or None where the layers differ in kind, bits, group size or mode, or
        carry adapters.
    """
    first = layers[0]
    if any(type(layer) is not type(first) or layer.keys() != first.keys() for layer in layers):
        return None
    if isinstance(first, nn.QuantizedLinear):
        formats = {(layer.bits, layer.group_size, layer.mode) for layer in layers}
        if len(formats) != 1:
            return None
    elif not isinstance(first, nn.Linear):
        return None
    # Every parameter of either kind (weight, bias, scales, biases) is laid out row by row.
    stacked = {name: mx.concatenate([layer[name] for layer in layers], axis=0) for name in first}
    first.update(stacked)
    return first
