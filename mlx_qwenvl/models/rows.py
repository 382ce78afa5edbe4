"""Work that treats every row alike, done by blocks of rows where there are many.

A photo at the published checkpoints' own limit has 62,208 patches; the arrays of one block of the
tower would take 8 GB at once in float32. Rows do not depend on each other, so the numbers stay the
same.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

BLOCK_ROWS = 4096  # enough rows to keep any device busy
WHOLE_ROWS = 8192  # rows up to which nothing is cut: joining the parts is a copy


def by_rows(
    function: Callable[[mx.array, slice], tuple[mx.array, ...]], x: mx.array, axis: int = 1
) -> tuple[mx.array, ...]:
    """Arrays that `function` makes of x [B, N, ...], block by block along N.

    Args:
        function: (rows of x [B, n, ...], which rows these are) to arrays with these rows.
        x: The rows.
        axis: Axis of its results that counts rows.
    """
    length = x.shape[1]
    if length <= WHOLE_ROWS:
        return function(x, slice(0, length))
    done: list[tuple[mx.array, ...]] = []
    for begin in range(0, length, BLOCK_ROWS):
        rows = slice(begin, min(begin + BLOCK_ROWS, length))
        part = x[:, rows]
        if done:  # behind the block before, or all of them may be under way at once
            part = mx.depends([part], [done[-1][0]])[0]
        done.append(function(part, rows))
    return tuple(mx.concatenate(list(parts), axis=axis) for parts in zip(*done, strict=True))
