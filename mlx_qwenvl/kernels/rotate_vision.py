"""The vision tower's 2-D rotation of queries and keys, straight from the fused projection.

Axes: B pictures, N patches, H heads, D a head's width.
"""

from __future__ import annotations

import mlx.core as mx


def rotate_vision_twin(qkv: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    """Queries and keys [B, H, N, D] of qkv [B, N, 3, H, D], the pairs (i, i + D/2) turned.

    Args:
        qkv: The projection.
        cos: [N, D / 2] float32.
        sin: [N, D / 2] float32.
    """
    pairs = qkv[:, :, :2].astype(mx.float32)
    pairs = pairs.reshape(*pairs.shape[:-1], 2, -1)  # [B, N, 2, H, 2, D / 2]
    signed = mx.stack([-sin, sin], axis=1)[:, None, None]
    turned = pairs * cos[:, None, None, None] + pairs[..., ::-1, :] * signed
    q, k = turned.reshape(*qkv.shape[:2], 2, *qkv.shape[3:]).transpose(2, 0, 3, 1, 4)
    return q.astype(qkv.dtype), k.astype(qkv.dtype)
