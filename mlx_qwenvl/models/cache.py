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

    def at(self, offset: int, length: int) -> np.ndarray | None:
        """Positions [3, length] of the tokens at places offset, offset + 1, ...

        Returns:
            None where each token's three positions are its place plus `rope_delta`.
        """
        if self.prompt is None or offset < self.start:
            return None
        begin = offset - self.start
        known = self.prompt[:, begin : begin + length]
        if known.shape[1] == 0:
            return None
        after = np.arange(offset + known.shape[1], offset + length) + self.rope_delta
        return np.concatenate([known, np.broadcast_to(after, (3, after.size))], axis=1)


class LayerCache:
    """What one layer's attention asks of its cache, however keys and values are kept.

    Args:
        positions: Shared with the caches of the other layers.
    """

    step = GROWTH

    def __init__(self, positions: Positions | None = None) -> None:
        self.offset = 0
        self.positions = Positions() if positions is None else positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them [B, H, T, D]."""
        raise NotImplementedError

    @property
    def state(self) -> Any:
        """The arrays that are kept, without spare room."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        raise NotImplementedError

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
    """Keys and values of one layer in the dtype they come in."""

    def __init__(self, positions: Positions | None = None) -> None:
        super().__init__(positions)
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them [B, H, T, D]."""
        begin, end = self.offset, self.offset + keys.shape[2]
        self.keys = _with_room(self.keys, keys, begin, end)
        self.values = _with_room(self.values, values, begin, end)
        self.keys[..., begin:end, :] = keys
        self.values[..., begin:end, :] = values
        self.offset = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    @property
    def state(self) -> tuple[mx.array, mx.array] | tuple[()]:
        """Keys and values without spare room."""
        if self.keys is None or self.values is None:
            return ()
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    @state.setter
    def state(self, state: tuple[mx.array, mx.array]) -> None:
        self.keys, self.values = state
        self.offset = self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(a.nbytes for a in (self.keys, self.values) if a is not None)


class QuantizedKVCache(LayerCache):
    """Keys and values of one layer in 8 or 4 bits per number.

    Attention sees them dequantized, one layer at a time.

    Args:
        positions: Shared with the other layers.
        bits: 8 or 4.
        group_size: Numbers that share a scale; divides the head's width.
    """

    def __init__(self, positions: Positions, bits: int, group_size: int) -> None:
        super().__init__(positions)
        self.bits = bits
        self.group_size = group_size
        self._stored: list[list[mx.array]] = []  # [keys, values] x [packed, scales, biases]
        self._dtype = mx.float32

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them dequantized [B, H, T, D]."""
        begin, end = self.offset, self.offset + keys.shape[2]
        self._dtype = keys.dtype
        for index, new in enumerate((keys, values)):
            parts = mx.quantize(new, group_size=self.group_size, bits=self.bits)
            old = self._stored[index] if index < len(self._stored) else [None] * len(parts)
            roomy = [_with_room(o, p, begin, end) for o, p in zip(old, parts, strict=True)]
            for array, part in zip(roomy, parts, strict=True):
                array[..., begin:end, :] = part
            self._stored[index : index + 1] = [roomy]
        self.offset = end
        return self._dequantized(0), self._dequantized(1)

    def _dequantized(self, index: int) -> mx.array:
        packed, scales, biases = (array[..., : self.offset, :] for array in self._stored[index])
        return mx.dequantize(
            packed, scales, biases, group_size=self.group_size, bits=self.bits
        ).astype(self._dtype)

    @property
    def state(self) -> list[list[mx.array]]:
        """Packed numbers, scales and biases without spare room."""
        return [[array[..., : self.offset, :] for array in parts] for parts in self._stored]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(array.nbytes for parts in self._stored for array in parts)


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


def _with_room(stored: mx.array | None, new: mx.array, begin: int, end: int) -> mx.array:
    """`stored` with at least `end` places along the tokens' axis, its first `begin` kept."""
    if stored is not None and stored.shape[2] >= end:
        return stored
    rows = -(-end // GROWTH) * GROWTH
    batch, heads, _, width = new.shape
    kept = [] if stored is None else [stored[..., :begin, :]]
    room = mx.zeros((batch, heads, rows - (begin if kept else 0), width), dtype=new.dtype)
    return mx.concatenate([*kept, room], axis=2)
