"""A picture with boxes drawn into it, their labels legible whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from mlx_qwenvl.grounding.boxes import Box

# Colours that people with any colour vision tell apart (Okabe and Ito), one for each label.
COLORS: Final = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
LEAST_SIDE: Final = 320  # px: a smaller picture is enlarged, or no label would be legible
MOST_GROWTH: Final = 8  # times, for pictures that are narrow strips
TEXT_SHARE: Final = 1 / 28  # height of a label by the picture's longer side
LEAST_TEXT: Final = 13  # px
# Pillow's own font has Latin letters only; these have others, on Macs and on Linux.
OTHER_FONTS: Final = (
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "DejaVuSans.ttf",
)
RGB = tuple[int, int, int]


def color_of(boxes: Sequence[Box]) -> dict[str, RGB]:
    """A colour for each label, in the order of their first boxes."""
    labels = dict.fromkeys(box.label for box in boxes)
    return {label: COLORS[index % len(COLORS)] for index, label in enumerate(labels)}


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Draw boxes into a copy of the upright picture that they refer to.

    Args:
        picture: The picture, upright, at any size: coordinates are taken by share.
        boxes: What to draw.

    Returns:
        The picture at its own size, or enlarged by a whole number so that labels can be read.
    """
    short, long = sorted(picture.size)
    grow = max(-(-LEAST_SIDE // long), min(MOST_GROWTH, -(-LEAST_SIDE // (4 * short))), 1)
    size = picture.width * grow, picture.height * grow
    canvas = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    height = max(LEAST_TEXT, round(min(max(size) * TEXT_SHARE, min(size) / 5)))
    brush = _Brush(canvas, _font_for([box.label for box in boxes], height), max(2, height // 6))
    colors = color_of(boxes)
    placed = [(box, brush.scaled(box)) for box in boxes]
    for box, points in placed:
        brush.outline(box, points, colors[box.label])
    for box, points in placed:  # over all outlines
        if box.label:
            brush.label(box.label, points, colors[box.label])
    return canvas


def _font_for(labels: Sequence[str], height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not all(ord(letter) < 0x250 for label in labels for letter in label):
        for name in OTHER_FONTS:
            try:
                return ImageFont.truetype(name, height)
            except OSError:
                continue
    return ImageFont.load_default(height)


class _Brush:
    """Draws on one canvas with one font and one line width."""

    def __init__(
        self,
        canvas: Image.Image,
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
        line: int,
    ) -> None:
        self.canvas, self.font, self.line = canvas, font, line
        self.pen = ImageDraw.Draw(canvas)
        self.taken: list[tuple[float, float, float, float]] = []

    def scaled(self, box: Box) -> list[tuple[float, float]]:
        """The corners of a box in pixels of the canvas."""
        across, down = (
            own / seen for own, seen in zip(self.canvas.size, box.frame.size, strict=True)
        )
        return [(x * across, y * down) for x, y in box.upright_corners]

    def outline(self, box: Box, points: list[tuple[float, float]], color: RGB) -> None:
        """The box itself, with a dark edge so that it stands out on its own colour."""
        for shade, width in (((0, 0, 0), self.line + 2), (color, self.line)):
            if box.kind == "point":
                ((x, y),) = points
                radius = 2 * width
                self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
            elif box.kind == "box":
                (left, top), (right, bottom) = points
                corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
                self.pen.line([*corners, corners[1]], fill=shade, width=width, joint="curve")
            else:
                self.pen.line([*points, *points[:2]], fill=shade, width=width, joint="curve")

    def label(self, text: str, points: list[tuple[float, float]], color: RGB) -> None:
        """A name on its colour above the box, or where there is room for it."""
        text = self._fitting(text)
        x0, y0, x1, y1 = self.pen.textbbox((0, 0), text, font=self.font)
        pad = self.line
        width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
        left = min(x for x, _ in points)
        tops = (min(y for _, y in points) - height, max(y for _, y in points))
        place = self._free(left, (*tops, tops[0] + height), width, height)
        self.taken.append(place)
        self.pen.rectangle(place, fill=color)
        dark = sum(part * value for part, value in zip((299, 587, 114), color, strict=True)) > 128e3
        shade = (0, 0, 0) if dark else (255, 255, 255)
        self.pen.text((place[0] + pad - x0, place[1] + pad - y0), text, fill=shade, font=self.font)

    def _free(
        self, left: float, tops: Sequence[float], width: float, height: float
    ) -> tuple[float, float, float, float]:
        """The first place inside the canvas that no other label has, or the first at all."""
        most_x, most_y = self.canvas.width - width, self.canvas.height - height
        x = max(0.0, min(left, most_x))
        places = [(x, max(0.0, min(top, most_y))) for top in tops]
        boxes = [(x, y, x + width, y + height) for x, y in places]
        return next(
            (box for box in boxes if not any(_meet(box, old) for old in self.taken)), boxes[0]
        )

    def _fitting(self, text: str) -> str:
        """As much of a name as one line of the canvas holds."""
        text = " ".join(text.split())
        room = self.canvas.width - 2 * self.line
        if self.pen.textlength(text, font=self.font) <= room:
            return text
        while text and self.pen.textlength(f"{text}…", font=self.font) > room:
            text = text[: len(text) * 9 // 10]
        return f"{text}…"


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
