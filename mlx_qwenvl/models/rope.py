"""Where tokens stand: M-RoPE positions of a prompt, and the angles made from positions.

A text token stands at one number; an image token at three (time, height, width). After an image
the count goes on behind the largest of its positions, so a prompt of L tokens usually ends at a
position below L. The difference, `rope_delta`, is what later tokens add to their place in the
cache. (Qwen2-VL, arXiv:2409.12191, section 2.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwenvl.kernels.rotate_qkv import Rotation

VISION_ROPE_THETA = 10000.0  # base of the vision tower's rotary frequencies, the same in all sizes

Grid = tuple[int, int, int]
"""`grid_thw` of one picture: frames / 2, height and width, the latter two in patches."""


@dataclass(frozen=True)
class Slot:
    """Where a picture or a video stands in a prompt.

    Attributes:
        start: Index of its first token.
        grid: Its `grid_thw`.
        seconds_per_grid: Seconds that one temporal patch of a video stands for; None for a still.
    """

    start: int
    grid: Grid
    seconds_per_grid: float | None = None


def prompt_positions(
    length: int,
    slots: Sequence[tuple[int, Grid]],
    merge_size: int,
    time_steps: Sequence[float] | None = None,
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt.

    Args:
        length: Tokens in the prompt, L.
        slots: For each picture in order, the index of its first slot and its `grid_thw`.
        merge_size: Side in patches of the square that one token stands for.
        time_steps: For each of them, positions between two of its temporal patches, which need
            not be whole; by default 1.

    Returns:
        Positions [3, L] int32 (time, height, width) and `rope_delta`, at most 0 for stills.
    """
    positions = np.empty((3, length), dtype=np.int32)
    index, position = 0, 0
    steps = [1.0] * len(slots) if time_steps is None else time_steps
    for (start, (frames, height, width)), step in zip(slots, steps, strict=True):
        text = start - index
        positions[:, index:start] = np.arange(position, position + text, dtype=np.int32)
        position += text
        grid = np.indices((frames, height // merge_size, width // merge_size), dtype=np.int32)
        if step != 1:
            # Cut off in float32, as Transformers does: half a position may decide.
            grid[0] = (grid[0].astype(np.float32) * np.float32(step)).astype(np.int32)
        tokens = grid[0].size
        index = start + tokens
        positions[:, start:index] = grid.reshape(3, tokens) + position
        position += int(grid.max()) + 1
    positions[:, index:] = np.arange(position, position + length - index, dtype=np.int32)
    return positions, position - index


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Rotary frequencies [head_dim / 2] float32 in radians per position."""
    return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(
        np.float32
    )


class MRope:
    """Makes the rotation of tokens that have three positions each.

    Args:
        head_dim: Width of a head, D.
        theta: Base of the frequencies.
        section: Frequencies given to time, height and width; they sum to D / 2.
        interleaved: Whether these take turns.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        section: tuple[int, int, int],
        interleaved: bool = False,
    ) -> None:
        self._inverse = mx.array(inverse_frequencies(head_dim, theta))
        self._section = section
        self._interleaved = interleaved

    def __call__(self, positions: np.ndarray) -> Rotation:
        """Rotation of tokens at positions (time, height, width): [3, L], or [3, B, L] by row."""
        rows = positions[:, None] if positions.ndim == 2 else positions
        return Rotation(
            mx.array(rows.astype(np.int32)), self._inverse, self._section, self._interleaved
        )


def vision_angles(grid: Grid, head_dim: int, merge_size: int) -> np.ndarray:
    """Angles of the vision tower's 2-D rotation for the patches of one frame.

    The first half of the frequencies turns with the patch's row, the second with its column.
    Patches come in merge order: square by square, and row by row inside a square.

    Args:
        grid: `grid_thw`; every frame has the same angles.
        head_dim: Width of a vision head, D.
        merge_size: Side of a square in patches.

    Returns:
        [height * width, D / 2] float32.
    """
    _, height, width = grid
    squares = np.indices((height, width), dtype=np.float32).reshape(
        2, height // merge_size, merge_size, width // merge_size, merge_size
    )
    rows_columns = squares.transpose(1, 3, 2, 4, 0).reshape(height * width, 2)
    inverse = inverse_frequencies(head_dim // 2, VISION_ROPE_THETA)
    return (rows_columns[:, :, None] * inverse).reshape(height * width, head_dim // 2)
