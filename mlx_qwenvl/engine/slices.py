"""How much of a prompt is computed at once, so that others are heard in between.

The device does one thing after another: whoever waits for a token waits for the slice of a prompt
that was begun before it. A slice therefore aims at a time. What a token of the decoder and a block
of the vision tower take is not known beforehand; it is measured slice by slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

SHARED_S = 0.1  # that a slice aims at where running answers wait for it
ALONE_S = 1.0  # that a slice of the tower aims at where only a withdrawal does
FIRST_TOKENS = 32  # of the first slice, whose time nothing tells
LEAST_TOKENS = 8  # below which a slice costs as much as one token more
GROWTH = 2.0  # times the last slice, at most


@dataclass
class _Size:
    """What slices of one kind took: of tokens, or of blocks over patches."""

    last: float  # units of the last slice
    seconds: float = 0.0  # that a unit took

    def units(self, target: float) -> float:
        """Units that take `target` seconds, not far above what was tried."""
        most = GROWTH * self.last
        return most if self.seconds == 0 else min(most, target / self.seconds)

    def note(self, units: float, seconds: float) -> None:
        """Learn from a slice."""
        rate = seconds / units
        # What is slower than thought counts at once.
        self.seconds = max(rate, (rate + self.seconds) / 2)
        self.last = units


@dataclass
class Slices:
    """Sizes of slices.

    Attributes:
        shared: Whether running answers wait between slices.
        clock: Tells seconds.
    """

    shared: bool = False
    clock: Callable[[], float] = time.perf_counter
    _tokens: _Size = field(default_factory=lambda: _Size(FIRST_TOKENS / GROWTH), init=False)
    _blocks: _Size = field(default_factory=lambda: _Size(0), init=False)
    _free: float = field(default=0.0, init=False)  # when the device was done with all before

    def tokens(self, step: int) -> int:
        """Prompt tokens of the next slice.

        Args:
            step: Most of them, which it is where nobody waits.
        """
        if not self.shared:
            return step
        return min(step, max(LEAST_TOKENS, int(self._tokens.units(SHARED_S))))

    def blocks(self, patches: int, most: int) -> int:
        """Blocks of the tower, over so many patches, of the next slice; at least one."""
        target = SHARED_S if self.shared else ALONE_S
        return min(most, max(1, int(self._blocks.units(target) / patches)))

    def mark(self) -> None:
        """Note that the device is done with all that was begun before the next slice."""
        self._free = self.clock()

    def wait(self, under_way: Sequence[mx.array], began: float) -> float:
        """Wait for a slice; give the seconds that the device spent on it.

        Args:
            under_way: What the slice leaves.
            began: When it was handed to the device.
        """
        mx.eval(list(under_way))
        now = self.clock()
        seconds = now - max(began, self._free)
        self._free = now
        return max(seconds, 1e-9)

    def note_tokens(self, tokens: int, seconds: float) -> None:
        """Learn what a slice of tokens took."""
        self._tokens.note(tokens, seconds)

    def note_blocks(self, patches: int, blocks: int, seconds: float) -> None:
        """Learn what some blocks over so many patches took."""
        self._blocks.note(patches * blocks, seconds)
