"""What quantizing did to every matrix: ||W - Q(W)|| / ||W||, in Frobenius norms.

Both sides are read from their files some rows at a time, so a matrix of any size takes the memory
of a block. The quantized side is what the stored numbers stand for in float32, as the runtime
multiplies with them, and not what they would be if they were written back in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_qwenvl.models.config import Config, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.bundle import Bundle
from mlx_qwenvl.weights.files import FLOATS, StoredTensor, read_rows
from mlx_qwenvl.weights.load import check_tensors, stored_formats
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.quantize import dequantized
from mlx_qwenvl.weights.recipes import Format

from ..layout import TORCH_TO_MLX
from ..tensors import BLOCK_BYTES

FLOAT32 = 4  # bytes
_SUFFIX = ".weight"


def module_losses(
    source: Bundle,
    output: Bundle,
    config: Config,
    on_read: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Relative error of every module that has a matrix, dense ones included.

    Args:
        source: The model in full precision.
        output: A conversion of it.
        config: The shape of both.
        on_read: Called with the bytes of the source that were read, module by module.

    Returns:
        Errors by the modules' paths, in the order of the model: 0 for an exact copy, NaN where
        either side holds NaN, and infinity where something became of nothing.

    Raises:
        CheckpointError: Tensors are missing, superfluous, damaged or of another shape.
    """
    before, after = check_tensors(source.tensors, config), check_tensors(output.tensors, config)
    model = build(config)
    formats = stored_formats(model, after)
    losses = {}
    # Files may have layer 10 before layer 2; the model's parameters are in its own order.
    for name, _ in tree_flatten(model.parameters()):
        path = name.removesuffix(_SUFFIX)
        tensor = before.get(name)
        if path == name or tensor is None or len(tensor.shape) < 2:
            continue
        form = formats.get(path)
        kinds = ("weight",) if form is None else ("weight", "scales", "biases")
        parts = {kind: after[f"{path}.{kind}"] for kind in kinds if f"{path}.{kind}" in after}
        is_turned = path == PATCH_EMBED and (
            _has_torch_axes(tensor, config.vision)
            != _has_torch_axes(parts["weight"], config.vision)
        )
        losses[path] = _relative_error(tensor, parts, form, config.vision, is_turned=is_turned)
        if on_read is not None:
            on_read(tensor.nbytes)
    return losses


def _relative_error(
    tensor: StoredTensor,
    parts: Mapping[str, StoredTensor],
    form: Format | None,
    vision: VisionConfig,
    *,
    is_turned: bool,
) -> float:
    lost = kept = 0.0
    rows = tensor.shape[0]
    at_once = max(1, BLOCK_BYTES * rows // (FLOAT32 * tensor.size))
    for begin in range(0, rows, at_once):
        end = min(begin + at_once, rows)
        exact = read_rows(tensor, begin, end).astype(mx.float32)
        other = _dense_rows(parts, form, begin, end)
        if is_turned:
            exact, other = (_with_mlx_axes(block, vision) for block in (exact, other))
        lost += _squares(exact - other)
        kept += _squares(exact)
    if kept == 0:
        return float("inf") if lost > 0 else lost
    return float(np.sqrt(lost / kept))


def _dense_rows(
    parts: Mapping[str, StoredTensor], form: Format | None, begin: int, end: int
) -> mx.array:
    """Rows in float32; scales are widened first, so that nothing is rounded to their dtype."""
    read = {kind: read_rows(stored, begin, end) for kind, stored in parts.items()}
    wide = {
        kind: rows.astype(mx.float32) if parts[kind].dtype in FLOATS else rows
        for kind, rows in read.items()
    }
    # The formats whose scales are bytes come out in bfloat16, which holds their products exactly.
    return wide["weight"] if form is None else dequantized(wide, form).astype(mx.float32)


def _squares(block: mx.array) -> float:
    """Sum of squares; rows in float32, their sums in float64."""
    by_row = mx.sum(mx.square(block.reshape(block.shape[0], -1)), axis=1)
    return float(np.array(by_row).sum(dtype=np.float64))


def _has_torch_axes(tensor: StoredTensor, vision: VisionConfig) -> bool:
    return tensor.shape[1:] != _mlx_axes(vision)


def _with_mlx_axes(block: mx.array, vision: VisionConfig) -> mx.array:
    return block if block.shape[1:] == _mlx_axes(vision) else block.transpose(TORCH_TO_MLX)


def _mlx_axes(vision: VisionConfig) -> tuple[int, ...]:
    patch = vision.patch_size
    return (vision.temporal_patch_size, patch, patch, vision.in_channels)
