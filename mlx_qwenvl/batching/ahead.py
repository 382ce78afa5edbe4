"""Work that a few threads do ahead of whoever takes its results, and not too far ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Ahead(Generic[Item, Made]):
    """Results of work on items, in the order in which they are done.

    Items are taken from their iterable in the thread that calls `take`, and only as many as there
    is room for. The threads are daemons: one that hangs at another machine keeps no process alive.

    Args:
        items: What there is to work on.
        work: The work. It must not raise.
        threads: How many do it.
        most: Items that are worked on, or done and not taken, at most.

    Attributes:
        under_way: How many these are.
    """

    def __init__(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Made],
        *,
        threads: int,
        most: int,
    ) -> None:
        self._items, self._work, self._most = iter(items), work, most
        self._inbox: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Made] = queue.SimpleQueue()
        self._is_exhausted = False
        self._threads = [
            threading.Thread(target=self._run, name=f"ahead-{i}", daemon=True)
            for i in range(threads)
        ]
        self.under_way = 0
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes, as far as `take` has looked."""
        return self._is_exhausted and not self.under_way

    def take(self, seconds: float) -> Made | None:
        """The next result, or None where none comes in that time."""
        self._fill()
        if self.is_done:
            return None
        try:
            made = self._made.get(timeout=seconds) if seconds > 0 else self._made.get_nowait()
        except queue.Empty:
            return None
        self.under_way -= 1
        self._fill()
        return made

    def close(self) -> None:
        """Begin nothing more. What is under way is not waited for, and its results are lost."""
        try:
            while True:
                self._inbox.get_nowait()
        except queue.Empty:
            pass
        for _ in self._threads:
            self._inbox.put(None)

    def _fill(self) -> None:
        while not self._is_exhausted and self.under_way < self._most:
            try:
                item = next(self._items)
            except StopIteration:
                self._is_exhausted = True
                return
            self.under_way += 1
            self._inbox.put((item,))

    def _run(self) -> None:
        while (given := self._inbox.get()) is not None:
            self._made.put(self._work(*given))
            del given  # an item may be large, and the next may be long in coming
