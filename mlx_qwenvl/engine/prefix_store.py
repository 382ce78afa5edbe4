"""Conversations that were computed before, for prompts that begin in the same way.

A prompt takes the kept conversation with which it has most in common. Where it goes on from that
one's end, as the next turn of a chat does, it takes it away and appends in place; where it leaves
it earlier, as another question about the same picture does, it works on a copy of the beginning.
Two answers at once therefore never write into one cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.inputs.prompt import Prompt

PREFIX_BYTES = 2**30  # of keys and values kept by default
SLACK = 16  # tokens at its end that a conversation may lose without being copied before


class PrefixStore:
    """Conversations that nobody is answering; the least recently used go first.

    Args:
        limit: Bytes of keys and values to keep at most. The newest conversation is kept whatever
            its size, or a long chat would be computed anew with every turn; 0 keeps nothing.
        make: Makes an empty conversation with keys and values in that many bits.
    """

    def __init__(self, limit: int, make: Callable[[int | None], Conversation]) -> None:
        self._limit = limit
        self._make = make
        self._kept: list[Conversation] = []  # the newest last
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are kept."""
        return sum(conversation.nbytes for conversation in self._kept)

    def take(self, prompt: Prompt, kv_bits: int | None) -> Conversation:
        """A conversation of the caller's own that holds what is known of a prompt's beginning."""
        with self._lock:
            fitting = [c for c in self._kept if c.kv_bits == kv_bits]
            best = max(fitting, key=lambda c: c.shared(prompt), default=None)
            shared = 0 if best is None else best.shared(prompt)
            if best is None or shared == 0:
                return self._make(kv_bits)
            self._kept.remove(best)
            if best.length - shared <= SLACK:
                return best
            self._kept.append(best)
            return best.fork(shared)

    def put(self, conversation: Conversation) -> None:
        """Keep a conversation that is not worked on any more."""
        if self._limit == 0 or conversation.length == 0:
            return
        with self._lock:
            self._kept = [c for c in self._kept if not conversation.is_begun_by(c)]
            self._kept.append(conversation)
            while len(self._kept) > 1 and self.nbytes > self._limit:
                self._kept.pop(0)
