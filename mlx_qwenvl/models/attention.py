"""Scaled dot-product attention, whatever the device offers for it.

Where MLX has a fused kernel, that is one call and no scores are held. Elsewhere all scores
[B, Q, L, T] would be: 247 GB for one layer of the vision tower over a photo of 12 megapixels.
There, unless all of them are few, queries go block by block, each behind the one before, so that
memory is bounded whatever the size; and under a causal mask a block leaves the keys alone that none
of its queries may see. One token is attended from with all heads of a group as rows.

Axes: B sequences, Q query heads, G key-value heads, L queries, T keys, D a head's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import mlx.core as mx

Packed: TypeAlias = tuple[mx.array, mx.array, mx.array]  # numbers, scales, biases

FUSED_WIDTHS = (64, 72, 80, 96, 128)  # of a head, for which MLX has a fused kernel on a GPU
SCORE_BYTES = 16 * 2**20  # scores of one block; some ten arrays of that size are under way at once
SCORE_SIZE = 4  # bytes of a score
LEAST_ROWS = 256  # rows of a block's matmuls, below which reading the keys costs more than they do
CAUSAL_ROWS = 128  # queries of a block under a causal mask, so that few unseen keys are computed


@dataclass(frozen=True)
class Blocks:
    """How attention without a fused kernel is cut.

    Attributes:
        groups: Key-value heads of one block.
        rows: Queries of one block.
        nbytes: Bytes of its scores.
    """

    groups: int
    rows: int
    nbytes: int


def is_fused(width: int, *, on_gpu: bool) -> bool:
    """Whether heads of that width are attended to without holding scores."""
    return on_gpu and width in FUSED_WIDTHS


def blocks_for(batch: int, groups: int, repeats: int, length: int, total: int) -> Blocks:
    """The blocks for `batch` sequences, G = `groups`, Q / G = `repeats`, L = `length`, T = `total`.

    A block holds all heads as long as that leaves enough rows, and one key-value head otherwise.
    """
    per_group = batch * repeats * total * SCORE_SIZE
    least = -(-LEAST_ROWS // repeats)
    together = groups if SCORE_BYTES // (per_group * groups) >= least else 1
    rows = min(length, max(least, SCORE_BYTES // (per_group * together)))
    return Blocks(together, rows, per_group * together * rows)


def attend(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """Attention of queries [B, Q, L, D] to keys and values [B, G, T, D], giving [B, Q, L, D].

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the scores.
        mask: "causal", booleans or addends that broadcast to [B, Q, L, T], or None.
    """
    batch, heads, length, width = q.shape
    groups, total = k.shape[1:3]
    on_gpu = mx.default_device() == mx.gpu
    if length == 1 and mask is None and not on_gpu:
        return _of_one_token(q, k, v, scale)
    few = length == 1 or batch * heads * length * total * SCORE_SIZE <= SCORE_BYTES
    if few and (length <= CAUSAL_ROWS or not isinstance(mask, str)):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if is_fused(width, on_gpu=on_gpu):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    blocks = blocks_for(batch, groups, heads // groups, length, total)
    rows = min(blocks.rows, CAUSAL_ROWS) if isinstance(mask, str) else blocks.rows
    if rows >= length and blocks.groups == groups:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return _by_blocks(q, k, v, scale, mask, blocks.groups, rows)


def attend_masked(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array) -> mx.array:
    """`attend` for one query a sequence, each with keys of its own.

    Args:
        q: Queries [B, Q, 1, D].
        k: Keys [B, G, T, D].
        v: Values; those that are not seen have to be finite.
        scale: Factor of the scores.
        mask: bool [B, 1, 1, T].
    """
    if mx.default_device() == mx.gpu:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return _of_one_token(q, k, v, scale, mask)


def attend_quantized(
    q: mx.array,
    keys: Packed,
    values: Packed,
    scale: float,
    mask: mx.array | str | None = None,
    *,
    bits: int,
    group_size: int,
) -> mx.array:
    """`attend` for a few queries, to keys and values that stay packed.

    All query heads of one key-value head are rows of one matmul, so that keys are read once.

    Args:
        q: Queries [B, Q, L, D].
        keys: Each of them [B, G, T, ...].
        values: The same.
        scale: Factor of the scores.
        mask: As for `attend`.
        bits: Of a number.
        group_size: Numbers that share a scale.
    """
    batch, heads, length, width = q.shape
    groups, total = keys[0].shape[1:3]
    multiply = partial(mx.quantized_matmul, group_size=group_size, bits=bits)
    rows = (q * scale).reshape(batch, groups, -1, width)
    scores = multiply(rows, keys[0], keys[1], keys[2], transpose=True)
    if mask is not None:
        if isinstance(mask, str):
            mask = mx.arange(total) <= mx.arange(total - length, total)[:, None]
        scores = scores.reshape(batch, heads, length, total)
        if mask.dtype == mx.bool_:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        else:
            scores = scores + mask.astype(scores.dtype)
        scores = scores.reshape(batch, groups, -1, total)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = multiply(weights, values[0], values[1], values[2], transpose=False)
    return out.reshape(batch, heads, length, width)


def _of_one_token(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """`attend` for L = 1 on the CPU.

    All query heads of one key-value head are rows of one matmul, so that keys and values are read
    once. MLX's own multiplies head by head, which takes 1.4 to 2.2 times as long.
    """
    rows = (q * scale).reshape(*k.shape[:2], -1, k.shape[3])
    scores = rows @ k.swapaxes(2, 3)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return (weights @ v).reshape(q.shape)


def _by_blocks(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | str | None,
    groups: int,
    rows: int,
) -> mx.array:
    """`attend` for `groups` key-value heads and `rows` queries at a time."""
    # Laid out by head once, which every block's matmuls would do again.
    k, v = mx.contiguous(k), mx.contiguous(v)
    repeats, ahead = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    last: mx.array | None = None
    by_head = []
    for first in range(0, k.shape[1], groups):
        group = slice(first, first + groups)
        heads = slice(first * repeats, (first + groups) * repeats)
        done = []
        for row in _slices(q.shape[2], rows):
            part, seen = q[:, heads, row], k.shape[2]
            if mask == "causal":
                seen = ahead + row.stop
            # Behind the block before: all of them at once are what is to be avoided.
            if last is not None:
                part = mx.depends([part], [last])[0]
            last = mx.fast.scaled_dot_product_attention(
                part,
                k[:, group, :seen],
                v[:, group, :seen],
                scale=scale,
                mask=_part_of(mask, heads, row),
            )
            done.append(last)
        by_head.append(mx.concatenate(done, axis=2))
    return by_head[0] if len(by_head) == 1 else mx.concatenate(by_head, axis=1)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def _part_of(mask: mx.array | str | None, heads: slice, rows: slice) -> mx.array | str | None:
    """The mask of some heads' queries; one that broadcasts along an axis has no parts there."""
    if mask is None or isinstance(mask, str):
        return mask
    if mask.ndim >= 2 and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    return mask[..., heads, :, :] if mask.ndim >= 3 and mask.shape[-3] > 1 else mask
