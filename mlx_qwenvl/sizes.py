"""Bytes and other large numbers in words."""

from __future__ import annotations

_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def in_bytes(count: int) -> str:
    """A number of bytes with three digits and a decimal unit, such as "2.20 GB"."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def in_numbers(count: int) -> str:
    """A number with three digits or more and a letter, such as "2.21 B"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
