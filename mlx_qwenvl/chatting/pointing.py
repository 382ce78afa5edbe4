"""An answer that points, as it comes: its marks taken out, its names and boxes coloured.

A name and its boxes get the colour that `grounding/draw.py` draws them in. Colours travel through
Markdown as letters that no text has (Unicode's noncharacters, which `clean` takes out of answers).
"""

from __future__ import annotations

import re
from typing import Final

from mlx_qwenvl.clean import MARK_FIRST, MARK_LAST, clean
from mlx_qwenvl.grounding.boxes import MARKED, Box, find_boxes, mark_begun, without_marks
from mlx_qwenvl.grounding.draw import COLORS, color_of
from mlx_qwenvl.grounding.frame import FRAME, Frame

END: Final = chr(MARK_LAST)
BEGINS: Final = tuple(chr(MARK_FIRST + index) for index in range(len(COLORS)))
MOST_HELD: Final = 600  # letters of a name and its box that wait for their end
_OPEN: Final = re.compile(r"<\|(?:object_ref|box|quad)_start\|>")
_REF_END: Final = "<|object_ref_end|>"
_BOX_ENDS: Final = ("<|box_end|>", "<|quad_end|>")
_ANYWHERE: Final = (Frame((FRAME, FRAME)),)  # which colour a name gets does not depend on pixels


class Pointer:
    """Turns pieces of an answer into text to show; what it gave is never changed."""

    def __init__(self) -> None:
        self._held = ""
        self._label = ""
        self._boxes: tuple[Box, ...] = ()

    def feed(self, text: str) -> str:
        """What may be shown now; a name waits for its box, which decides its colour."""
        self._held += text
        return self._taken(is_end=False)

    def finish(self) -> str:
        """What was held back."""
        return self._taken(is_end=True)

    def _taken(self, *, is_end: bool) -> str:
        shown: list[str] = []
        while self._held:
            opened = _OPEN.search(self._held)
            if opened is None or opened.start():
                plain = self._held if opened is None else self._held[: opened.start()]
                cut = len(plain) if opened or is_end else mark_begun(plain)
                shown.append(_plain(plain[:cut]))
                self._held = self._held[cut:]
                if cut < len(plain) or opened is None:
                    break
                continue
            size = _group(self._held)
            if size is None and not is_end and len(self._held) < MOST_HELD:
                break
            if size is None:  # it is no form of pointing: text, up to the next mark
                shown.append(_plain(self._held[: opened.end()]))
                self._held = self._held[opened.end() :]
            else:
                shown.append(self._group(self._held[:size]))
                self._held = self._held[size:]
        return "".join(shown)

    def _group(self, text: str) -> str:
        """A name, a box, or a name with its first box."""
        found = find_boxes(f"<|object_ref_start|>{self._label}{_REF_END}{text}", _ANYWHERE)
        for match in MARKED.finditer(text):
            if match["mark"] is None:
                self._label = match["label"].strip()
        self._boxes += found
        shown = _plain(text)
        if not found:
            return shown
        return f"{BEGINS[COLORS.index(color_of(self._boxes)[found[-1].label])]}{shown}{END}"


def _group(held: str) -> int | None:
    """Letters of the name or box at the beginning, or None while they are not all there."""
    at = 0
    if held.startswith("<|object_ref_start|>"):
        end = held.find(_REF_END)
        if end < 0:
            return None
        at = end + len(_REF_END)
        behind = held[at:].lstrip()
        if not behind:
            return None
        starts = ("<|box_start|>", "<|quad_start|>")
        if not behind.startswith(starts):
            return None if any(start.startswith(behind) for start in starts) else at
    ends = [held.find(end, at) + len(end) for end in _BOX_ENDS if held.find(end, at) >= 0]
    return min(ends, default=None)


def _plain(text: str) -> str:
    return clean(without_marks(text))
