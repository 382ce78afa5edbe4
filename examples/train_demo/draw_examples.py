"""Draw the pictures of examples/images: `python -m examples.train_demo.draw_examples [FOLDER]`.

Fixed scenes on fixed canvases; none of them can come out of the training generator, which never
draws at these sizes with these radii. The text pictures need the DejaVu fonts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from examples.train_demo.scenes import COLORS, Thing, load_font, paint

FOLDER: Final = Path(__file__).resolve().parent.parent / "images"
SIZE: Final = 448  # px; the processor brings it down to 168


def things(*items: tuple[str, str, int, int, float]) -> list[Thing]:
    """Shapes in the middle of their thirds; each item is (color, shape, row, column, radius)."""
    third = SIZE / 3
    return [
        Thing(
            shape=shape,
            color=color,
            row=row,
            column=column,
            x=(column + 0.5) * third,
            y=(row + 0.5) * third,
            radius=radius,
            turn=0.0,
            rgb=COLORS[color],
        )
        for color, shape, row, column, radius in items
    ]


def shapes(items: Sequence[Thing]) -> Image.Image:
    """A white picture with shapes."""
    return paint(items, (SIZE, SIZE), (255, 255, 255), zoom=2)


def text(words: str, color: str, size: tuple[int, int], height: int) -> Image.Image:
    """A white picture with one line of text in its middle; `size` and `height` in pixels."""
    image = Image.new("RGB", size, (255, 255, 255))
    font = load_font("DejaVuSans-Bold", height, strict=True)
    left, top, right, bottom = font.getbbox(words)
    origin = ((size[0] - left - right) / 2, (size[1] - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, words, font=font, fill=COLORS[color])
    return image


def draw_all() -> dict[str, Image.Image]:
    """File name to picture."""
    return {
        "shapes.png": shapes(things(("red", "circle", 0, 0, 58), ("blue", "square", 1, 2, 60))),
        "three.png": shapes(
            things(
                ("green", "triangle", 0, 0, 60),
                ("yellow", "star", 0, 2, 64),
                ("purple", "heart", 2, 1, 62),
            )
        ),
        "star.png": shapes(things(("green", "star", 1, 1, 110))),
        "heart.png": shapes(things(("purple", "heart", 1, 1, 100))),
        "number.png": text("328", "black", (168, 112), 44),
        "word.png": text("STOP", "red", (196, 112), 44),
    }


def main() -> None:
    """Write the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in draw_all().items():
        image.save(folder / name)


if __name__ == "__main__":
    main()
