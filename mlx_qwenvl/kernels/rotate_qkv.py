"""Bias, split and M-RoPE of the decoder's merged projection in one launch.

Axes: B sequences, L tokens, Q query heads, G key-value heads, D a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_qwenvl.kernels.fused import fused_on_gpu
from mlx_qwenvl.kernels.metal import FLOATS, MOST_THREADS, MetalKernel, share, threads_for

FEW_TOKENS = 8  # up to which each head has a thread of its own, and entries of the twin's tables


@dataclass(frozen=True)
class Rotation:
    """Where the tokens of one step stand; made once for all layers.

    Attributes:
        positions: [3, B, L] int32 (time, height, width); [3, 1, L] where all rows stand alike.
        inverse: Rotary frequencies [D / 2] float32 in radians per position.
        section: Frequencies given to time, height and width; they sum to D / 2.
        interleaved: Whether these take turns (see `axes_of`) instead of following one another.
    """

    positions: mx.array
    inverse: mx.array
    section: tuple[int, int, int]
    interleaved: bool = False

    _whole: dict[int, tuple[mx.array, mx.array]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def tables(self) -> tuple[mx.array, mx.array]:
        """Cosines [B, L, 1, 1, D / 2] and sines [B, L, 1, 2, D / 2], the first of a pair negative.

        float32; B is 1 where all rows stand alike.
        """
        cos, sin = self._host_tables
        return mx.array(cos), mx.array(sin)

    def whole_tables(self, heads: int, kv_heads: int) -> tuple[mx.array, mx.array]:
        """Both tables [B, L, Q + 2 G, 2, D / 2], with which heads of values stay as they are."""
        every = heads + 2 * kv_heads
        if every not in self._whole:
            cos, sin = self._host_tables
            whole = np.empty((2, *sin.shape[:2], every, *sin.shape[3:]), dtype=np.float32)
            whole[0], whole[1] = cos, sin
            whole[0, :, :, heads + kv_heads :] = 1
            whole[1, :, :, heads + kv_heads :] = 0
            self._whole[every] = mx.array(whole[0]), mx.array(whole[1])
        return self._whole[every]

    @cached_property
    def _host_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """What `tables` gives: on the host a step costs less than as many small ops elsewhere."""
        axes = axes_of(self.section, self.interleaved)
        chosen = np.array(self.positions)[axes].transpose(1, 2, 0)  # [B, L, D / 2]
        angles = chosen.astype(np.float32) * np.array(self.inverse)
        sin = np.sin(angles)
        cos, signed = np.cos(angles)[:, :, None], np.stack([-sin, sin], axis=2)
        return cos[:, :, None], signed[:, :, None]


def axes_of(section: tuple[int, int, int], interleaved: bool) -> np.ndarray:
    """The axis (0 time, 1 height, 2 width) of each of D / 2 frequencies.

    Interleaved, every second of three turns by height and every third by width, as long as their
    sections last; what is left turns by time.
    """
    if not interleaved:
        return np.repeat(np.arange(3), section)
    axes = np.zeros(sum(section), dtype=np.int64)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


@fused_on_gpu
def _turn(pairs: mx.array, cos: mx.array, sin: mx.array, swapped: mx.array) -> mx.array:
    """Rotate heads [B, L, H, 2, D / 2], given with the two of each pair swapped, in float32."""
    wide = pairs.astype(mx.float32), swapped.astype(mx.float32)
    return (wide[0] * cos + wide[1] * sin).astype(pairs.dtype)


def rotate_qkv_twin(
    qkv: mx.array, bias: mx.array | None, rotation: Rotation, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array]:
    """Rotated queries, and rotated keys with values, of a merged projection.

    Args:
        qkv: [B L, (Q + 2 G) D]: queries, keys, values.
        bias: [(Q + 2 G) D], or None where it is in `qkv` already.
        rotation: The tokens' positions.
        heads: Q.
        kv_heads: G.

    Returns:
        Queries [B, Q, L, D], and keys and values [2, B, G, L, D].
    """
    length, every = rotation.positions.shape[2], heads + 2 * kv_heads
    if bias is not None:
        qkv = qkv + bias
    split = qkv.reshape(-1, length, every, 2, qkv.shape[-1] // (2 * every))
    if length <= FEW_TOKENS:
        cos, sin = rotation.whole_tables(heads, kv_heads)
        turned = _turn(split, cos, sin, split[:, :, :, ::-1])
    else:
        cos, sin = rotation.tables
        turning, values = mx.split(split, [heads + kv_heads], axis=2)
        turned = _turn(turning, cos, sin, turning[:, :, :, ::-1])
        turned = mx.concatenate([turned, values], axis=2)
    q, kv = mx.split(turned.flatten(3), [heads], axis=2)
    kv = mx.unflatten(kv, 2, (2, kv_heads)).transpose(2, 0, 3, 1, 4)
    return q.transpose(0, 2, 1, 3), kv


KERNEL = MetalKernel(
    name="rotate_qkv",
    inputs=("qkv", "bias", "positions", "inverse"),
    outputs=("q", "kv"),
    source="""
    // A thread takes the pair (i, i + D / 2) of SHARE heads of one token, so that one sine and
    // cosine serves them all. Along x lie the pairs: reads and writes are whole half heads.
    constexpr uint HALF = D / 2;
    constexpr uint HEADS = Q + 2 * G;
    constexpr uint GROUPS = HEADS / SHARE;
    uint pair = thread_position_in_grid.x;
    uint token = thread_position_in_grid.y;
    uint tokens = threads_per_grid.y;
    uint row = thread_position_in_grid.z / GROUPS;
    uint rows = threads_per_grid.z / GROUPS;
    uint first = thread_position_in_grid.z % GROUPS * SHARE;

    float c = 1.0f;
    float s = 0.0f;
    if (first < Q + G) {  // groups of values alone need no angle; a SIMD-group agrees on that
        uint turn = pair % 3;
        uint axis = INTERLEAVED ? (pair < 3 * (turn == 1 ? HEIGHT : WIDTH) ? turn : 0)
                                : (pair < TIME ? 0 : pair < TIME + HEIGHT ? 1 : 2);
        uint stand = ALIKE ? axis : axis * rows + row;
        float angle = static_cast<float>(positions[stand * tokens + token]) * inverse[pair];
        c = metal::precise::cos(angle);
        s = metal::precise::sin(angle);
    }
    for (uint r = 0; r < SHARE; ++r) {
        uint head = first + r;  // queries' heads, then keys', then values'
        size_t from = ((size_t(row) * tokens + token) * HEADS + head) * D + pair;
        T low = qkv[from];
        T high = qkv[from + HALF];
        if (BIASED) {  // the sum is rounded before it is turned, as an add of MLX's is
            low = static_cast<T>(
                static_cast<float>(low) + static_cast<float>(bias[head * D + pair]));
            high = static_cast<T>(
                static_cast<float>(high) + static_cast<float>(bias[head * D + pair + HALF]));
        }
        if (head < Q + G) {
            float a = static_cast<float>(low);
            float b = static_cast<float>(high);
            low = static_cast<T>(a * c - b * s);
            high = static_cast<T>(b * c + a * s);
        }
        if (head < Q) {
            size_t to = ((size_t(row) * Q + head) * tokens + token) * D + pair;
            q[to] = low;
            q[to + HALF] = high;
        } else {
            uint kind = (head - Q) / G;  // 0 keys, 1 values
            size_t place = (size_t(kind) * rows + row) * G + (head - Q) % G;
            size_t to = (place * tokens + token) * D + pair;
            kv[to] = low;
            kv[to + HALF] = high;
        }
    }
