"""A mapping that is bounded in bytes; what was used least recently goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedStore(Generic[Key, Value]):
    """Values by key, for any number of threads.

    Args:
        limit: Bytes to keep at most; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """A value, or None where it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value, nbytes: int) -> None:
        """Keep a value, and let others go where they do not all fit."""
        with self._lock:
            if key in self._kept or nbytes > self.limit:
                return
            self._kept[key] = value, nbytes
            self.nbytes += nbytes
            self._shrink(self.limit)

    def make_room(self, nbytes: int) -> int:
        """Let values go until that many bytes are free; give how many are."""
        with self._lock:
            before = self.nbytes
            self._shrink(max(0, before - nbytes))
            return before - self.nbytes

    def _shrink(self, limit: int) -> None:
        while self.nbytes > limit:
            self.nbytes -= self._kept.popitem(last=False)[1][1]
