"""Text of models and file names that no terminal takes for a command."""

from __future__ import annotations

from typing import Final

MARK_FIRST, MARK_LAST = 0xFDD0, 0xFDEF  # never letters; `pointing.py` marks colours with them

_LOOKS: Final = {
    **{code: chr(0x2400 + code) for code in range(0x20)},  # "␛" for escape
    0x7F: "␡",
    **dict.fromkeys(range(128, 160), "�"),  # escape sequences of 8 bits
    **dict.fromkeys(range(MARK_FIRST, MARK_LAST + 1), "�"),
    # Letters that turn the direction of what follows, and so hide what a text says.
    **dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), "�"),
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): None,
}


def clean(text: str) -> str:
    """Text whose control characters are letters that show them; lines and tabs stay."""
    return text.translate(_LOOKS)


def clean_line(text: str) -> str:
    """The same in one line."""
    return " ".join(clean(text).split())