""",
)


def rotate_qkv(
    qkv: mx.array, bias: mx.array | None, rotation: Rotation, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array]:
    """The same in one launch, row-contiguous, from qkv as the projection's matmul wrote it.

    The angle is a float32 product of position and frequency, as in the twin's tables.
    """
    length, every = rotation.positions.shape[2], heads + 2 * kv_heads
    width = qkv.shape[-1] // every
    half = width // 2
    if (
        qkv.dtype not in FLOATS
        or (bias is not None and bias.dtype != qkv.dtype)
        or width % 2 != 0
        or half > MOST_THREADS
        or qkv.size == 0
    ):
        return rotate_qkv_twin(qkv, bias, rotation, heads, kv_heads)
    batch = qkv.size // (length * every * width)
    shared = 1 if batch * length <= FEW_TOKENS else share(every)
    time, height, along = rotation.section
    q, kv = KERNEL(
        [qkv, qkv if bias is None else bias, rotation.positions, rotation.inverse],
        template=[
            ("T", qkv.dtype),
            ("Q", heads),
            ("G", kv_heads),
            ("D", width),
            ("TIME", time),
            ("HEIGHT", height),
            ("WIDTH", along),
            ("INTERLEAVED", rotation.interleaved),
            ("SHARE", shared),
            ("ALIKE", rotation.positions.shape[1] == 1),
            ("BIASED", bias is not None),
        ],
        grid=(half, length, batch * every // shared),
        threadgroup=threads_for(half, length),
        shapes=[(batch, heads, length, width), (2, batch, kv_heads, length, width)],
        dtype=qkv.dtype,
    )
    return q, kv
