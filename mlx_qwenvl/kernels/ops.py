"""Which of the two runs: the Metal kernels, or their twins. It is chosen once, at load."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.kernels.add_rms_norm import add_rms_norm, add_rms_norm_cpu, add_rms_norm_twin
from mlx_qwenvl.kernels.rotate_qkv import Rotation, rotate_qkv, rotate_qkv_twin
from mlx_qwenvl.kernels.rotate_vision import rotate_vision, rotate_vision_twin
from mlx_qwenvl.kernels.sample import Filters, sample, sample_twin

VARIABLE = "MLX_QWENVL_KERNELS"

Pair = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Ops:
    """The fused steps of the model and the sampler, each described in the file of its name.

    Attributes:
        name: For people: "Metal kernels" or "plain MLX".
        rotate_vision: (qkv, cos, sin) to queries and keys.
        rotate_qkv: (qkv, bias, rotation, heads, kv_heads) to queries, and keys with values.
        add_rms_norm: (x, delta, weight, eps) to sum and norm.
        sample: (p, chance, filters) to one token a row.
        of_first: An array to rank 0's, where several processes hold the model; else None.
    """

    name: str
    rotate_vision: Callable[[mx.array, mx.array, mx.array], Pair]
    rotate_qkv: Callable[[mx.array, mx.array | None, Rotation, int, int], Pair]
    add_rms_norm: Callable[[mx.array, mx.array, mx.array, float], Pair]
    sample: Callable[[mx.array, mx.array, Filters], mx.array]
    of_first: Callable[[mx.array], mx.array] | None = None


TWINS = Ops(
    name="plain MLX",
    rotate_vision=rotate_vision_twin,
    rotate_qkv=rotate_qkv_twin,
    add_rms_norm=add_rms_norm_twin,
    sample=sample_twin,
)
CPU = replace(TWINS, add_rms_norm=add_rms_norm_cpu)
METAL = Ops(
    name="Metal kernels",
    rotate_vision=rotate_vision,
    rotate_qkv=rotate_qkv,
    add_rms_norm=add_rms_norm,
    sample=sample,
)


def choose_ops() -> Ops:
    """The kernels where Metal computes and `$MLX_QWENVL_KERNELS` is not "off", else the twins.

    Raises:
        OptionError: The variable is neither "on" nor "off".
    """
    asked = os.environ.get(VARIABLE, "on")
    if asked not in ("on", "off"):
        raise OptionError(f"{VARIABLE} is {asked!r}; expected on or off")
    # Asked first: a Mac can be told to compute on its CPU.
    if mx.default_device() == mx.cpu:
        return CPU
    return METAL if asked == "on" and mx.metal.is_available() else TWINS
