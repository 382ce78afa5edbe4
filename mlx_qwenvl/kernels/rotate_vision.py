"""The vision tower's 2-D rotation of queries and keys, straight from the fused projection.

Axes: B pictures, N patches, H heads, D a head's width.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_qwenvl.kernels.metal import FLOATS, MOST_THREADS, MetalKernel, share, threads_for


def rotate_vision_twin(qkv: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    """Queries and keys [B, H, N, D] of qkv [B, N, 3, H, D], the pairs (i, i + D/2) turned.

    Args:
        qkv: The projection.
        cos: [N, D / 2] float32.
        sin: [N, D / 2] float32.
    """
    pairs = qkv[:, :, :2].astype(mx.float32)
    pairs = pairs.reshape(*pairs.shape[:-1], 2, -1)  # [B, N, 2, H, 2, D / 2]
    signed = mx.stack([-sin, sin], axis=1)[:, None, None]
    turned = pairs * cos[:, None, None, None] + pairs[..., ::-1, :] * signed
    q, k = turned.reshape(*qkv.shape[:2], 2, *qkv.shape[3:]).transpose(2, 0, 3, 1, 4)
    return q.astype(qkv.dtype), k.astype(qkv.dtype)


KERNEL = MetalKernel(
    name="rotate_vision",
    inputs=("qkv", "cosines", "sines"),
    outputs=("q", "k"),
    source="""
    // A thread turns the pair (i, i + D / 2) of SHARE heads of one patch, so that an angle is
    // loaded once for all of them. Along x lie the pairs: reads and writes are whole half heads.
    constexpr uint HALF = D / 2;
    constexpr uint GROUPS = 2 * H / SHARE;
    uint pair = thread_position_in_grid.x;
    uint patch = thread_position_in_grid.y;
    uint patches = threads_per_grid.y;
    uint picture = thread_position_in_grid.z / GROUPS;
    uint first = thread_position_in_grid.z % GROUPS * SHARE;

    float c = cosines[patch * HALF + pair];
    float s = sines[patch * HALF + pair];
    size_t token = (size_t(picture) * patches + patch) * (3 * H);
    for (uint r = 0; r < SHARE; ++r) {
        uint head = first + r;  // queries' heads, then keys'
        size_t from = (token + head) * D + pair;
        size_t to = ((size_t(picture) * H + head % H) * patches + patch) * D + pair;
        float a = static_cast<float>(qkv[from]);
        float b = static_cast<float>(qkv[from + HALF]);
        device T* out = head < H ? q : k;
        out[to] = static_cast<T>(a * c - b * s);
        out[to + HALF] = static_cast<T>(b * c + a * s);
    }
""",
)


def rotate_vision(qkv: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    """The same in one launch, row-contiguous, from qkv as the projection's matmul wrote it."""
    batch, patches, _, heads, width = qkv.shape
    half = width // 2
    if (
        qkv.dtype not in FLOATS
        or not cos.dtype == sin.dtype == mx.float32
        or not cos.shape == sin.shape == (patches, half)
        or width % 2 != 0
        or half > MOST_THREADS
        or qkv.size == 0
    ):
        return rotate_vision_twin(qkv, cos, sin)
    shared = share(2 * heads)
    shape = (batch, heads, patches, width)
    q, k = KERNEL(
        [qkv, cos, sin],
        template=[("T", qkv.dtype), ("H", heads), ("D", width), ("SHARE", shared)],
        grid=(half, patches, batch * 2 * heads // shared),
        threadgroup=threads_for(half, patches),
        shapes=[shape, shape],
        dtype=qkv.dtype,
    )
    return q, k
