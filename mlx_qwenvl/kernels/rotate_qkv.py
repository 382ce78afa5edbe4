"""Bias, split and M-RoPE of the decoder's merged projection in one launch.

Axes: B sequences, L tokens, Q query heads, G key-value heads, D a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Rotation:
    """Where the tokens of one step stand; made once for all layers.

    Attributes:
        positions: [3, B, L] int32 (time, height, width); [3, 1, L] where all rows stand alike.
        inverse: Rotary frequencies [D / 2] float32 in radians per position.
        section: Frequencies given to time, height and width; they sum to D / 2.
    """

    positions: mx.array
    inverse: mx.array
    section: tuple[int, int, int]

    @cached_property
    def tables(self) -> tuple[mx.array, mx.array]:
        """Cosines [B, L, 1, 1, D / 2] and sines [B, L, 1, 2, D / 2], the first of a pair negative.

        float32; B is 1 where all rows stand alike.
        """
        # On the host, which waits for the device at this point of a step and not the other way.
        axis = np.repeat(np.arange(3), self.section)
        chosen = np.array(self.positions)[axis].transpose(1, 2, 0)  # [B, L, D / 2]
        angles = chosen.astype(np.float32) * np.array(self.inverse)
        sin = np.sin(angles)
        cos, signed = np.cos(angles)[:, :, None], np.stack([-sin, sin], axis=2)
        return mx.array(cos[:, :, None]), mx.array(signed[:, :, None])


def rotate_qkv_twin(
    qkv: mx.array, bias: mx.array | None, rotation: Rotation, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array]:
    """Rotated queries, and rotated keys with values, of a merged projection.

    Args:
        qkv: [B, L, (Q + 2 G) D]: queries, keys, values.
        bias: [(Q + 2 G) D], or None where it is in `qkv` already.
        rotation: The tokens' positions.
        heads: Q.
        kv_heads: G.

    Returns:
        Queries [B, Q, L, D], and keys and values [2, B, G, L, D].
    """
    batch, length, _ = qkv.shape
    cos, sin = rotation.tables
    if bias is not None:
        qkv = qkv + bias
    split = qkv.reshape(batch, length, heads + 2 * kv_heads, 2, -1)
    turning = split[:, :, : heads + kv_heads].astype(mx.float32)
    turned = (turning * cos + turning[:, :, :, ::-1] * sin).astype(qkv.dtype)
    q = turned[:, :, :heads].reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
    kv = mx.concatenate([turned[:, :, heads:], split[:, :, heads + kv_heads :]], axis=2)
    return q, kv.reshape(batch, length, 2, kv_heads, -1).transpose(2, 0, 3, 1, 4)
