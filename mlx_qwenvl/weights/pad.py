"""A wider MLP that computes the same, so that Metal's fast matrix-vector kernel takes it.

MLX reads quantized rows of a matrix-vector product eight bytes a thread only where their length is
a multiple of `FAST_COLUMNS`. The 2B's MLP is 8,960 wide, 17.5 times 512: its last projection is
left to the slower kernel. With zeros up to 9,216 the algebra is exact, as silu(0) * 0 = 0 and what
it meets in the next matrix is 0 too; the MLP's bytes grow by 2.9 %.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.models.linear import LinearLike
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.text import MLP
from mlx_qwenvl.weights.recipes import Format

SWITCH = "MLX_QWENVL_PAD_MLP"
FAST_COLUMNS = {4: 512, 6: 256, 8: 256}  # numbers of a row, by bits (MLX 0.32, affine)
WORD = 32  # bits of a packed word


def on_metal() -> bool:
    """Whether Metal computes."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def pads_mlp(is_metal: bool) -> bool:
    """Whether to pad: where Metal computes, unless `$MLX_QWENVL_PAD_MLP` says on or off.

    Args:
        is_metal: Whether Metal computes.

    Raises:
        OptionError: The variable is neither "on" nor "off".
    """
    asked = os.environ.get(SWITCH)
    if asked not in (None, "on", "off"):
        raise OptionError(f"{SWITCH} is {asked!r}; expected on or off")
    return asked == "on" or (asked is None and is_metal)


def extra_columns(width: int, form: Format | None) -> int:
    """Columns by which an MLP is widened.

    Args:
        width: Its own.
        form: Of its last projection.
    """
    if form is None or form.mode != "affine":
        return 0
    extra = -width % FAST_COLUMNS.get(form.bits, 1)
    return 0 if extra % form.group_size else extra


def stored_padding(
    width: int, formats: Mapping[str, Format], names: Iterable[str]
) -> dict[str, Fraction]:
    """What tensors grow by where they are padded, all of an MLP's alike.

    Args:
        width: Of the MLPs.
        formats: Of what is quantized, by path.
        names: Of the tensors.

    Returns:
        The part of itself that each growing one gains, by its name.
    """
    grown = {}
    for name in names:
        mlp, found, _ = name.partition(".mlp.")
        extra = extra_columns(width, formats.get(f"{mlp}.mlp.down_proj"))
        if found and extra:
            grown[name] = Fraction(extra, width)
    return grown


def mlp_padding(model: Model) -> int:
    """Columns by which a loaded model's first MLP was widened."""
    mlp = model.layers[0].mlp
    if not isinstance(mlp, MLP) or not isinstance(mlp.down_proj, nn.QuantizedLinear):
        return 0
    down = mlp.down_proj
    width: int = down.scales.shape[1] * down.group_size
    ranks = 1 if model.share is None else model.share.size
    return width - model.config.text.intermediate_size // ranks


def pad_mlp(mlp: MLP) -> None:
    """Widen an MLP, its projections not merged yet, where its last projection is misaligned."""
    down = mlp.down_proj
    if not isinstance(down, nn.QuantizedLinear):
        return
    width = down.scales.shape[1] * down.group_size
    extra = extra_columns(width, Format(down.bits, down.group_size, down.mode))
    if extra == 0:
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
