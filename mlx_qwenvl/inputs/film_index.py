"""When the frames of a video are shown, and which parts of the file they take to decode."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["FilmIndex", "Stretch", "unrounded"]


@dataclass(frozen=True)
class FilmIndex:
    """When the frames of a video are shown.

    Attributes:
        shown: Of each frame, in order, in ticks.
        tick: Seconds of a tick.
        length: Seconds that all are shown.
        stretches: For each stretch that begins with a key frame, the number of its first packet
            and the first and last tick of the frames in it.
        rate: Frames of a second, as the file says; None where it says nothing.
    """

    shown: list[int]
    tick: Fraction
    length: Fraction
    stretches: list[Stretch]
    rate: Fraction | None = None

    def seconds(self, ticks: int) -> Fraction:
        """Ticks in seconds."""
        return ticks * self.tick

    def ticks(self, moment: Fraction) -> int:
        """Seconds in ticks."""
        return int(moment / self.tick)

    def since_first(self, moment: Fraction) -> Fraction:
        """Seconds from the first frame, as they were before they were rounded to ticks."""
        passed = moment - self.seconds(self.shown[0])
        return passed if self.rate is None else unrounded(passed, self.rate, self.tick)

    def needed(self, wanted: list[int]) -> list[bool]:
        """Which stretches have to be decoded.

        Frames that a key frame goes before in the file but not on display refer to the stretch
        before it.
        """
        needed = [False] * len(self.stretches)
        for at, stretch in enumerate(self.stretches):
            begin = bisect.bisect_left(wanted, stretch.first)
            taken = wanted[begin : bisect.bisect_right(wanted, stretch.last)]
            if taken:
                needed[at] = True
                if at and taken[0] < stretch.key:
                    needed[at - 1] = True
        return needed


def unrounded(seconds: Fraction, rate: Fraction, most: Fraction) -> Fraction:
    """The time that whole frames take, where it is not farther than `most` seconds."""
    exact = round(seconds * rate) / rate
    return exact if abs(exact - seconds) <= most else seconds


@dataclass
class Stretch:
    """Packets from a key frame to the next.

    Attributes:
        packet: Number of the first.
        key: When the key frame is shown, in ticks.
        first: When its first frame is shown.
        last: When its last frame is shown.
    """

    packet: int
    key: int
    first: int
    last: int
