"""Fields of a message's part, read one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlx_qwenvl.errors import PromptError

__all__ = ["real", "shown_value", "whole"]


def shown_value(value: object) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(where: str, part: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number, or None where there is none.

    Raises:
        PromptError: It is something else.
    """
    value = part.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise PromptError(
            f"{where} has {key} {shown_value(value)}, expected a positive whole number",
            f"{where}.{key}",
        )
    return value


def real(where: str, part: Mapping[str, Any], key: str) -> float | None:
    """A number above 0, or None where there is none.

    Raises:
        PromptError: It is something else.
    """
    value = part.get(key)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (value > 0 and math.isfinite(value)):
        raise PromptError(
            f"{where} has {key} {shown_value(value)}, expected a number above 0", f"{where}.{key}"
        )
    return float(value)
