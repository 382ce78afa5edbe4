"""One conversation's cache, and how much of it a new prompt can reuse.

A prefix is reused only where both its tokens and its pictures are the same: image slots all hold
the same token id, so the pictures in them are compared by the digest of their patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_qwenvl.inputs.prompt import ImageSlot, Prompt
from mlx_qwenvl.models.cache import LayerCache, Positions
from mlx_qwenvl.models.qwen2_vl import Qwen2VL


class Conversation:
    """A cache together with the tokens and pictures that are in it.

    Args:
        model: The model whose cache this is.
        kv_bits: 8 or 4 for quantized keys and values.
    """

    def __init__(self, model: Qwen2VL, kv_bits: int | None = None) -> None:
        self.cache: list[LayerCache] = model.make_cache(kv_bits)
        self._fed = np.empty(0, dtype=np.int32)
        self._slots: tuple[ImageSlot, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.cache[0].offset

    @property
    def positions(self) -> Positions:
        """Positions of the conversation's tokens."""
        return self.cache[0].positions

    def begin(self, prompt: Prompt) -> int:
        """Keep what the prompt shares with the cache and forget the rest.

        Returns:
            Tokens of the prompt that are in the cache, at least one fewer than the prompt has.
        """
        kept = min(self._shared(prompt), self.length, prompt.token_ids.size - 1)
        for layer in self.cache:
            layer.trim(layer.offset - kept)
        self._fed, self._slots = prompt.token_ids, prompt.slots
        return kept

    def extend(self, token_ids: Sequence[int]) -> None:
        """Note the generated tokens that went into the cache behind the prompt."""
        fed = np.concatenate([self._fed, np.array(token_ids, dtype=np.int32)])
        self._fed = fed[: self.length]

    def _shared(self, prompt: Prompt) -> int:
        """Length of the longest common beginning."""
        size = min(self._fed.size, prompt.token_ids.size)
        differs = np.flatnonzero(self._fed[:size] != prompt.token_ids[:size])
        shared = int(differs[0]) if differs.size else size
        for index, slot in enumerate(prompt.slots):
            if slot.start >= shared:
                break
            old = self._slots[index] if index < len(self._slots) else None
            if old is None or old.start != slot.start or old.image.digest != slot.image.digest:
                return slot.start
        return shared
