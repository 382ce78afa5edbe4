"""What a process decides by its own clock and memory, and several have to decide alike.

Processes that hold one model together run the same steps in the same order, so whatever a step
depends on beside the questions comes from here: how large a slice of a prompt is, whether a
proposal pays, whether there is memory. Alone, a process goes by what it sees itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreed:
    """Where numbers come from that decide what is computed.

    Attributes:
        clock: Tells seconds.
        number: Gives the number that counts for one that was found here, such as bytes.
        is_asked: Whether questions come here first, to be refused where they never fit.
    """

    clock: Callable[[], float]
    number: Callable[[int], int]
    is_asked: bool = True


ALONE = Agreed(time.perf_counter, lambda number: number)
