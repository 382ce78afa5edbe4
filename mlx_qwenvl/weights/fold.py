"""The patch embedding that takes raw pixels.

The checkpoint's convolution W [D, C, T, P, P] reads normalized pixels (x / 255 - mean) / std of T
frames. For a still all frames are x, so with w = (sum of W over T) / (255 std)

    sum w * (x - 255 mean)  =  sum w * (x - 128)  +  sum w * (128 - 255 mean)

which is one matmul over uint8 patches of one frame and a bias: an eighth of the bytes of
normalized float32 pixels of two frames, and the same numbers. Taking 128 off first keeps the sums
small, so that float32 loses no more than it does with normalized pixels.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.vision import PIXEL_CENTRE


def fold_patch_embed(
    weight: mx.array, normalization: Normalization, config: VisionConfig
) -> tuple[mx.array, mx.array]:
    """Fold normalization and the repeated frame into the patch embedding.

    Args:
        weight: [D, C, T, P, P], or MLX's [D, T, P, P, C].
        normalization: What pixels would have to be normalized by.
        config: Shape of the tower.

    Returns:
        Weight [D, C * P * P] and bias [D] for pixels less `PIXEL_CENTRE`, both float32.

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
    mean, std = (
        np.array(values, dtype=np.float64).reshape(1, channels, 1, 1)
        for values in (normalization.mean, normalization.std)
    )
    one_frame = np.array(weight.astype(mx.float32), dtype=np.float64).sum(axis=2)
    per_level = one_frame / (255 * std)
    bias = (per_level * (PIXEL_CENTRE - 255 * mean)).sum(axis=(1, 2, 3))
    return mx.array(per_level.reshape(dim, -1).astype(np.float32)), mx.array(
        bias.astype(np.float32)
    )
