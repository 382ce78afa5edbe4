"""One thread computes at a time, step by step, whichever answers the threads are at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

COURTESY_S = 0.001  # seconds; a thread that waits is woken within a tenth of it


class Turnstile:
    """Lets one step pass at a time; a thread may begin another within its own.

    Nothing is held between steps, so an answer that nobody listens to any more holds up nobody.
    Python's locks know no order: whoever lets go of one and takes it again at once mostly gets it.
    So a thread that sees that another has asked since stands back for a moment.
    """

    def __init__(self) -> None:
        # Taken by `with` alone, where Ctrl-C cannot come between taking it and knowing so.
        self._lock = threading.RLock()
        self._asked: int | None = None  # the thread that asked last

    def step(self, work: Callable[[], T]) -> T:
        """What the work gives, done while no other step is."""
        me = threading.get_ident()
        if self._asked not in (None, me):
            time.sleep(COURTESY_S)
        self._asked = me
        with self._lock:
            return work()
