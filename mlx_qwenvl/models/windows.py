"""Windows of a picture: its tokens reordered so that each window's lie together.

Qwen2.5-VL's tower lets a patch see its window alone in most blocks. Windows are squares of tokens
counted from the upper left; those at the right and lower edges may be smaller, so that a picture
has windows of at most four shapes. They are sorted by shape: windows of one shape are a batch, and
attention needs neither a mask nor padding.

Axes: B pictures or frames, H heads, N patches, D a head's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_qwenvl.models.attention import SCORE_BYTES, SCORE_SIZE, attend

KEPT_GRIDS = 16  # whose order is remembered; a picture of 12 megapixels takes 0.5 MB


@dataclass(frozen=True)
class Run:
    """Windows of one shape that lie behind one another.

    Attributes:
        begin: Place of its first patch, in the new order.
        count: Windows.
        size: Patches of a window.
    """

    begin: int
    count: int
    size: int

    @property
    def end(self) -> int:
        """The place behind its last patch."""
        return self.begin + self.count * self.size


@dataclass(frozen=True, eq=False)
class Windows:
    """How the patches of one frame are reordered.

    Attributes:
        order: [N] int32: which patch comes at each place; patches of a token stay together.
        back: [N / merge^2] int32: at which place each token is.
        runs: The windows, in the new order.
    """

    order: np.ndarray
    back: np.ndarray
    runs: tuple[Run, ...]


@lru_cache(maxsize=KEPT_GRIDS)
def windows_of(height: int, width: int, merge_size: int, side: int) -> Windows:
    """The windows of a frame.

    Args:
        height: Of the frame, in patches.
        width: The same.
        merge_size: Side of a token in patches.
        side: Side of a window in tokens.
    """
    rows, columns = height // merge_size, width // merge_size
    per_token = merge_size**2
    places = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    tokens: list[np.ndarray] = []
    runs: list[Run] = []
    begin = 0
    for tall in _parts(rows, side):
        for wide in _parts(columns, side):
            part = places[tall.start : tall.stop, wide.start : wide.stop]
            down, across = len(tall), len(wide)
            cut = part.reshape(down, tall.step, across, wide.step).swapaxes(1, 2)
            tokens.append(cut.reshape(-1))
            runs.append(Run(begin, down * across, tall.step * wide.step * per_token))
            begin = runs[-1].end
    by_token = np.concatenate(tokens)
    order = by_token[:, None] * per_token + np.arange(per_token, dtype=np.int32)
    return Windows(order.reshape(-1), np.argsort(by_token).astype(np.int32), tuple(runs))


def attend_windows(
    q: mx.array, k: mx.array, v: mx.array, scale: float, runs: tuple[Run, ...], begin: int = 0
) -> mx.array:
    """Attention of some patches, each to the patches of its own window.

    Args:
        q: Queries [B, H, n, D] of the patches from place `begin` on, in windows' order.
        k: Keys [B, H, N, D] of all patches.
        v: Values of all patches.
        scale: Factor of the scores.
        runs: The windows of all patches.
        begin: Place of the first query.

    Returns:
        [B, H, n, D].
    """
    batch, heads, length, _ = q.shape
    done: list[mx.array] = []
    for run in runs:
        windows = max(1, SCORE_BYTES // (batch * heads * run.size**2 * SCORE_SIZE))
        for rows, keys in _pieces(run, begin, begin + length, windows):
            part = q[:, :, rows.start - begin : rows.stop - begin]
            if done:  # behind the piece before: all scores at once are what is to be avoided
                part = mx.depends([part], [done[-1]])[0]
            count = (keys.stop - keys.start) // run.size
            done.append(_attend_apart(part, k[:, :, keys], v[:, :, keys], scale, count))
    return done[0] if len(done) == 1 else mx.concatenate(done, axis=2)


def _pieces(run: Run, begin: int, end: int, windows: int) -> Iterator[tuple[slice, slice]]:
    """Queries from `begin` to `end` that lie in a run, and the keys they see, piece by piece.

    Whole windows come together, as many as `windows`; one that is cut comes alone.
    """
    at, last = max(begin, run.begin), min(end, run.end)
    while at < last:
        first, inside = divmod(at - run.begin, run.size)
        whole = 0 if inside else min(windows, (last - at) // run.size)
        keys = run.begin + first * run.size
        upto = min(last, keys + max(1, whole) * run.size)
        yield slice(at, upto), slice(keys, keys + max(1, whole) * run.size)
        at = upto


def _attend_apart(q: mx.array, k: mx.array, v: mx.array, scale: float, count: int) -> mx.array:
    """Attention within `count` windows of one size, all of each kind behind one another."""
    if count == 1:
        return attend(q, k, v, scale)
    batch, heads, _, width = q.shape
    apart = [x.reshape(batch, heads * count, -1, width) for x in (q, k, v)]
    return attend(apart[0], apart[1], apart[2], scale).reshape(q.shape)


def _parts(length: int, side: int) -> list[range]:
    """Tokens along one axis, and the side of their windows as step: full ones, then the rest."""
    full = length - length % side
    parts = [range(0, full, side)] if full else []
    return parts + ([range(full, length, length - full)] if full < length else [])
