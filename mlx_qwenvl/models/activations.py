"""The activations of the family, each one launch on a GPU."""

from __future__ import annotations

import math

import mlx.core as mx

from mlx_qwenvl.kernels.fused import fused_on_gpu


@fused_on_gpu
def quick_gelu(x: mx.array) -> mx.array:
    """GELU by a sigmoid, as in the vision tower's blocks."""
    return x * mx.sigmoid(1.702 * x)


@fused_on_gpu
def gelu(x: mx.array) -> mx.array:
    """Exact GELU, as in the merger."""
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


@fused_on_gpu
def tanh_gelu(x: mx.array) -> mx.array:
    """GELU by a hyperbolic tangent, as in Qwen3-VL's tower."""
    return x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


@fused_on_gpu
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """SiLU of the gate times the other half, as in the decoder's MLP."""
    return gate * mx.sigmoid(gate) * up
