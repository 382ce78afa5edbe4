"""The three activations of the family, each one fused launch on a GPU.

On the CPU they run uncompiled: there `mx.compile` starts a C++ compiler, which costs seconds at
the first call and pays back nothing that a matmul does not hide.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx


def _fused_on_gpu(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    compiled = mx.compile(function, shapeless=True)

    def run(*arrays: mx.array) -> mx.array:
        return (compiled if mx.default_device() == mx.gpu else function)(*arrays)

    run.__doc__ = function.__doc__
    return run


@_fused_on_gpu
def quick_gelu(x: mx.array) -> mx.array:
    """GELU by a sigmoid, as in the vision tower's blocks."""
    return x * mx.sigmoid(1.702 * x)


@_fused_on_gpu
def gelu(x: mx.array) -> mx.array:
    """Exact GELU, as in the merger."""
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


@_fused_on_gpu
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """SiLU of the gate times the other half, as in the decoder's MLP."""
    return gate * mx.sigmoid(gate) * up
