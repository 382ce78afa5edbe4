"""From the frame that a model points in to the pixels of a picture, upright and as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

FRAME: Final = 1000  # units of most models' frame on both axes, whatever the picture's shape

Point = tuple[float, float]
Unit = Literal["thousandths", "pixels"]
"""What a model counts in: thousandths of each side, or pixels of the picture as it was resized."""


@dataclass(frozen=True)
class Frame:
    """A picture that coordinates refer to.

    Attributes:
        size: (width, height) of the upright picture before resizing, in pixels.
        orientation: The EXIF value, 1 to 8, that turned the stored picture upright.
        extent: (width, height) of the picture in the units that the model counts in.
    """

    size: tuple[int, int]
    orientation: int = 1
    extent: tuple[int, int] = (FRAME, FRAME)

    def holds(self, point: Point) -> bool:
        """Whether a point of the model's frame lies within it."""
        return all(0 <= value <= most for value, most in zip(point, self.extent, strict=True))

    def share(self, point: Point) -> Point:
        """A point of the model's frame by its share of the picture, from 0 to 1."""
        return point[0] / self.extent[0], point[1] / self.extent[1]

    def upright(self, point: Point) -> Point:
        """A point of the model's frame in pixels of the upright picture."""
        (x, y), (width, height) = self.share(point), self.size
        return x * width, y * height

    def stored(self, point: Point) -> Point:
        """A point of the model's frame in pixels of the picture as its file holds it.

        This is what `PIL.Image.open` gives, which does not turn a picture upright.
        """
        x, y = self.share(point)
        u, v = {
            1: (x, y),
            2: (1 - x, y),
            3: (1 - x, 1 - y),
            4: (x, 1 - y),
            5: (y, x),
            6: (y, 1 - x),
            7: (1 - y, 1 - x),
            8: (1 - y, x),
        }[self.orientation]
        width, height = self.size if self.orientation < 5 else self.size[::-1]
        return u * width, v * height
