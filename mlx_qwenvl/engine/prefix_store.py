"""Conversations that were computed before, for prompts that begin in the same way.

A prompt takes the kept conversation with which it has most in common. Where it goes on from that
one's end, as the next turn of a chat does, it takes it away and appends in place; where it leaves
it earlier, as another question about the same picture does, it works on a copy of the beginning.
Two answers at once therefore never write into one cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlx.core as mx

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.prefix_disk import BLOCK, PrefixDisk
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.quantized_cache import KVFormat

PREFIX_BYTES = 2**30  # of keys and values kept by default, where memory is large enough
PREFIX_SHARE = 16  # of memory, one part for prefixes at most
SLACK = 16  # tokens at its end that a conversation may lose without being copied before


class PrefixStore:
    """Conversations that nobody is answering; the least recently used go first.

    Args:
        limit: Bytes of keys and values to keep in memory at most. The newest conversation is kept
            whatever its size, or a long chat would be computed anew with every turn; 0 keeps
            nothing.
        make: Makes an empty conversation with keys and values kept in a format.
        disk: Where beginnings outlive the process, or None.
    """

    def __init__(
        self,
        limit: int,
        make: Callable[[KVFormat], Conversation],
        disk: PrefixDisk | None = None,
    ) -> None:
        self._limit = limit
        self._make = make
        self._disk = disk
        self._kept: list[Conversation] = []  # the newest last
        self._lock = threading.Lock()

    @property
    def keeps(self) -> bool:
        """Whether anything that is put here may be found again."""
        return self._limit > 0 or self._disk is not None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are kept in memory."""
        return sum(conversation.nbytes for conversation in self._kept)

    def take(self, prompt: Prompt, kv: KVFormat) -> Conversation:
        """A conversation of the caller's own that holds what is known of a prompt's beginning."""
        found = self._from_memory(prompt, kv)
        known = 0 if found is None else found.shared(prompt)
        if self._disk is not None and self._disk.longest(prompt, kv) >= known + BLOCK:
            loaded = self._disk.load(prompt, kv)
            if loaded is not None and loaded.length > known:
                if found is not None:
                    self.put(found)
                return loaded
        return self._make(kv) if found is None else found

    def known(self, prompt: Prompt, kv: KVFormat) -> tuple[int, int]:
        """Tokens of a prompt that memory holds, and bytes of them that it may go on in."""
        with self._lock:
            best, shared = self._best(prompt, kv)
            in_place = best is not None and best.length - shared <= SLACK
            return shared, best.nbytes if best is not None and in_place else 0

    def put(self, conversation: Conversation) -> None:
        """Keep a conversation that is not worked on any more."""
        conversation.settle()
        if conversation.length == 0:
            return
        # Another thread may take it, and what is not under way can be computed in this one alone.
        mx.async_eval([layer.state for layer in conversation.cache])
        if self._disk is not None:
            self._disk.save(conversation)
        if self._limit == 0:
            return
        with self._lock:
            # A prefix of another adds nothing; the longer one counts as used.
            longer = [c for c in self._kept if c.is_begun_by(conversation)]
            kept = longer[-1] if longer else conversation
            self._kept = [c for c in self._kept if not kept.is_begun_by(c)]
            self._kept.append(kept)
            while len(self._kept) > 1 and self.nbytes > self._limit:
                self._kept.pop(0)

    def make_room(self, nbytes: int) -> int:
        """Let conversations go until that many bytes of memory are free; give how many are."""
        freed = 0
        with self._lock:
            while self._kept and freed < nbytes:
                freed += self._kept.pop(0).nbytes
        return freed

    def _from_memory(self, prompt: Prompt, kv: KVFormat) -> Conversation | None:
        with self._lock:
            best, shared = self._best(prompt, kv)
            if best is None:
                return None
            self._kept.remove(best)
            if best.length - shared <= SLACK:
                return best
            self._kept.append(best)
            return best.fork(shared)

    def _best(self, prompt: Prompt, kv: KVFormat) -> tuple[Conversation | None, int]:
        """The kept conversation with most of a prompt, and how many tokens that are."""
        fitting = [(c.shared(prompt), c) for c in self._kept if c.kv == kv]
        shared, best = max(fitting, key=lambda pair: pair[0], default=(0, None))
        return (best, shared) if shared else (None, 0)
