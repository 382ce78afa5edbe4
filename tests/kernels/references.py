"""What the kernels compute, in float64 and in NumPy alone, and how far from it they may be."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Exact = NDArray[np.float64]

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
"""Largest relative error of rounding to nearest."""


def exact(array: mx.array) -> Exact:
    """An array's values."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


def normal(rng: np.random.Generator, dtype: mx.Dtype, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def assert_near(got: mx.array, want: Exact, dtype: mx.Dtype, roundings: float) -> None:
    """Each value is off by no more than so many roundings of the largest value."""
    assert got.dtype == dtype
    assert tuple(got.shape) == want.shape
    error = float(np.abs(exact(got) - want).max())
    assert error <= roundings * ROUNDING[dtype] * float(np.abs(want).max())


def rotate_vision(qkv: Exact, angles: Exact) -> list[Exact]:
    """Queries and keys [B, H, N, D] of qkv [B, N, 3, H, D], turned by angles [N, D / 2]."""
    turn = np.exp(1j * angles)[None, :, None]
    return [_turned(qkv[:, :, which], turn).transpose(0, 2, 1, 3) for which in (0, 1)]


def rotate_qkv(
    qkv: Exact,
    bias: Exact | None,
    positions: NDArray[np.int32],
    inverse: NDArray[np.float32],
    section: tuple[int, int, int],
    interleaved: bool,
    heads: int,
    kv_heads: int,
) -> list[Exact]:
    """Queries [B, Q, L, D], and keys and values [2, B, G, L, D].

    An angle is a float32 product, as Transformers makes it; all else is exact.
    """
    batch, length, _ = qkv.shape
    angles = np.empty((batch, length, inverse.size))
    begin = 0
    for axis, width in enumerate(section):
        part = slice(begin, begin + width)
        if interleaved:  # time everywhere, then height and width over each third of it
            part = slice(axis, 3 * width, 3) if axis else slice(0, inverse.size)
        angles[:, :, part] = positions[axis][:, :, None].astype(np.float32) * inverse[part]
        begin += width
    turn = np.exp(1j * angles)[:, :, None]
    split = (qkv if bias is None else qkv + bias).reshape(batch, length, heads + 2 * kv_heads, -1)
    q, k, v = np.split(split, [heads, heads + kv_heads], axis=2)
    kv = np.stack([_turned(k, turn), v])
    return [_turned(q, turn).transpose(0, 2, 1, 3), kv.transpose(0, 1, 3, 2, 4)]


def add_rms_norm(x: Exact, delta: Exact, weight: Exact, eps: float) -> list[Exact]:
    """The sum, and its norm."""
    total = x + delta
    return [total, total / np.sqrt((total**2).mean(axis=-1, keepdims=True) + eps) * weight]


def _turned(heads: Exact, turn: NDArray[np.complex128]) -> Exact:
    """Pairs (i, i + D / 2) as complex numbers, multiplied by `turn`."""
    first, second = np.split(heads, 2, axis=-1)
    product: Any = (first + 1j * second) * turn
    return np.concatenate([product.real, product.imag], axis=-1)
