"""Mutations of bytes that know nothing of what the bytes mean."""

from __future__ import annotations

import random

EDGES = (0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 100, 127, 128, 200, 254, 255)  # bytes
WIDE_EDGES = (
    *(0, 1, 2, 12, 40, 2**7, 2**8, 1000, 2**15, 2**15 - 1, 65000, 2**16 - 1, 2**16, 2**24),
    *(2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32 - 2, 0xDEADBEEF),
)
MAX_LENGTH = 256 * 1024  # bytes, to which inputs may grow


def mutate_bytes(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four small changes."""
    changed = bytearray(data)
    for _ in range(drawn.choice((1, 1, 1, 2, 3, 4))):
        changed = drawn.choice(CHANGES)(drawn, changed, other)
    return bytes(changed[:MAX_LENGTH])


def _flip(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    for _times in range(drawn.choice((1, 1, 2, 4, 8))):
        if data:
            data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    return data


def _byte(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    if data:
        data[_place(drawn, data)] = drawn.choice(EDGES)
    return data


def _number(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    """A number of two, four or eight bytes, either end first."""
    size = drawn.choice((2, 4, 4, 8))
    place = _place(drawn, data)
    value = drawn.choice(WIDE_EDGES) % 2 ** (8 * size)
    order = drawn.choice(("big", "little"))
    data[place : place + size] = value.to_bytes(size, "big" if order == "big" else "little")
    return data


def _add(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    if data:
        place = _place(drawn, data)
        data[place] = (data[place] + drawn.randint(-16, 16)) % 256
    return data


def _cut(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    begin, end = _span(drawn, data)
    del data[begin:end]
    return data


def _truncate(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    return data[: drawn.randint(0, len(data))]


def _repeat(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    begin, end = _span(drawn, data)
    times = drawn.choice((1, 1, 2, 16, 200)) if end - begin < 64 else 1
    data[end:end] = data[begin:end] * times
    return data


def _noise(drawn: random.Random, data: bytearray, _: bytes) -> bytearray:
    place = _place(drawn, data)
    data[place:place] = drawn.randbytes(drawn.choice((1, 2, 4, 16, 64)))
    return data


def _splice(drawn: random.Random, data: bytearray, other: bytes) -> bytearray:
    """The beginning of one and the end of the other."""
    return data[: _place(drawn, data)] + other[_place(drawn, other) :]


def _graft(drawn: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _span(drawn, other)
    place = _place(drawn, data)
    size = drawn.choice((0, end - begin))
    data[place : place + size] = other[begin:end]
    return data


CHANGES = (_flip, _flip, _byte, _number, _add, _cut, _truncate, _repeat, _noise, _splice, _graft)


def _place(drawn: random.Random, data: bytes | bytearray) -> int:
    """Headers are what decoders stumble over, so half of all places are near the beginning."""
    most = len(data) if drawn.random() < 0.5 else min(len(data), 64)
    return drawn.randrange(most) if most else 0


def _span(drawn: random.Random, data: bytes | bytearray) -> tuple[int, int]:
    begin = _place(drawn, data)
    return begin, min(len(data), begin + drawn.choice((1, 2, 4, 8, 32, 128, 1024)))
