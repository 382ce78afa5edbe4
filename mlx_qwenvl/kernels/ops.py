"""Which of the two runs: the Metal kernels, or their twins. It is chosen once, at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.kernels.add_rms_norm import add_rms_norm_twin
from mlx_qwenvl.kernels.rotate_qkv import Rotation, rotate_qkv_twin
from mlx_qwenvl.kernels.rotate_vision import rotate_vision_twin

Pair = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Ops:
    """The fused steps of the model, each described in the file of its name.

    Attributes:
        rotate_vision: (qkv, cos, sin) to queries and keys.
        rotate_qkv: (qkv, bias, rotation, heads, kv_heads) to queries, and keys with values.
        add_rms_norm: (x, delta, weight, eps) to sum and norm.
    """

    rotate_vision: Callable[[mx.array, mx.array, mx.array], Pair]
    rotate_qkv: Callable[[mx.array, mx.array | None, Rotation, int, int], Pair]
    add_rms_norm: Callable[[mx.array, mx.array, mx.array, float], Pair]


TWINS = Ops(
    rotate_vision=rotate_vision_twin,
    rotate_qkv=rotate_qkv_twin,
    add_rms_norm=add_rms_norm_twin,
)
