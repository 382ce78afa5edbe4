"""The bytes of a body -> JSON values that the rest of the server can trust.

What JSON readers disagree on is refused: duplicate keys, NaN, infinities, lone surrogates. What
would cost more memory or stack than its bytes is refused too: very many or very deep values.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mlx_qwenvl.errors import QwenVLError

MAX_DEPTH = 100  # lists and objects inside each other
MAX_VALUES = 1_000_000  # a list of empty lists takes twenty times its bytes

STRUCTURE = (b"[", b"{", b",")


class BodyError(QwenVLError):
    """A body is no JSON, or none that is safe to read."""


def parse_json(body: bytes) -> Any:
    """Read a body.

    Raises:
        BodyError: It cannot be read; the message holds nothing of the body but names of keys.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BodyError(f"the body is not UTF-8: byte {error.start} cannot be read") from None
    if _has_many_values(body):
        raise BodyError(f"the body holds more than {MAX_VALUES} values")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise BodyError(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise BodyError(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # a whole number of thousands of digits
        raise BodyError("the body holds a number that is too long") from None
    _check(value, escapes=b"\\u" in body)
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a body that has to be an object. Errors as of `parse_json`."""
    value = parse_json(body)
    if not isinstance(value, dict):
        names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        raise BodyError(f"the body is {names.get(type(value), 'a number')}, expected an object")
    return value


def _has_many_values(body: bytes) -> bool:
    if sum(body.count(mark) for mark in STRUCTURE) <= MAX_VALUES:
        return False
    # Most of them may stand in strings, which are cut out. Each value has one and perhaps a key.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 4 * MAX_VALUES:
        return True
    outside = b"".join(plain.split(b'"')[::2])
    return sum(outside.count(mark) for mark in STRUCTURE) > MAX_VALUES


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BodyError(f"the body has the key {key[:60]!a} twice in one object")
            seen.add(key)
    return value


def _constant(name: str) -> Any:
    raise BodyError(f"the body holds {name}, which is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BodyError("the body holds a number beyond the range of a double")
    return value


def _check(root: Any, escapes: bool) -> None:
    """Holds every level to the depth and, where the body has escapes, every string to Unicode."""
    level, depth = [root], 0
    while level:
        if depth == MAX_DEPTH and any(isinstance(value, (dict, list)) for value in level):
            raise BodyError(f"the body is nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
                if escapes:
                    below += value
            elif isinstance(value, list):
                below += value
            elif escapes and isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise BodyError("the body holds half of a surrogate pair") from None
        level, depth = below, depth + 1
