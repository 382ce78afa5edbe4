"""One conversation's cache, and how much of it a new prompt can reuse.

A prefix is reused only where both its tokens and its pictures are the same: image slots all hold
the same token id, so the pictures in them are compared by the digest of their patches. A video is
compared temporal patch by temporal patch, so that a longer cut of it goes on where the shorter one
ended.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.cache import LayerCache, Positions
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat


@dataclass(frozen=True)
class Slot:
    """Where a picture or a temporal patch begins, and which; its patches are not kept alive.

    Attributes:
        start: Index of its first token.
        digest: Of its patches, and of its seconds where they count.
    """

    start: int
    digest: bytes


def slots_of(prompt: Prompt) -> tuple[Slot, ...]:
    """The pictures and temporal patches of a prompt in order.

    Keys of the same frames at another pace are others where positions follow seconds.
    """
    found = []
    for slot in prompt.slots:
        seconds = slot.image.seconds_per_grid if prompt.counts_seconds else None
        pace = b"" if seconds is None else struct.pack("<d", seconds)
        found += [Slot(start, view.digest + pace) for start, view in slot.views]
    return tuple(found)


class Conversation:
    """A cache together with the tokens and pictures that are in it.

    Args:
        model: The model whose cache this is.
        kv: How keys and values are kept.
    """

    def __init__(self, model: Model, kv: KVFormat = PLAIN) -> None:
        self.kv = kv
        self.cache: list[LayerCache] = model.make_cache(kv)
        self._fed = np.empty(0, dtype=np.int32)
        self._slots: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, cache: list[LayerCache], prompt: Prompt, kv: KVFormat) -> Conversation:
        """A conversation whose cache begins with a prompt, computed elsewhere."""
        made = cls.__new__(cls)
        made.kv, made.cache = kv, cache
        made.hold(prompt)
        return made

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.cache[0].offset

    @property
    def token_ids(self) -> np.ndarray:
        """[length] int32: the tokens in the cache."""
        return self._fed[: self.length]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Pictures of the last prompt in order; those from `length` on are not in the cache."""
        return self._slots

    @property
    def positions(self) -> Positions:
        """Positions of the conversation's tokens."""
        return self.cache[0].positions

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, spare room included."""
        return sum(layer.nbytes for layer in self.cache)

    def begin(self, prompt: Prompt) -> int:
        """Keep what the prompt shares with the cache and forget the rest.

        Returns:
            Tokens of the prompt that are in the cache, at least one fewer than the prompt has.
        """
        kept = self.shared(prompt)
        self._trim(kept)
        self._fed, self._slots = prompt.token_ids, slots_of(prompt)
        return kept

    def shared(self, prompt: Prompt) -> int:
        """Tokens of the prompt that need not be computed; its last one always is."""
        common = self._common(prompt.token_ids, slots_of(prompt))
        return self.cache[0].reusable(min(common, prompt.token_ids.size - 1))

    def is_begun_by(self, other: Conversation) -> bool:
        """Whether all of another conversation stands at the beginning of this one."""
        return self.kv == other.kv and self._common(other.token_ids, other.slots) == other.length

    def extend(self, token_ids: Sequence[int]) -> None:
        """Note the generated tokens that went into the cache behind the prompt."""
        self.settle()
        fed = np.concatenate([self._fed, np.array(token_ids, dtype=np.int32)])
        self._fed = fed[: self.length]

    def settle(self) -> None:
        """Forget a step that was broken off and has reached some layers only."""
        self._trim(min(layer.offset for layer in self.cache))

    def hold(self, prompt: Prompt) -> None:
        """Note that the cache was given the beginning of a prompt, computed elsewhere."""
        self._fed, self._slots = prompt.token_ids, slots_of(prompt)

    def fork(self, length: int) -> Conversation:
        """Another conversation that begins with the first `length` tokens of this one."""
        other = Conversation.__new__(Conversation)
        positions = Positions()
        positions.rope_delta = self.positions.rope_delta  # where it goes on from the very end
        other.kv = self.kv
        other.cache = [layer.copy(positions, length) for layer in self.cache]
        other._fed, other._slots = self._fed[:length], self._slots
        return other

    def _trim(self, length: int) -> None:
        for layer in self.cache:
            layer.trim(layer.offset - length)

    def _common(self, token_ids: np.ndarray, slots: Sequence[Slot]) -> int:
        """Length of the longest beginning that the cache and a prompt have in common."""
        size = min(self._fed.size, self.length, token_ids.size)
        differs = np.flatnonzero(self._fed[:size] != token_ids[:size])
        common = int(differs[0]) if differs.size else size
        for index, slot in enumerate(slots):
            if slot.start >= common:
                break
            old = self._slots[index] if index < len(self._slots) else None
            if old is None or old.start != slot.start or old.digest != slot.digest:
                return slot.start
        return common
