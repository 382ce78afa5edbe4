"""Linear layers as the checkpoint has them, and exact ways to run them faster.

Merging stacks the rows of layers that read the same input, so that one matmul replaces several.
`Dense` and `DenseEmbedding` are for decoding on the CPU, `WideningLinear` for looking there.
`DequantizingLinear` and `DequantizingEmbedding` are for MLX's CPU backend, whose quantized matmul
runs at about 1 GFLOP/s for any number of rows: from a few rows on it is some fifteen times faster
to dequantize and multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn

COLUMN_NUMBERS = 2**20  # of a weight from which a column saves more than its two views cost
FEW_ROWS = 4  # rows up to which the CPU's quantized matmul reads less than dequantizing writes

LinearLike: TypeAlias = "nn.Linear | nn.QuantizedLinear"


class Dense(nn.Linear):
    """`nn.Linear` that multiplies a single row as a column on the CPU, where it is large.

    The numbers are the same up to rounding. With AVX-512 OpenBLAS takes as long in either form;
    without it packs the weight first, and takes 0.4 to 0.7 of the time for a column.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        self._on_cpu = mx.default_device() == mx.cpu

    def __call__(self, x: mx.array) -> mx.array:
        """Apply to x [..., in], giving [..., out]."""
        if not (self._on_cpu and is_column(x, self["weight"])):
            return super().__call__(x)
        out = row_times(x, self["weight"])
        return out + self["bias"] if "bias" in self else out


class DenseEmbedding(nn.Embedding):
    """`nn.Embedding` whose head does the same."""

    def __init__(self, rows: int, dims: int) -> None:
        super().__init__(rows, dims)
        self._on_cpu = mx.default_device() == mx.cpu

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits [..., rows of the embedding] for x [..., dims]."""
        if not (self._on_cpu and is_column(x, self["weight"])):
            return super().as_linear(x)
        return row_times(x, self["weight"])


def is_column(x: mx.array, weight: mx.array) -> bool:
    """Whether the product of x [..., in] and a weight [out, in] is to be computed as a column."""
    return weight.size >= COLUMN_NUMBERS and x.size == x.shape[-1]


def row_times(row: mx.array, weight: mx.array) -> mx.array:
    """The product [..., out] of one row [..., in] and a weight [out, in], computed as a column."""
    return (weight @ row.reshape(-1, 1)).reshape(*row.shape[:-1], -1)


class WideningLinear(nn.Linear):
    """`nn.Linear` that may compute in float32 with a weight of 16 bits, widened while it is used.

    For the vision tower on the CPU: it multiplies each weight with thousands of rows, beside which
    widening it is little, and takes half the memory.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Apply to x [..., in], giving [..., out] in x's dtype."""
        if self["weight"].dtype == x.dtype:
            return super().__call__(x)
        # Behind x: all layers' weights would be widened at once otherwise.
        weight = mx.depends([self["weight"]], [x])[0].astype(x.dtype).T
        return mx.addmm(self["bias"], x, weight) if "bias" in self else x @ weight


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


def merge_rows(layers: Sequence[LinearLike]) -> list[LinearLike]:
    """Fewer layers whose outputs, one after another, are those of the given ones.

    Neighbours are merged where they agree in kind, bits, group size and mode. Rows are independent
    of each other and quantization groups run along a row, so the numbers stay the same.
    """
    return [_stacked(list(same)) for _, same in groupby(layers, key=_format)]


def _format(layer: LinearLike) -> tuple[object, ...]:
    """What has to be equal in layers that are merged; adapters stay alone."""
    if isinstance(layer, nn.QuantizedLinear):
        return type(layer), layer.bits, layer.group_size, layer.mode, *layer
    return (type(layer), *layer) if type(layer) in (nn.Linear, Dense) else (id(layer),)


def _stacked(layers: list[LinearLike]) -> LinearLike:
    first = layers[0]
    if len(layers) > 1:
        # Every parameter of either kind (weight, bias, scales, biases) is laid out row by row.
        first.update({n: mx.concatenate([layer[n] for layer in layers], axis=0) for n in first})
    return first
