"""One check a kernel: inputs from a seed, through a launcher or a twin, against float64.

The tests run them on the kernels as they are, and on kernels with one mistake each, which the very
same checks must catch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwenvl.kernels.rotate_qkv import Rotation
from mlx_qwenvl.models.rope import inverse_frequencies, vision_angles
from tests.kernels import references
from tests.kernels.references import assert_near, exact, normal

SEED = 20

Pair = tuple[mx.array, mx.array]
VisionOp = Callable[[mx.array, mx.array, mx.array], Pair]
QkvOp = Callable[[mx.array, "mx.array | None", Rotation, int, int], Pair]
NormOp = Callable[[mx.array, mx.array, mx.array, float], Pair]


@dataclass(frozen=True)
class Vision:
    """Pictures for `rotate_vision`."""

    batch: int
    rows: int  # of patches
    columns: int
    heads: int
    width: int

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """qkv [B, N, 3, H, D] and angles [N, D / 2]."""
        rng = np.random.default_rng(SEED)
        patches = self.rows * self.columns
        if self.width % 4:  # no two axes share such a width evenly; any angles will do
            angles = rng.uniform(-9, 9, (patches, self.width // 2)).astype(np.float32)
        else:
            angles = vision_angles((1, self.rows, self.columns), self.width, 1)
        qkv = normal(rng, dtype, self.batch, patches, 3, self.heads, self.width)
        return qkv, mx.array(angles)

    def check(self, op: VisionOp, dtype: mx.Dtype) -> None:
        qkv, angles = self.inputs(dtype)
        got = op(qkv, mx.cos(angles), mx.sin(angles))
        want = references.rotate_vision(exact(qkv), exact(angles))
        for one, other in zip(got, want, strict=True):
            assert_near(one, other, dtype, roundings=4)


@dataclass(frozen=True)
class Qkv:
    """Tokens for `rotate_qkv`."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    section: tuple[int, int, int]
    alike: bool = False  # one row of positions for all sequences
    biased: bool = True
    farthest: int = 30_000  # position
    interleaved: bool = False

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array | None, Rotation]:
        rng = np.random.default_rng(SEED)
        width = 2 * sum(self.section)
        merged = (self.heads + 2 * self.kv_heads) * width
        rows = 1 if self.alike else self.batch
        positions = rng.integers(0, self.farthest, (3, rows, self.length), dtype=np.int32)
        inverse = inverse_frequencies(width, 1e6)
        qkv = normal(rng, dtype, self.batch, self.length, merged)
        bias = normal(rng, dtype, merged) if self.biased else None
        given = mx.array(positions), mx.array(inverse)
        return qkv, bias, Rotation(*given, self.section, self.interleaved)

    def check(self, op: QkvOp, dtype: mx.Dtype) -> None:
        qkv, bias, rotation = self.inputs(dtype)
        got = op(qkv, bias, rotation, self.heads, self.kv_heads)
        rows = np.array(rotation.positions)
        want = references.rotate_qkv(
            exact(qkv),
            None if bias is None else exact(bias),
            np.broadcast_to(rows, (3, self.batch, self.length)),
            np.array(rotation.inverse),
            self.section,
            self.interleaved,
            self.heads,
            self.kv_heads,
        )
        for one, other in zip(got, want, strict=True):
            assert_near(one, other, dtype, roundings=4)


@dataclass(frozen=True)
class Norm:
    """Rows for `add_rms_norm`."""

    rows: tuple[int, ...]
    width: int
    eps: float = 1e-6
    scale: float = 1.0  # of the rows; small ones make eps count

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
        rng = np.random.default_rng(SEED)
        x, delta = (
            (normal(rng, mx.float32, *self.rows, self.width) * self.scale).astype(dtype)
            for _ in range(2)
        )
        return x, delta, normal(rng, dtype, self.width)

    def check(self, op: NormOp, dtype: mx.Dtype) -> None:
        x, delta, weight = self.inputs(dtype)
        got = op(x, delta, weight, self.eps)
        want = references.add_rms_norm(exact(x), exact(delta), exact(weight), self.eps)
        # The rounding of the sum is in the norm too. In float32 it is the sum of squares that
        # counts: MLX's CPU backend adds them one after another.
        roundings = 128 if dtype == mx.float32 else 8
        for one, other in zip(got, want, strict=True):
            assert_near(one, other, dtype, roundings)


Case = Vision | Qkv | Norm

VISION = (
    Vision(batch=1, rows=4, columns=6, heads=16, width=80),  # the tower of 2B, 7B and 72B
    Vision(batch=2, rows=6, columns=2, heads=16, width=80),
    Vision(batch=3, rows=1, columns=7, heads=3, width=20),  # uneven groups at the edges
    Vision(batch=1, rows=37, columns=1, heads=2, width=32),
    Vision(batch=1, rows=1, columns=3, heads=1, width=66),  # no whole SIMD-group fits the width
    Vision(batch=1, rows=1, columns=1, heads=1, width=2),  # all inputs below 8 elements
    Vision(batch=1, rows=1, columns=3, heads=1, width=4),  # cosines below, qkv above
)


QKV = (
    Qkv(1, 1, 12, 2, (16, 24, 24)),  # 2B: decode, several sequences, prefill
    Qkv(3, 1, 12, 2, (16, 24, 24)),
    Qkv(1, 7, 12, 2, (16, 24, 24)),
    Qkv(1, 33, 12, 2, (16, 24, 24)),
    Qkv(1, 1, 28, 4, (16, 24, 24)),  # 7B
    Qkv(2, 4, 28, 4, (16, 24, 24)),
    Qkv(2, 9, 28, 4, (16, 24, 24), alike=True),
    Qkv(1, 1, 64, 8, (16, 24, 24)),  # 72B
    Qkv(1, 8, 64, 8, (16, 24, 24)),
    Qkv(1, 9, 64, 8, (16, 24, 24), biased=False),
    Qkv(1, 1, 32, 8, (24, 20, 20), biased=False, interleaved=True),  # Qwen3-VL
    Qkv(2, 9, 16, 8, (24, 20, 20), biased=False, interleaved=True),
    Qkv(1, 3, 2, 1, (4, 3, 2), interleaved=True),  # height lasts longer than width
    Qkv(2, 11, 3, 1, (3, 2, 5), biased=False),  # uneven in everything
    Qkv(3, 5, 5, 4, (0, 7, 4)),
    Qkv(1, 13, 7, 3, (20, 0, 13)),
    Qkv(1, 1, 1, 1, (1, 0, 0)),  # all inputs below 8 elements
    Qkv(1, 2, 1, 1, (0, 0, 1)),  # positions and bias below, qkv above
    Qkv(1, 3, 1, 1, (0, 1, 0)),  # bias below, positions above
)

NORM = (
    Norm((1, 1), 1536),  # 2B, 7B, 72B: decode and more
    Norm((1, 9), 1536),
    Norm((1, 1), 3584),
    Norm((3, 1), 3584),
    Norm((1, 1), 8192),
    Norm((1, 3), 8192),
    Norm((2, 3), 128),
    Norm((5,), 33),  # no multiple of 4: one value a thread
    Norm((3,), 2050),
    Norm((2,), 1540),  # a multiple of 4 that fills no SIMD-group
    Norm((1,), 7),  # all inputs below 8 elements
    Norm((2,), 5),  # the weight below, rows above
    Norm((1,), 1),
    Norm((4,), 96, eps=1e-3, scale=0.02),  # eps outweighs the squares
)
