"""From the model's 1000 x 1000 frame to the pixels of a picture, upright and as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FRAME: Final = 1000  # units of the model's frame on both axes, whatever the picture's shape

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A picture that coordinates refer to.

    Attributes:
        size: (width, height) of the upright picture before resizing, in pixels.
        orientation: The EXIF value, 1 to 8, that turned the stored picture upright.
    """

    size: tuple[int, int]
    orientation: int = 1

    def upright(self, point: Point) -> Point:
        """A point of the model's frame in pixels of the upright picture."""
        (x, y), (width, height) = point, self.size
        return x / FRAME * width, y / FRAME * height

    def stored(self, point: Point) -> Point:
        """A point of the model's frame in pixels of the picture as its file holds it.

        This is what `PIL.Image.open` gives, which does not turn a picture upright.
        """
        x, y = (value / FRAME for value in point)
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
