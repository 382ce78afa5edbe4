"""How much of a prompt is computed at once, so that others are heard in between.

The device does one thing after another: whoever waits for a token waits for the slice of a prompt
that was begun before it. A slice therefore aims at a time. What a token of the decoder and a block
of the vision tower take is not known beforehand; it is measured slice by slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

SHARED_S = 0.1  # that a slice aims at where running answers wait for it
ALONE_S = 1.0  # that a slice of the tower aims at where only a withdrawal does
FIRST_TOKENS = 32  # of the first slice, whose time nothing tells
LEAST_TOKENS = 8  # below which a slice costs as much as one token more
LEAST_ROWS = 64  # patches of a part of a block, for which all keys are read
GROWTH = 2.0  # times the last slice, at most


class _Size:
    """What slices of one kind took.

    Args:
        first: Units of the first slice.
    """

    def __init__(self, first: float) -> None:
        self._last = first / GROWTH
        self.seconds = 0.0  # that a unit took

    def units(self, target: float) -> float:
        """Units that take `target` seconds, not far above what was tried."""
        most = GROWTH * self._last
        return most if self.seconds == 0 else min(most, target / self.seconds)

    def note(self, units: float, seconds: float) -> None:
        """Learn from a slice."""
        rate = seconds / units
        # What is slower than thought counts at once.
        self.seconds = max(rate, (rate + self.seconds) / 2)
        self._last = units


@dataclass(frozen=True)
class UnderWay:
    """A slice that the device has.

    Attributes:
        arrays: What it leaves.
        handing_s: Seconds that handing it over took.
        handed: When that was done.
    """

    arrays: Sequence[mx.array]
    handing_s: float
    handed: float


class Slices:
    """Sizes of slices.

    Args:
        clock: Tells seconds.

    Attributes:
        shared: Whether running answers wait between slices.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.shared = False
        self.clock = clock
        self._free = 0.0  # when the device was done with all before
        self._tokens = _Size(FIRST_TOKENS)
        self._blocks = _Size(0)  # in patches
        self._keys = _Size(LEAST_ROWS)  # in patches
        self._rows = _Size(0)  # in pairs of patches

    @property
    def _target(self) -> float:
        return SHARED_S if self.shared else ALONE_S

    def tokens(self, step: int) -> int:
        """Prompt tokens of the next slice.

        Args:
            step: Most of them, which it is where nobody waits.
        """
        if not self.shared:
            return step
        return min(step, max(LEAST_TOKENS, int(self._tokens.units(SHARED_S))))

    def blocks(self, patches: int, most: int) -> int:
        """Whole blocks of the tower, over so many patches, of the next slice.

        0 where one would take too long, or where others wait and nothing tells how long.
        """
        if self._blocks.seconds == 0:
            return 0 if self.shared else 1
        if self._blocks.seconds * patches > self._target:
            return 0
        return min(most, max(1, int(self._blocks.units(self._target) / patches)))

    def keys(self, batch: int) -> int:
        """Patches of each of so many pictures whose keys are made in the next slice."""
        return max(LEAST_ROWS, int(self._keys.units(self._target) / batch))

    def rows(self, batch: int, patches: int) -> int:
        """Patches of each of them that pass a block in the next slice, each seeing so many."""
        return max(LEAST_ROWS, int(self._rows.units(self._target) / (batch * patches)))

    def mark(self) -> None:
        """Note that the device is done with all that was begun before the next slice."""
        self._free = self.clock()

    def hand_over(self, arrays: Sequence[mx.array]) -> UnderWay:
        """Hand a slice to the device."""
        begin = self.clock()
        mx.async_eval(list(arrays))
        end = self.clock()
        return UnderWay(arrays, end - begin, end)

    def wait(self, slice_: UnderWay) -> float:
        """Wait for a slice; give the seconds that it took."""
        mx.eval(list(slice_.arrays))
        now = self.clock()
        # Where the host itself computes, most of a slice is done while it is handed over.
        seconds = slice_.handing_s + now - max(slice_.handed, self._free)
        self._free = now
        return max(seconds, 1e-9)

    def note_tokens(self, tokens: int, seconds: float) -> None:
        """Learn what a slice of tokens took."""
        self._tokens.note(tokens, seconds)

    def note_blocks(self, patches: int, blocks: int, seconds: float) -> None:
        """Learn what some blocks over so many patches took."""
        self._blocks.note(patches * blocks, seconds)

    def note_keys(self, patches: int, seconds: float) -> None:
        """Learn what the keys of so many patches took."""
        self._keys.note(patches, seconds)

    def note_rows(self, pairs: int, seconds: float) -> None:
        """Learn what it took that so many pairs of patches saw each other."""
        self._rows.note(pairs, seconds)
