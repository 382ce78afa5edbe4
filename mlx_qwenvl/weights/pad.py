"""A wider MLP that computes the same, so that Metal's fast matrix-vector kernel takes it.

MLX reads quantized rows of a matrix-vector product eight bytes a thread only where their length is
a multiple of `FAST_COLUMNS`. The 2B's MLP is 8,960 wide, 17.5 times 512: its last projection is
left to the slower kernel. With zeros up to 9,216 the algebra is exact, as silu(0) * 0 = 0 and what
it meets in the next matrix is 0 too; the MLP's bytes grow by 2.9 %.
"""

from __future__ import annotations

import os

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.models.linear import LinearLike
from mlx_qwenvl.models.text import MLP

SWITCH = "MLX_QWENVL_PAD_MLP"
FAST_COLUMNS = {4: 512, 6: 256, 8: 256}  # numbers of a row, by bits (MLX 0.32, affine)
WORD = 32  # bits of a packed word


def pads_mlp() -> bool:
    """Whether to pad: where Metal computes, unless `$MLX_QWENVL_PAD_MLP` says on or off.

    Raises:
        OptionError: The variable is neither "on" nor "off".
    """
    asked = os.environ.get(SWITCH)
    if asked not in (None, "on", "off"):
        raise OptionError(f"{SWITCH} is {asked!r}; expected on or off")
    metal = mx.metal.is_available() and mx.default_device() == mx.gpu
    return asked == "on" or (asked is None and metal)


def pad_mlp(mlp: MLP) -> None:
    """Widen an MLP, its projections not merged yet, where its last projection is misaligned."""
    down = mlp.down_proj
    if not isinstance(down, nn.QuantizedLinear) or down.mode != "affine":
        return
    width = down.scales.shape[1] * down.group_size
    extra = -width % FAST_COLUMNS.get(down.bits, 1)
    if extra == 0 or extra % down.group_size:
        return
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.update({name: _with_zeros(layer[name], 0, extra) for name in _arrays(layer)})
    down.weight = _with_zeros(down.weight, 1, extra * down.bits // WORD)
    for name in ("scales", "biases"):
        down[name] = _with_zeros(down[name], 1, extra // down.group_size)


def _arrays(layer: LinearLike) -> list[str]:
    return [name for name in layer if isinstance(layer[name], mx.array)]


def _with_zeros(array: mx.array, axis: int, count: int) -> mx.array:
    """An array with zeros behind it along an axis."""
    widths = [(0, count if index == axis else 0) for index in range(array.ndim)]
    return mx.pad(array, widths)
