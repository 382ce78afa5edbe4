"""Drawn pictures with questions, for learning a quantization and for measuring one.

Nothing but Pillow and its built-in font takes part, so every installation draws the same without a
download. Shapes, words and small sizes are what the demo model knows; charts, receipts and noisy
gradients bring a real model the small print and the soft colours of the world. A seed names the
pictures: who learns from one seed measures with another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 225),
    "yellow": (245, 220, 40),
    "orange": (250, 140, 20),
    "purple": (130, 40, 170),
    "black": (15, 15, 15),
    "white": (248, 248, 248),
    "gray": (128, 128, 128),
    "pink": (255, 150, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
WORDS = (
    "OPEN",
    "EXIT",
    "CAT",
    "DOG",
    "SUN",
    "FISH",
    "TREE",
    "WATER",
    "HOT",
    "COLD",
    "TAXI",
    "PARK",
)
GOODS = ("apples", "bread", "coffee", "cheese", "rice", "soap", "tea", "tomatoes", "milk")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug")
TEXTS = (
    "Hello! How are you?",
    "What can you do?",
    "Name three animals that live in the sea.",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about rain.",
    "What is 17 plus 26?",
)
DESCRIBING = ("Describe this image.", "What is shown in this image?", "What do you see?")
SMALL_SIDES = (84, 112, 140, 168)  # px; the demo model reads at most 168 x 168
LARGE_SIDES = (224, 280, 336, 392, 448)  # px
SMOOTHING = 4  # drawn so many times larger, then shrunk, for soft edges


@dataclass(frozen=True)
class Drawn:
    """A prompt.

    Attributes:
        question: What is asked.
        images: Pictures of mode "RGB" that stand before the question; none for text alone.
    """

    question: str
    images: tuple[Image.Image, ...]


def builtin_pictures(seed: int, count: int) -> list[Drawn]:
    """Draw prompts.

    Args:
        seed: Names the pictures; another seed draws others.
        count: How many. The kinds take turns, so the first 12 hold every kind.
    """
    rng = random.Random(f"mlx-qwenvl {seed}")
    return [_TURNS[number % len(_TURNS)](rng) for number in range(count)]


def builtin_question(rng: random.Random) -> str:
    """A question that any picture answers."""
    return rng.choice((*DESCRIBING, "Read the text.", "What color is the background?"))


def _shapes(rng: random.Random) -> Drawn:
    image, things = _scene(rng, rng.randint(1, 4))
    color, shape, place = things[0]
    question = rng.choice(
        (
            *DESCRIBING,
            "How many shapes are there?",
            f"What color is the {shape}?",
            f"Where is the {color} {shape}?",
            f"Is there a {rng.choice(list(COLORS))} {shape}?",
            f"Which shape is {color}?",
            f"What is {place}?",
            f"How many {shape}s are in the image?",
            "What is the color of the background?",
        )
    )
    return Drawn(question, (image,))


def _pair(rng: random.Random) -> Drawn:
    (first, things), (second, _) = _scene(rng, 1), _scene(rng, 1)
    question = rng.choice(
        (
            "What is in the second image?",
            "Describe the first image.",
            f"Which image shows a {things[0][1]}?",
            "Do both images show the same shape?",
            "Are the shapes of the same color?",
            "How many images are there?",
        )
    )
    return Drawn(question, (first, second))


def _word(rng: random.Random) -> Drawn:
    return _sign(rng, rng.choice(WORDS), "What word is this?")


def _number(rng: random.Random) -> Drawn:
    digits = rng.randint(1, 3)
    return _sign(rng, str(rng.randrange(10 ** (digits - 1), 10**digits)), "What number is this?")


def _sign(rng: random.Random, text: str, naming: str) -> Drawn:
    """One line of print."""
    background, color = _two_colors(rng)
    font = ImageFont.load_default(rng.randint(24, 34))
    left, top, right, bottom = font.getbbox(text)
    size = (_snapped(right - left + rng.randint(16, 40)), _snapped(bottom + rng.randint(16, 40)))
    image = Image.new("RGB", size, COLORS[background])
    corner = ((size[0] - right - left) / 2, (size[1] - bottom - top) / 2)
    ImageDraw.Draw(image).text(corner, text, fill=COLORS[color], font=font)
    questions = ("Read the text.", "What does it say?", naming, "What color is the text?")
    return Drawn(rng.choice((*questions, *DESCRIBING)), (image,))


def _chart(rng: random.Random) -> Drawn:
    """A bar chart with named bars."""
    width, height = rng.choice(LARGE_SIDES), rng.choice(LARGE_SIDES)
    image = Image.new("RGB", (width, height), COLORS["white"])
    pen = ImageDraw.Draw(image)
    begin, count = rng.randrange(4), rng.randint(3, 5)
    step, floor = (width - 40) / count, height - 30
    pen.line((30, 30, 30, floor, width - 10, floor), fill=COLORS["black"], width=2)
    color = COLORS[rng.choice(("red", "green", "blue", "orange", "purple"))]
    font = ImageFont.load_default(14)
    for index, month in enumerate(MONTHS[begin : begin + count]):
        value, x = rng.randint(5, 99), 38 + index * step
        top = floor - value / 100 * (floor - 40)
        pen.rectangle((x, top, x + step * 0.7, floor), fill=color)
        pen.text((x, top - 18), str(value), fill=COLORS["black"], font=font)
        pen.text((x, floor + 6), month, fill=COLORS["black"], font=font)
    pen.text((40, 6), f"Sales {rng.randint(1990, 2030)}", fill=COLORS["black"], font=font)
    month = MONTHS[begin + rng.randrange(count)]
    asked = ("Which month has the highest bar?", f"What is the value of {month}?", DESCRIBING[0])
    return Drawn(rng.choice(asked), (image,))


def _receipt(rng: random.Random) -> Drawn:
    """Lines of small print with prices and their sum."""
    lines = rng.sample(GOODS, rng.randint(3, 6))
    prices = [rng.randint(50, 1999) for _ in lines]
    width, row = rng.choice(LARGE_SIDES[:4]), 26
    image = Image.new("RGB", (width, _snapped(row * (len(lines) + 3))), COLORS["white"])
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(17)
    printed = [*zip(lines, prices, strict=True), ("TOTAL", sum(prices))]
    for number, (name, cents) in enumerate(printed):
        y = 12 + number * row
        pen.text((16, y), name, fill=COLORS["black"], font=font)
        pen.text((width - 80, y), f"{cents / 100:.2f}", fill=COLORS["black"], font=font)
    pen.line((16, 8 + row * len(lines), width - 16, 8 + row * len(lines)), fill=COLORS["gray"])
    asked = ("What is the total?", f"How much is the {rng.choice(lines)}?", "Read the receipt.")
    return Drawn(rng.choice(asked), (image,))


def _gradient(rng: random.Random) -> Drawn:
    """A soft and noisy background, as photographs have, with a few discs of any colour on it."""
    width, height = rng.choice(LARGE_SIDES), rng.choice(LARGE_SIDES)
    noise = np.random.default_rng(rng.randrange(2**32))
    corners = noise.uniform(0, 255, (2, 2, 3))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    pixels = top * (1 - y) + bottom * y + noise.normal(0, rng.uniform(2, 20), (height, width, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 6)):
        disc = (rng.uniform(0, width), rng.uniform(0, height))
        fill: RGB = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        pen.circle(disc, rng.uniform(10, 60), fill=fill)
    asked = (*DESCRIBING, "Which colors are in this picture?", "Write a caption for this picture.")
    return Drawn(rng.choice(asked), (image,))


def _talk(rng: random.Random) -> Drawn:
    return Drawn(rng.choice(TEXTS), ())


_TURNS: tuple[Callable[[random.Random], Drawn], ...] = (
    _shapes,
    _word,
    _chart,
    _shapes,
    _pair,
    _number,
    _gradient,
    _shapes,
    _receipt,
    _shapes,
    _talk,
    _pair,
)


def _scene(rng: random.Random, count: int) -> tuple[Image.Image, list[tuple[str, str, str]]]:
    """A picture of shapes in different ninths; with colour, kind and place of each."""
    width, height = rng.choice(SMALL_SIDES), rng.choice(SMALL_SIDES)
    background = rng.choice(("white", "white", "white", *COLORS))
    image = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), COLORS[background])
    pen = ImageDraw.Draw(image)
    radius = min(image.size) / 6 * 0.8
    things = []
    for ninth in rng.sample(range(9), count):
        row, column = divmod(ninth, 3)
        color = rng.choice([name for name in COLORS if name != background])
        shape = rng.choice(SHAPES)
        centre = (image.width * (column + 0.5) / 3, image.height * (row + 0.5) / 3)
        _draw(pen, shape, centre, radius, COLORS[color])
        name = " ".join(part for part in (ROWS[row], COLUMNS[column]) if part)
        things.append((color, shape, f"at the {name}" if name else "in the center"))
    return image.resize((width, height), Image.Resampling.BOX), things


def _draw(pen: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, fill: RGB) -> None:
    if shape == "circle":
        pen.circle(centre, radius, fill=fill)
    elif shape == "ring":
        pen.circle(centre, radius, outline=fill, width=int(radius * 0.4))
    else:
        outline = _OUTLINES[shape]
        pen.polygon([(centre[0] + x * radius, centre[1] + y * radius) for x, y in outline], fill)


def _turned(corners: int, radii: tuple[float, ...], quarter: float = 0.0) -> list[Point]:
    """Corners of a regular outline, the first at the top, at radii that take turns."""
    angles = [2 * math.pi * index / corners + quarter for index in range(corners)]
    scaled = [(radii[index % len(radii)], angle) for index, angle in enumerate(angles)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in scaled]


def _heart() -> list[Point]:
    angles = [2 * math.pi * index / 48 for index in range(48)]
    x = [math.sin(a) ** 3 for a in angles]
    y = [
        13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        for a in angles
    ]
    return [(across, -up / 16) for across, up in zip(x, y, strict=True)]


_ARM = 0.34  # half the width of a cross's arm, in radii
_OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _turned(3, (1.0,)),
    "star": _turned(10, (1.0, 0.42)),
    "diamond": _turned(4, (1.0, 0.75)),
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
    "heart": _heart(),
}


def _two_colors(rng: random.Random) -> tuple[str, str]:
    background = rng.choice(("white", "white", "black", "yellow", "blue", "gray"))
    return background, rng.choice([name for name in COLORS if name != background])


def _snapped(pixels: float) -> int:
    """The next multiple of a token's side, so that the print is not resampled."""
    side = 28  # px
    return max(2, math.ceil(pixels / side)) * side
