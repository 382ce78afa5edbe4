"""Keys and values of sequences that decode together, of whatever lengths.

A row is one sequence. Rows of about the same length lie in one array a layer, so that a step
appends with one write and attends with one call: a class holds 256, 512, 1,024, ... tokens a row,
and a row that outgrows its class moves on to the next. So none pays for a much longer one. A row
that joins is copied in, and one that leaves may be copied out; the last of its class then takes its
slot, because slots without a row would have to be attended to or gathered. Else nothing is copied,
but when a class needs more slots than it ever had.

Rows that keep their keys and values in another way bring their own caches and attend one by one.

Axes: B rows of one step, S slots and n rows of a class, H key-value heads, Q query heads, T tokens,
D a head's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_qwenvl.models.attention import attend_masked
from mlx_qwenvl.models.cache import GROWTH, KVCache, LayerCache, Positions


@dataclass(eq=False)
class Row:
    """One sequence.

    Attributes:
        length: Tokens that are held.
        rope_delta: What a token adds to its place.
        own: Its own caches, one a layer; None where it has a slot.
    """

    length: int
    rope_delta: int
    own: Sequence[LayerCache] | None = None


@dataclass(eq=False)
class _Class:
    """Rows of about one length.

    Attributes:
        room: Tokens that a slot holds.
        rows: By slot; no slot between them is empty.
        buffers: [2, S, H, room, D] for each layer.
    """

    room: int
    rows: list[Row] = field(default_factory=list)
    buffers: list[mx.array] = field(default_factory=list)

    def add(self, row: Row, kv: Sequence[mx.array]) -> None:
        """Give a row a slot, and copy its keys and values [2, 1, H, T, D] there."""
        slot = len(self.rows)
        for layer, new in enumerate(kv):
            kept = self.buffers[layer : layer + 1]
            slots = kept[0].shape[1] if kept else 0
            spare = mx.zeros((*new.shape[:3], self.room - new.shape[3], new.shape[4]), new.dtype)
            # Whole, so that nothing is left of a row before, which may have held NaN.
            whole = mx.concatenate([new, spare], axis=3)
            if slot == slots:
                more = mx.zeros((2, max(slots, 1), *whole.shape[2:]), whole.dtype)
                larger = mx.concatenate([*kept, more], axis=1) if kept else more
                self.buffers[layer : layer + 1] = [larger]
            self.buffers[layer][:, slot : slot + 1] = whole
            mx.eval(self.buffers[layer])
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Let a row go; the last one takes its slot."""
        slot, last = self.rows.index(row), len(self.rows) - 1
        if slot != last:
            for buffer in self.buffers:
                moved = mx.contiguous(buffer[:, last:])
                mx.eval(moved)
                buffer[:, slot : slot + 1] = moved[:, :1]
                mx.eval(buffer)
            self.rows[slot] = self.rows[last]
        self.rows.pop()

    def copied(self, row: Row) -> list[mx.array]:
        """A row's keys and values [2, 1, H, T, D] for each layer."""
        slot = self.rows.index(row)
        out = [mx.contiguous(b[:, slot : slot + 1, :, : row.length]) for b in self.buffers]
        mx.eval(out)
        return out


@dataclass(frozen=True)
class _Part:
    """A class's share of one step.

    Attributes:
        owner: The class.
        rows: Which rows of the step.
        count: n.
        places: Indices of each axis but the last, at which the rows' tokens go; together [2, n, H].
        total: T, with the new tokens.
        mask: bool [n, 1, 1, T]: what each row may see.
    """

    owner: _Class
    rows: slice
    count: int
    places: tuple[mx.array, ...]
    total: int
    mask: mx.array


