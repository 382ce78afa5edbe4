"""Keys and values in 8 or 4 bits a number: what they are kept in, and how they are attended to.

A few queries, as in decoding, multiply with the packed numbers. Many queries, as in a step of
prefill, attend to one layer's keys and values dequantized, by whatever attention is fastest. Which
is faster changes at a number of queries that depends on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.models.attention import Packed, attend, attend_quantized
from mlx_qwenvl.models.cache import KVCache, Positions, with_room

KV_BITS = (4, 8)
KV_GROUP_SIZES = (32, 64, 128)  # numbers that may share a scale
KV_GROUP_SIZE = 64  # the usual one, where a head is that wide
PACKED_QUERIES = {mx.cpu: 1, mx.gpu: 127}  # most queries that multiply with packed numbers


@dataclass(frozen=True)
class KVFormat:
    """How keys and values are kept.

    Attributes:
        bits: 8 or 4; None for the activations' dtype.
        group_size: Numbers that share a scale and a bias; None for 64, or a narrower head's width.
        start: Tokens up to which a cache stays as it is without `bits`. With one token more it is
            converted as a whole.
    """

    bits: int | None = None
    group_size: int | None = None
    start: int = 0

    def for_heads(self, width: int) -> KVFormat:
        """The same with its group size, for heads of that width.

        Raises:
            OptionError: The heads cannot be cut into such groups.
        """
        if self.bits is None:
            return PLAIN
        size = min(KV_GROUP_SIZE, width) if self.group_size is None else self.group_size
        if size not in KV_GROUP_SIZES or width % size:
            fitting = [g for g in KV_GROUP_SIZES if width % g == 0]
            expected = f"one of {fitting}" if fitting else "no kv_bits with this model"
            raise OptionError(
                f"kv_group_size is {size}, but this model's heads are {width} wide; "
                f"expected {expected}"
            )
        return replace(self, group_size=size)


PLAIN = KVFormat()


class QuantizedKVCache(KVCache):
    """Keys and values of one layer in 8 or 4 bits a number, from some number of tokens on.

    Whether a token is computed with packed numbers depends on its place alone and never on how the
    work was cut: the tokens before `start` see keys and values as they are, all later ones packed.

    Args:
        positions: Shared with the other layers.
        form: With bits and a group size that divides the head's width.
    """

    def __init__(self, positions: Positions, form: KVFormat) -> None:
        super().__init__(positions)
        assert form.bits is not None and form.group_size is not None, "a format with its groups"
        self._form = form
        self.bits, self.group_size = form.bits, form.group_size
        self._packed: list[mx.array] = []  # [2, B, H, room, ...]: numbers, scales, biases

    @property
    def is_packed(self) -> bool:
        """Whether its keys and values are quantized."""
        return bool(self._packed)

    def attend(
        self, q: mx.array, kv: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Append keys and values, and attend from queries to all that are held."""
        length = kv.shape[3]
        early = self._early(length)
        if early == length:
            return super().attend(q, kv, scale, mask)
        if early:
            first = mask
            if isinstance(mask, mx.array):
                first, mask = mask[..., :early, : self.offset + early], mask[..., early:, :]
            before = super().attend(q[:, :, :early], kv[:, :, :, :early], scale, first)
            after = self.attend(q[:, :, early:], kv[:, :, :, early:], scale, mask)
            return mx.concatenate([before, after], axis=2)
        self._pack(kv)
        if length > PACKED_QUERIES[mx.default_device().type]:
            return attend(q, *self._dequantized(), scale, mask)
        keys, values = self._half(0), self._half(1)
        return attend_quantized(
            q, keys, values, scale, mask, bits=self.bits, group_size=self.group_size
        )

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, L, D]; give all of them [B, H, T, D], dequantized."""
        if self._early(keys.shape[2]) == keys.shape[2]:
            return super().update_and_fetch(keys, values)
        self._pack(mx.stack([keys, values]))
        return self._dequantized()

    def copy(self, positions: Positions, length: int) -> QuantizedKVCache:
        """A cache of the first `length` tokens; what either appends the other does not see."""
        twin = QuantizedKVCache(positions, self._form)
        twin.offset = length
        if length and self._packed:
            twin._packed = [array[..., :length, :] for array in self._packed]
        elif length and self._kv is not None:
            twin._kv = self._kv[:, :, :, :length]
        return twin

    def reusable(self, length: int) -> int:
        """Of the first `length` tokens, those that are as if nothing had followed them."""
        return 0 if self._packed and length < self._form.start else length

    def revocable(self, length: int) -> int:
        """Of the next `length` tokens, how many may be fed and forgotten without a trace."""
        ahead = self._form.start - self.offset  # tokens until all of them are converted
        return length if self._packed or ahead <= 0 else min(length, ahead)

    @property
    def state(self) -> Any:
        """Keys and values without spare room; once packed, numbers, scales and biases of each."""
        if not self._packed:
            return super().state
        return [list(self._half(0)), list(self._half(1))]

    @state.setter
    def state(self, state: Any) -> None:
        keys, values = state
        if isinstance(keys, mx.array):
            self._packed, self._kv = [], mx.stack([keys, values])
            self.offset = keys.shape[2]
        else:
            self._packed = [mx.stack([*pair]) for pair in zip(keys, values, strict=True)]
            self._kv = None
            self.offset = keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return super().nbytes + sum(array.nbytes for array in self._packed)

    def _early(self, length: int) -> int:
        """How many of the next `length` tokens go in front of the start."""
        if self.offset == 0:
            self._packed = []  # forgotten to the last token, it begins anew
        return 0 if self._packed else max(0, min(length, self._form.start - self.offset))

    def _pack(self, kv: mx.array) -> None:
        """Append keys and values [2, B, H, L, D], and convert what is not packed yet."""
        begin, end = self.offset, self.offset + kv.shape[3]
        if self._kv is not None:
            kv, begin = mx.concatenate([self._kv[:, :, :, :begin], kv], axis=3), 0
            self._kv = None
        parts = mx.quantize(kv, group_size=self.group_size, bits=self.bits)
        stored: Sequence[mx.array | None] = self._packed or [None] * len(parts)
        self._packed = [
            with_room(array, part, begin, end) for array, part in zip(stored, parts, strict=True)
        ]
        for array, part in zip(self._packed, parts, strict=True):
            array[..., begin:end, :] = part
        self.offset = end

    def _half(self, index: int) -> Packed:
        """Numbers, scales and biases of the keys (0) or of the values (1)."""
        numbers, scales, biases = (a[index, :, :, : self.offset] for a in self._packed)
        return numbers, scales, biases

    def _dequantized(self) -> tuple[mx.array, mx.array]:
        return self._dequantized_half(0), self._dequantized_half(1)

    def _dequantized_half(self, index: int) -> mx.array:
        numbers, scales, biases = self._half(index)
        return mx.dequantize(numbers, scales, biases, group_size=self.group_size, bits=self.bits)
