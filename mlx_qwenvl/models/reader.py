"""Typed look-ups in `config.json`, whose errors name what came and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_qwenvl.errors import CheckpointError


class Reader:
    """Typed look-ups in one section of `config.json` whose errors name the full key.

    Args:
        raw: The section.
        name: Its own key; empty for the whole file.
    """

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        self.raw = raw
        self.name = name

    def path(self, key: str) -> str:
        """A key with the sections around it."""
        return f"{self.name}.{key}" if self.name else key

    def section(self, key: str) -> Reader:
        """A section within."""
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Reader(value, self.path(key))

    def integer(self, key: str) -> int:
        """A whole number from 0 up."""
        value = self._get(key)
        if not _is_integer(value) or value < 0:
            raise self._wrong(key, value, "a whole number")
        return int(value)

    def number(self, key: str) -> float:
        """A number above 0."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 up."""
        value = self._get(key)
        if not isinstance(value, list) or any(not _is_integer(i) or i < 0 for i in value):
            raise self._wrong(key, value, "a list of whole numbers")
        return tuple(value)

    def three_integers(self, key: str) -> tuple[int, int, int]:
        """A list of three whole numbers."""
        value = self.raw.get(key)
        if not (isinstance(value, list) and len(value) == 3 and all(map(_is_integer, value))):
            raise self._wrong(key, value, "three integers")
        return value[0], value[1], value[2]

    def _get(self, key: str) -> Any:
        if key not in self.raw:
            raise CheckpointError(f"config.json has no {self.path(key)!r}")
        return self.raw[key]

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"config.json: {self.path(key)} is {value!r}, expected {expected}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
