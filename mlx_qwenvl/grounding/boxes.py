"""Boxes, quads and points that an answer names, read from its text.

Qwen2-VL writes a name between `<|object_ref_start|>` and `<|object_ref_end|>`, and behind it two
corners as `<|box_start|>(221,423),(569,886)<|box_end|>`, in a frame of 1000 x 1000. Four corners in
quad marks, and one point in either, are read too. Younger members write JSON, objects such as
`{"bbox_2d": [221, 423, 569, 886], "label": "cat"}` or with a `point_2d`: Qwen3-VL in that frame,
Qwen2.5-VL in pixels of the picture as it was resized. Whatever is not of these forms stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlx_qwenvl.grounding.frame import FRAME, Frame, Point

Kind = Literal["box", "quad", "point"]

_NUMBER: Final = r"(\d{1,4}(?:\.\d{1,4})?)"
_POINT: Final = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_POINTS: Final = rf"{_POINT}(?:\s*,\s*{_POINT}){{0,3}}"
MARKED: Final = re.compile(
    r"<\|object_ref_start\|>(?P<label>[^<]*(?:<(?!\|)[^<]*)*)<\|object_ref_end\|>"
    rf"|<\|(?P<mark>box|quad)_start\|>\s*(?P<points>{_POINTS})\s*<\|(?P=mark)_end\|>"
)
_PAIR: Final = re.compile(_POINT)
MARKS: Final = tuple(
    f"<|{what}_{edge}|>" for what in ("object_ref", "box", "quad") for edge in ("start", "end")
)
_MARKS: Final = re.compile("|".join(map(re.escape, MARKS)))
_OBJECT: Final = re.compile(r'\{(?=[^{}]*"(?:bbox|point)_2d")')
_PLACES: Final = {"bbox_2d": 4, "point_2d": 2}  # keys, and numbers of each
_NAMES: Final = ("label", "text_content")  # keys of what is there, or of what is written there


@dataclass(frozen=True)
class Box:
    """Something that an answer points at.

    Attributes:
        label: What the answer calls it; "" where it gives no name.
        kind: "box", "quad" or "point".
        points: Its corners in the model's frame, as the answer gives them: two for a box, four for
            a quad, one for a point.
        frame: The picture they refer to.
        image: Index of that picture among those of the conversation.
    """

    label: str
    kind: Kind
    points: tuple[Point, ...]
    frame: Frame
    image: int

    @property
    def corners(self) -> tuple[Point, ...]:
        """The points in pixels of the picture as it is stored, as `PIL.Image.open` gives it."""
        return tuple(map(self.frame.stored, self.points))

    @property
    def upright_corners(self) -> tuple[Point, ...]:
        """The points in pixels of the picture as people see it, turned upright."""
        return tuple(map(self.frame.upright, self.points))

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the picture as its file holds it."""
        return _bounds(self.corners)

    @property
    def upright_xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the upright picture."""
        return _bounds(self.upright_corners)

    def to_dict(self) -> dict[str, Any]:
        """The box as the command line's `--json` and the server give it."""
        return {
            "label": self.label,
            "kind": self.kind,
            "image": self.image,
            "xyxy": [round(value, 2) for value in self.xyxy],
            "points": [[round(x, 2), round(y, 2)] for x, y in self.corners],
            "points_1000": [self._in_thousandths(point) for point in self.points],
        }

    def _in_thousandths(self, point: Point) -> list[float]:
        if self.frame.extent == (FRAME, FRAME):
            return list(point)
        return [round(value * FRAME, 2) for value in self.frame.share(point)]


def find_boxes(text: str, frames: Sequence[Frame]) -> tuple[Box, ...]:
    """The boxes that an answer names, in its order.

    The model does not say which picture it means: it is taken to be the last one. A label holds
    for all boxes up to the next label, as where several things are named once.

    Args:
        text: The answer, its marks spelled out.
        frames: The conversation's pictures; without one there is nothing to point at.
    """
    if not frames:
        return ()
    found = [] if '_2d"' not in text else list(_in_json(text, frames[-1], len(frames) - 1))
    if found or "_start|>" not in text:
        return tuple(found)
    label = ""
    for match in MARKED.finditer(text):
        if match["mark"] is None:
            label = match["label"].strip()
            continue
        points = tuple((float(x), float(y)) for x, y in _PAIR.findall(match["points"]))
        kind = _kind(match["mark"], points, frames[-1])
        if kind is not None:
            found.append(Box(label, kind, points, frames[-1], len(frames) - 1))
    return tuple(found)


def _in_json(text: str, frame: Frame, image: int) -> Iterator[Box]:
    """The boxes and points among the JSON objects of an answer, which may be cut off."""
    decoder, at = json.JSONDecoder(), 0
    while (opened := _OBJECT.search(text, at)) is not None:
        at = opened.end()
        try:
            said, at = decoder.raw_decode(text, opened.start())
        except (ValueError, RecursionError):
            continue
        for key, count in _PLACES.items():
            numbers = said.get(key)
            if not _are_numbers(numbers, count):
                continue
            points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
            kind = _kind("box", points, frame)
            label = next((said[n] for n in _NAMES if isinstance(said.get(n), str)), "")
            if kind is not None:
                yield Box(label.strip(), kind, points, frame, image)


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in value)
    )


def without_marks(text: str) -> str:
    """An answer as people read it: names and coordinates stay, the marks around them go."""
    return _MARKS.sub("", text)


def mark_begun(text: str) -> int:
    """Where the beginning of a mark stands at the end of a text, or the text's length."""
    begun = text.rfind("<")
    is_mark = begun >= 0 and any(mark.startswith(text[begun:]) for mark in MARKS)
    return begun if is_mark else len(text)


class MarkFilter:
    """`without_marks` for an answer that comes in pieces."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """What may be shown now; the beginning of a mark waits for its end."""
        text = without_marks(self._held + text)
        cut = mark_begun(text)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back and turned out to be text."""
        shown, self._held = self._held, ""
        return shown


def _kind(mark: str, points: Sequence[Point], frame: Frame) -> Kind | None:
    """What the points make, or None for what the marks do not allow or the frame does not hold."""
    if not all(map(frame.holds, points)):
        return None
    count = len(points)
    if count == 1:
        return "point"
    if mark == "quad":
        return "quad" if count == 4 else None
    if count == 2:
        (left, top), (right, bottom) = points
        return "box" if left <= right and top <= bottom else None
    return None


def _bounds(points: Sequence[Point]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