class BatchCache:
    """The caches of all layers for the rows that decode together.

    Args:
        layers: The decoder's.

    Attributes:
        layers: One cache a layer, as the decoder wants it.
    """

    def __init__(self, layers: int) -> None:
        self._classes: dict[int, _Class] = {}
        self._own: list[Row] = []
        self._parts: list[_Part] = []
        self._alone: list[tuple[int, Sequence[LayerCache]]] = []
        self._positions = _RowPositions()
        self.layers: list[LayerCache] = [_Layer(self, i, self._positions) for i in range(layers)]

    @property
    def rows(self) -> list[Row]:
        """The rows in the order in which a step has them."""
        return [row for c in self._ordered() for row in c.rows] + self._own

    @property
    def nbytes(self) -> int:
        """Bytes held for all rows, spare room included."""
        slots = sum(buffer.nbytes for c in self._classes.values() for buffer in c.buffers)
        return slots + sum(layer.nbytes for row in self._own for layer in row.own or ())

    def join(self, cache: Sequence[LayerCache]) -> Row:
        """Make a row of one sequence's caches, which are copied, or kept where they are packed.

        What decodes has to be waited for before, or the slots of the others are copied as well.
        """
        row = Row(cache[0].offset, cache[0].positions.rope_delta)
        if copies_into_slots(cache):
            self._place(row, [mx.stack(list(layer.state)) for layer in cache])
        else:
            row.own = cache
            self._own.append(row)
        return row

    def leave(self, row: Row) -> None:
        """Let a row go."""
        # What the last step was made with would hold all slots, even where nobody comes any more.
        self._parts, self._alone = [], []
        if row.own is not None:
            self._own.remove(row)
            return
        owner = self._owner(row)
        owner.remove(row)
        if not owner.rows:
            del self._classes[owner.room]

    def copied(self, row: Row) -> list[LayerCache]:
        """A row's caches to go on with elsewhere; those that it brought, as they are."""
        if row.own is not None:
            return list(row.own)
        positions = Positions()
        positions.rope_delta = row.rope_delta
        return [KVCache.of(kv, positions) for kv in self._owner(row).copied(row)]

    def moves(self) -> bool:
        """Whether `begin_step` will copy a row, so that what decodes should be waited for."""
        return any(row.length == c.room for c in self._classes.values() for row in c.rows)

    def begin_step(self) -> None:
        """Make ready for one token more of every row."""
        for owner in self._ordered():
            for row in [row for row in owner.rows if row.length == owner.room]:
                kv = owner.copied(row)
                self.leave(row)
                self._place(row, kv)
        self._parts, begin = [], 0
        for owner in self._ordered():
            lengths = np.array([row.length for row in owner.rows], dtype=np.int32)
            total, count = int(lengths.max()) + 1, len(owner.rows)
            seen = np.arange(total, dtype=np.int32) <= lengths[:, None]
            part = _Part(
                owner,
                slice(begin, begin + count),
                count,
                _places(lengths, owner.buffers[0].shape[2]),
                total,
                mx.array(seen[:, None, None]),
            )
            self._parts.append(part)
            begin += count
        self._alone = [(begin + i, row.own or ()) for i, row in enumerate(self._own)]
        rows = self.rows
        self._positions.stand = np.array([row.length + row.rope_delta for row in rows], np.int32)
        for row in rows:
            row.length += 1

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        """One layer's attention, as `LayerCache.attend` has it, with a token a row."""
        out = []
        for part in self._parts:
            buffer = part.owner.buffers[layer]
            buffer[part.places] = kv[:, part.rows, :, 0]
            # Views, each of one index: `buffer[0][:n]` would be a copy.
            keys = buffer[0, : part.count, :, : part.total]
            values = buffer[1, : part.count, :, : part.total]
            out.append(attend_masked(q[part.rows], keys, values, scale, part.mask))
        for index, own in self._alone:
            one = slice(index, index + 1)
            out.append(own[layer].attend(q[one], kv[:, one], scale, None))
        return out[0] if len(out) == 1 else mx.concatenate(out, axis=0)

    def _place(self, row: Row, kv: Sequence[mx.array]) -> None:
        room = GROWTH
        while room <= row.length:
            room *= 2
        owner = self._classes.setdefault(room, _Class(room))
        try:
            owner.add(row, kv)
        finally:
            if not owner.rows:  # there was no memory for it
                del self._classes[room]

    def _owner(self, row: Row) -> _Class:
        return next(c for c in self._classes.values() if any(row is r for r in c.rows))

    def _ordered(self) -> list[_Class]:
        return [self._classes[room] for room in sorted(self._classes)]


def copies_into_slots(cache: Sequence[LayerCache]) -> bool:
    """Whether a row copies these caches, one a layer, or goes on in them."""
    return all(type(layer) is KVCache for layer in cache)


def _places(lengths: np.ndarray, heads: int) -> tuple[mx.array, ...]:
    """Where one token of each row goes; slices in their place would be made anew in every layer."""
    count = lengths.size
    return (
        mx.array(np.arange(2, dtype=np.uint32).reshape(2, 1, 1)),
        mx.array(np.arange(count, dtype=np.uint32).reshape(1, count, 1)),
        mx.array(np.arange(heads, dtype=np.uint32).reshape(1, 1, heads)),
        mx.array(lengths.astype(np.uint32).reshape(1, count, 1)),
    )


class _RowPositions(Positions):
    """Positions of one token a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stand = np.empty(0, dtype=np.int32)

    def at(self, offset: int, length: int) -> np.ndarray:
        """Positions [3, B, 1] int32 of the step's tokens; the arguments do not matter."""
        return np.broadcast_to(self.stand[None, :, None], (3, self.stand.size, 1))


class _Layer(LayerCache):
    """One layer's view of the rows."""

    def __init__(self, rows: BatchCache, index: int, positions: Positions) -> None:
        super().__init__(positions)
        self._rows, self._index = rows, index

    def attend(
        self, q: mx.array, kv: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Append keys and values of one token a row, and attend to what each row holds."""
        return self._rows.attend(self._index, q, kv, scale)
