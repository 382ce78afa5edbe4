"""Boxes in answers, in Qwen2-VL's own form: a phrase, then two corners in a frame of 1000 x 1000.

`<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(120,340),(480,700)<|box_end|>`
"""

from __future__ import annotations

import re
from typing import Final

from examples.train_demo.scenes import Box

FRAME: Final = 1000  # units per side of the picture, whatever its shape
BINS: Final = 100  # written coordinates are multiples of 10: the last digit carries nothing
BOX_START: Final = "<|box_start|>"
BOX_END: Final = "<|box_end|>"
BOX: Final = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
GROUNDED: Final = re.compile(r"<\|object_ref_start\|>[^<]*<\|object_ref_end\|>" + BOX.pattern)


def bins(box: Box) -> tuple[int, ...]:
    """The four coordinates of a box (fractions of the picture) as whole hundredths, 0 to 99."""
    return tuple(min(BINS - 1, max(0, round(BINS * edge))) for edge in box)


def corners(box: Box) -> str:
    """A box as the answer writes it, such as "(120,340),(480,700)"."""
    x1, y1, x2, y2 = (edge * FRAME // BINS for edge in bins(box))
    return f"({x1},{y1}),({x2},{y2})"


def grounded(phrase: str, written: str) -> str:
    """A phrase and the corners of its box between their special tokens."""
    return f"<|object_ref_start|>{phrase}<|object_ref_end|>{BOX_START}{written}{BOX_END}"


def parse(answer: str) -> list[Box]:
    """The boxes that an answer writes, as fractions of the picture."""
    found = []
    for match in BOX.finditer(answer):
        x1, y1, x2, y2 = (int(edge) / FRAME for edge in match.groups())
        found.append((x1, y1, x2, y2))
    return found


def without(answer: str) -> str:
    """The answer's sentence before its boxes."""
    return GROUNDED.sub("", answer).strip(" ,")


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return shared / union if (union := sum(areas) - shared) > 0 else 0.0
