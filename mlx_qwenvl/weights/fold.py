"""The patch embedding that takes raw pixels.

The checkpoint's convolution W [D, C, T, P, P] reads normalized pixels (x / 255 - mean) / std of T
frames. For a still all frames are x, so with w = (sum of W over T) / (255 std)

    sum w * (x - 255 mean)  =  sum w * (x - 128)  +  sum w * (128 - 255 mean)

which is one matmul over uint8 patches of one frame and a bias: an eighth of the bytes of
normalized float32 pixels of two frames, and the same numbers. Taking 128 off first keeps the sums
small, so that float32 loses no more than it does with normalized pixels.

Of a video, frames x_0, x_1, ... differ. It is embedded as the still of its first frame, and what
changed since is added, each frame by its own taps of the kernel, v_t = W_t / (255 std):

    sum w * (x_0 - 255 mean)  +  sum over t > 0 of v_t * (x_t - x_0)
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
    taps = _taps(weight, normalization, config)
    per_level = taps.sum(axis=2)
    mean = np.array(normalization.mean, dtype=np.float64).reshape(1, -1, 1, 1)
    bias = (per_level * (PIXEL_CENTRE - 255 * mean)).sum(axis=(1, 2, 3))
    return _rows(per_level), mx.array(bias.astype(np.float32))


def fold_motion(weight: mx.array, normalization: Normalization, config: VisionConfig) -> mx.array:
    """What is added for the frames of a video that are not the first of their patch.

    The arguments are those of `fold_patch_embed`.

    Returns:
        [D, (T - 1) * C * P * P] float32, for pixels of the later frames less the first one's.

    Raises:
        CheckpointError: The weight has another shape.
    """
    later = _taps(weight, normalization, config)[:, :, 1:]
    return _rows(later.swapaxes(1, 2))


def _taps(weight: mx.array, normalization: Normalization, config: VisionConfig) -> np.ndarray:
    """The kernel [D, C, T, P, P] float64 for levels from 0 to 255."""
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
    std = np.array(normalization.std, dtype=np.float64).reshape(1, channels, 1, 1, 1)
    return np.array(weight.astype(mx.float32), dtype=np.float64) / (255 * std)


def _rows(taps: np.ndarray) -> mx.array:
    return mx.array(taps.reshape(len(taps), -1).astype(np.float32))
