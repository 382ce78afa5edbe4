"""Boxes in answers, in Qwen2-VL's own form: a phrase, then two corners in a frame of 1000 x 1000.

`<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(120,340),(480,700)<|box_end|>`
"""

from __future__ import annotations

import re
from typing import Final

from examples.train_demo.scenes import Box

FRAME: Final = 1000  # units per side of the picture, whatever its shape
BINS: Final = 100  # written coordinates are multiples of 10: the last digit carries nothing
REF_START: Final = "<|object_ref_start|>"
BOX_START: Final = "<|box_start|>"
BOX_END: Final = "<|box_end|>"
CORNERS: Final = re.compile(r"<\|box_start\|>[\d(),]*<\|box_end\|>")


def bins(box: Box) -> tuple[int, ...]:
    """The four coordinates of a box (fractions of the picture) as whole hundredths, 0 to 99."""
    return tuple(min(BINS - 1, max(0, round(BINS * edge))) for edge in box)


def corners(box: Box) -> str:
    """A box as the answer writes it, such as "(120,340),(480,700)"."""
    x1, y1, x2, y2 = (edge * FRAME // BINS for edge in bins(box))
    return f"({x1},{y1}),({x2},{y2})"


def grounded(phrase: str, written: str) -> str:
    """A phrase and the corners of its box between their special tokens."""
    return f"{REF_START}{phrase}<|object_ref_end|>{BOX_START}{written}{BOX_END}"


def in_words(answer: str) -> str:
    """What an answer says before its first box."""
    return answer.partition(REF_START)[0].rstrip()


def without_numbers(answer: str) -> str:
    """An answer whose boxes have lost their coordinates, to compare everything else."""
    return CORNERS.sub(BOX_START + BOX_END, answer)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return shared / union if (union := sum(areas) - shared) > 0 else 0.0
