"""Keys and values of the tokens seen so far, with the M-RoPE positions that belong to them.

The protocol is mlx-lm's (`offset`, `state`, `update_and_fetch`, `trim`, `make_mask`), so its tools
drive the model unchanged. Positions live here and never on the model: two conversations on one
model must not meet.

Axes: B sequences, H key-value heads, T tokens stored, L tokens of one step, D a head's width.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwenvl.models.attention import attend

GROWTH = 256  # tokens by which a cache grows; a power of two keeps SDPA's strides aligned


class Positions:
    """M-RoPE positions of one conversation, shared by its caches of all layers.

    Attributes:
        rope_delta: What a text token adds to its place in the cache.
        prompt: Positions [3, L] of the tokens from `start` on, or None where all are text.
        start: Place in the cache of `prompt`'s first token.
    """

    def __init__(self) -> None:
        self.rope_delta = 0
        self.prompt: np.ndarray | None = None
        self.start = 0

    def expect(self, prompt: np.ndarray, rope_delta: int, start: int) -> None:
        """Give the positions of the tokens that will be fed next, from place `start` on.

        Args:
            prompt: [3, L] int32.
            rope_delta: What holds after them.
            start: Their place in the cache.
        """
        self.rope_delta = rope_delta
        self.prompt = prompt
        self.start = start

    def at(self, offset: int, length: int) -> np.ndarray:
        """Positions [3, length] int32 of the tokens at places offset, offset + 1, ..."""
        after = np.arange(offset, offset + length, dtype=np.int32) + self.rope_delta
        positions = np.broadcast_to(after, (3, length))
        if self.prompt is None or offset < self.start:
            return positions
        begin = offset - self.start
        known = self.prompt[:, begin : begin + length]
        if known.shape[1] == 0:
            return positions
        return np.concatenate([known, positions[:, known.shape[1] :]], axis=1)


class LayerCache:
    """What one layer's attention asks of its cache, however keys and values are kept.

    Args:
        positions: Shared with the caches of the other layers.
    """

    step = GROWTH

    def __init__(self, positions: Positions | None = None) -> None:
        self.offset = 0
        self.positions = Positions() if positions is None else positions

    def attend(
        self, q: mx.array, kv: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Append keys and values, and attend from queries to all that are held.

        Args:
            q: [B, Q, L, D].
            kv: Keys and values [2, B, H, L, D].
            scale: Factor of the scores.
            mask: As `make_mask` gives it.

        Returns:
            [B, Q, L, D].
        """
        raise NotImplementedError

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them [B, H, T, D]."""
        raise NotImplementedError

    def copy(self, positions: Positions, length: int) -> LayerCache:
        """A cache of the first `length` tokens; what either appends the other does not see.

        Args:
            positions: Shared with the copies of the other layers.
            length: Tokens to keep, at most those that are held.
        """
        raise NotImplementedError

    @property
    def is_packed(self) -> bool:
        """Whether its keys and values are quantized."""
        return False

    def reusable(self, length: int) -> int:
        """Of the first `length` tokens, those that are as if nothing had followed them."""
        return length

    @property
    def state(self) -> Any:
        """The arrays that are kept, without spare room; what was read may be set elsewhere."""
        raise NotImplementedError

    @state.setter
    def state(self, state: Any) -> None:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        raise NotImplementedError

    def revocable(self, length: int) -> int:
        """Of the next `length` tokens, how many may be fed and forgotten without a trace."""
        return length

    def is_trimmable(self) -> bool:
        """Tokens can be forgotten from the end."""
        return True

    def trim(self, n: int) -> int:
        """Forget the last n tokens; give how many were forgotten."""
        n = min(self.offset, n)
        self.offset -= n
        return n

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Causal mask of the next `length` tokens, by name where no array is asked for."""
        return causal_mask(length, self.offset, return_array, window_size)


class KVCache(LayerCache):
    """Keys and values of one layer in the dtype they come in.

    Both lie in one array, so that appending is one write.
    """

    def __init__(self, positions: Positions | None = None) -> None:
        super().__init__(positions)
        self._kv: mx.array | None = None  # [2, B, H, room, D]

    @classmethod
    def of(cls, kv: mx.array, positions: Positions) -> KVCache:
        """A cache that takes over keys and values [2, B, H, T, D]."""
        cache = cls(positions)
        cache._kv, cache.offset = kv, kv.shape[3]
        return cache

    def attend(
        self, q: mx.array, kv: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Append keys and values, and attend from queries to all that are held."""
        keys, values = self._append(kv)
        return attend(q, keys, values, scale, mask)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them [B, H, T, D]."""
        return self._append(mx.stack([keys, values]))

    def _append(self, kv: mx.array) -> tuple[mx.array, mx.array]:
        begin, end = self.offset, self.offset + kv.shape[3]
        self._kv = with_room(self._kv, kv, begin, end)
        self._kv[:, :, :, begin:end] = kv
        self.offset = end
        return self._kv[0, :, :, :end], self._kv[1, :, :, :end]

    def copy(self, positions: Positions, length: int) -> KVCache:
        """A cache of the first `length` tokens; what either appends the other does not see."""
        twin = KVCache(positions)
        if length and self._kv is not None:
            # Without spare room, so that the first append copies these tokens and no more.
            twin.offset, twin._kv = length, self._kv[:, :, :, :length]
        return twin

    @property
    def state(self) -> Any:
        """Keys and values without spare room."""
        if self._kv is None:
            return ()
        return self._kv[0, :, :, : self.offset], self._kv[1, :, :, : self.offset]

    @state.setter
    def state(self, state: Any) -> None:
        self._kv = mx.stack([*state])
        self.offset = self._kv.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return 0 if self._kv is None else self._kv.nbytes


def causal_mask(
    length: int, offset: int, return_array: bool = False, window_size: int | None = None
) -> mx.array | str | None:
    """What each of `length` tokens behind `offset` others may see.

    Returns:
        None for one token, "causal" where SDPA's own mask serves, or booleans
        [length, offset + length].
    """
    if length == 1 and window_size is None and not return_array:
        return None
    if not return_array and window_size is None:
        return "causal"
    places = mx.arange(offset + length)
    rows = mx.arange(offset, offset + length)[:, None]
    mask = places <= rows
    return mask if window_size is None else mask & (places > rows - window_size)


def with_room(stored: mx.array | None, new: mx.array, begin: int, end: int) -> mx.array:
    """`stored` with at least `end` places along the tokens' axis, its first `begin` kept."""
    if stored is not None and stored.shape[-2] >= end:
        return stored
    rows = -(-end // GROWTH) * GROWTH
    kept = [] if stored is None else [stored[..., :begin, :]]
    spare = rows - (begin if kept else 0)
    room = mx.zeros((*new.shape[:-2], spare, new.shape[-1]), dtype=new.dtype)
    return mx.concatenate([*kept, room], axis=-2)
