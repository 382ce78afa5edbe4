"""The patch embedding that takes raw pixels.

The checkpoint's convolution W [D, C, T, P, P] reads normalized pixels (x / 255 - mean) / std of T
frames. For a still all frames are x, so with w = sum of W over T

    sum w * (x / 255 - mean) / std  =  sum (w / (255 std)) * x  -  sum w * mean / std

which is one matmul over uint8 patches of one frame and a bias: an eighth of the bytes of
normalized float32 pixels of two frames, and the same numbers.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.models.config import VisionConfig


def fold_patch_embed(
    weight: mx.array, normalization: Normalization, config: VisionConfig
) -> tuple[mx.array, mx.array]:
    """Fold normalization and the repeated frame into the patch embedding.

    Args:
        weight: [D, C, T, P, P], or MLX's [D, T, P, P, C].
        normalization: What pixels would have to be normalized by.
        config: Shape of the tower.

    Returns:
        Weight [D, C * P * P] and bias [D], both float32.

    Raises:
        CheckpointError: The weight has another shape.
    """
    dim, channels, frames = config.embed_dim, config.in_channels, config.temporal_patch_size
    patch = config.patch_size
    theirs, mlx_layout = (
        (dim, channels, frames, patch, patch),
        (dim, frames, patch, patch, channels),
    )
    if weight.shape == mlx_layout:
        weight = weight.transpose(0, 4, 1, 2, 3)
    elif weight.shape != theirs:
        raise CheckpointError(
            f"visual.patch_embed.proj.weight has shape {weight.shape}, expected {theirs}"
        )
    std = mx.array(normalization.std).reshape(1, channels, 1, 1)
    mean = mx.array(normalization.mean).reshape(1, channels, 1, 1)
    scaled = weight.astype(mx.float32).sum(axis=2) / std
    bias = -(scaled * mean).sum(axis=(1, 2, 3))
    return (scaled / 255).reshape(dim, -1), bias
