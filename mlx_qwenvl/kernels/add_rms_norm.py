"""Residual add and RMSNorm in one pass over the row.

Axes: D the row's width; every other axis counts rows.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from mlx_qwenvl.kernels.metal import FLOATS, SIMD_WIDTH, MetalKernel

NEIGHBOURS = 4  # values that a thread reads side by side, where D is a multiple
MOST_ROW_THREADS = 512  # half of what a group may have, so that registers never limit the launch
WIDEST = 16384  # D up to which a thread keeps its part of the row in registers


def add_rms_norm_twin(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """The sum x + delta [..., D], and its RMSNorm under `weight` [D]."""
    total = x + delta
    return total, mx.fast.rms_norm(total, weight, eps)


def add_rms_norm_cpu(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """The same for MLX's CPU backend, where a token costs as much as its ops are many.

    There `mx.fast.rms_norm` is seven ops. For one row, x [1, D], the mean square and `eps` come out
    of one product of the row with itself.
    """
    total = x + delta
    if total.ndim != 2 or total.shape[0] != 1:
        return total, mx.fast.rms_norm(total, weight, eps)
    row = total.astype(mx.float32)
    square = mx.addmm(_one_by_one(eps), row, row.T, alpha=1 / row.shape[1])
    return total, (row * mx.rsqrt(square)).astype(total.dtype) * weight


KERNEL = MetalKernel(
    name="add_rms_norm",
    inputs=("x", "delta", "weight", "eps"),
    outputs=("total", "normed"),
    source="""
    // One threadgroup a row. A thread keeps its part of the sum in registers, so that the row is
    // read once; MLX's two launches write and read it once more.
    constexpr uint ROUND = THREADS * NEAR;
    constexpr uint ROUNDS = (D + ROUND - 1) / ROUND;
    threadgroup float partial[THREADS / 32];
    uint lane = thread_index_in_simdgroup;
    uint group = simdgroup_index_in_threadgroup;
    uint start = thread_position_in_threadgroup.x * NEAR;
    size_t row = size_t(threadgroup_position_in_grid.x) * D;

    float kept[ROUNDS * NEAR];
    float squares = 0.0f;
    for (uint r = 0; r < ROUNDS; ++r) {
        for (uint j = 0; j < NEAR; ++j) {
            // Element by element: the compiler joins neighbours to one load, and rows may begin
            // anywhere.
            uint at = r * ROUND + start + j;
            if (at < D) {
                T sum = static_cast<T>(
                    static_cast<float>(x[row + at]) + static_cast<float>(delta[row + at]));
                total[row + at] = sum;
                float value = static_cast<float>(sum);
                kept[r * NEAR + j] = value;
                squares += value * value;
            }
        }
    }

    squares = simd_sum(squares);
    if (THREADS > 32) {
        if (lane == 0) {
            partial[group] = squares;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Every SIMD-group adds up all of them, which spares a second barrier.
        squares = simd_sum(lane < THREADS / 32 ? partial[lane] : 0.0f);
    }
    float scale = metal::precise::rsqrt(squares / D + eps);

    for (uint r = 0; r < ROUNDS; ++r) {
        for (uint j = 0; j < NEAR; ++j) {
            uint at = r * ROUND + start + j;
            if (at < D) {
                // Rounded before the weight and after it, as mx.fast.rms_norm does.
                T unit = static_cast<T>(kept[r * NEAR + j] * scale);
                normed[row + at] =
                    static_cast<T>(static_cast<float>(weight[at]) * static_cast<float>(unit));
            }
        }
    }
""",
)


def add_rms_norm(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """The same in one launch: x + delta as MLX rounds it, and that sum's mx.fast.rms_norm."""
    width = x.shape[-1]
    if (
        not x.dtype == delta.dtype == weight.dtype
        or x.dtype not in FLOATS
        or x.shape != delta.shape
        or x.size == 0
        or width > WIDEST
    ):
        return add_rms_norm_twin(x, delta, weight, eps)
    near = NEIGHBOURS if width % NEIGHBOURS == 0 else 1
    threads = _row_threads(width, near)
    total, normed = KERNEL(
        [x, delta, weight, _scalar(eps)],
        template=[("T", x.dtype), ("D", width), ("NEAR", near), ("THREADS", threads)],
        grid=(x.size // width * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[x.shape, x.shape],
        dtype=x.dtype,
    )
    return total, normed


def _row_threads(width: int, near: int) -> int:
    """Threads for a row, in whole SIMD-groups, each with about the same work."""
    rounds = -(-width // (near * MOST_ROW_THREADS))
    return -(-width // (near * rounds * SIMD_WIDTH)) * SIMD_WIDTH


@cache
def _scalar(value: float) -> mx.array:
    return mx.array(value, dtype=mx.float32)  # made once: it is an input of every launch


@cache
def _one_by_one(value: float) -> mx.array:
    """[1, 1] float32, so that no step has to broadcast it."""
    return mx.array([[value]])
