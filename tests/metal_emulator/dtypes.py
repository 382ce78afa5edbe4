"""Dtypes by MLX's names, with a bfloat16 that NumPy lacks."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import MetalError

Array: TypeAlias = npt.NDArray[Any]
TemplateValue: TypeAlias = "bool | int | npt.DTypeLike"

# The bits of a bfloat16. A dtype of that name from elsewhere (ml_dtypes) is as good.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_METAL_NAMES = {
    "float32": "float",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "bool": "bool",
    "complex64": "complex64_t",
    **{name: f"{name}_t" for name in _INTEGERS},
}
METAL_TYPES = frozenset(_METAL_NAMES.values())


def dtype_name(dtype: npt.DTypeLike) -> str:
    """MLX's name of a dtype: "float32", "bfloat16"."""
    found = np.dtype(dtype)
    return "bfloat16" if found == BFLOAT16 else found.name


def metal_type(dtype: npt.DTypeLike) -> str:
    """The type in a kernel's text: "float", "bfloat16_t"."""
    name = dtype_name(dtype)
    if name not in _METAL_NAMES:
        raise MetalError("lint", f"Metal has no type for {name}")
    return _METAL_NAMES[name]


def template_argument(value: TemplateValue) -> tuple[str, str]:
    """A template argument as (what is declared, what is given): ("int", "128")."""
    if isinstance(value, bool):
        return "bool", str(int(value))
    if isinstance(value, int):
        return "int", str(value)
    return "typename", metal_type(value)


def to_bfloat16(values: npt.ArrayLike) -> Array:
    """Numbers -> BFLOAT16, rounded to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16).view(BFLOAT16)


def from_bfloat16(values: Array) -> npt.NDArray[np.float32]:
    """BFLOAT16 -> float32, exactly."""
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def filled(shape: tuple[int, ...], dtype: npt.DTypeLike, value: float) -> Array:
    """A new array of one value."""
    if np.dtype(dtype) == BFLOAT16:
        return to_bfloat16(np.full(shape, value, np.float32))
    return np.full(shape, value, dtype)
