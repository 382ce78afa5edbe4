"""Drawn pictures with their truth: coloured shapes on a plain background, or a line of text.

Everything comes from one `random.Random`, so a seed names a picture. Needs Pillow and numpy only;
sizes and coordinates are pixels of the drawn picture, x to the right and y down.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlx_qwenvl.inputs.image import smart_resize

RGB = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

CELL: Final = 28  # px: one merged vision token, 2 x 2 patches of 14 px
MIN_PIXELS: Final = 56 * 56
MAX_PIXELS: Final = 168 * 168

COLORS: Final[dict[str, RGB]] = {
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
SHAPES: Final = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
# Most drawings of a person are on white paper; the other backgrounds keep "white" from being a
# habit.
BACKGROUNDS: Final = (
    ("white",) * 8 + ("black",) * 2 + ("gray", "yellow", "blue", "green", "pink", "red")
)
ROW_NAMES: Final = ("top", "", "bottom")
COLUMN_NAMES: Final = ("left", "", "right")

_WORD_LIST: Final = """
    HELLO STOP OPEN EXIT CAT DOG SUN MOON STAR FISH BIRD TREE HOUSE WATER FIRE APPLE BREAD
    MILK TEA SALE NEW HOT COLD FREE TAXI BUS TRAIN PARK HOTEL BANK SHOP PUSH PULL WAIT GO SLOW
    YES NO LEFT RIGHT UP DOWN IN OUT MENU PIZZA CAKE LOVE HAPPY WORLD MUSIC GAME PLAY START
    END RED BLUE GREEN
"""
WORDS: Final = tuple(_WORD_LIST.split())

TRAINED_FONTS: Final = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansCondensed",
    "DejaVuSansCondensed-Bold",
    "built-in",
)
UNSEEN_FONTS: Final = ("DejaVuSansMono-Oblique", "DejaVuSerifCondensed-Bold", "DejaVuSans-Oblique")
FONT_FOLDERS: Final = (
    "/usr/share/fonts/truetype/dejavu",
    "/usr/share/fonts/dejavu",
    "/usr/share/fonts/TTF",
    "/Library/Fonts",
    "~/Library/Fonts",
)

# Width, height and weight of the canvases, after the resize to multiples of 28.
SHAPE_CANVASES: Final = (
    ((84, 84), 4),
    ((112, 112), 7),
    ((140, 140), 8),
    ((112, 84), 2),
    ((84, 112), 2),
    ((140, 112), 4),
    ((112, 140), 4),
    ((168, 112), 3),
    ((112, 168), 3),
    ((168, 140), 4),
    ((140, 168), 3),
    ((196, 112), 2),
    ((112, 196), 1),
    ((196, 140), 1),
    ((168, 168), 6),
)
# What people draw and save is larger than the pixel budget; such pictures are shrunk.
LARGE_DRAWINGS: Final = (
    (224, 224),
    (256, 256),
    (336, 336),
    (448, 448),
    (320, 240),
    (240, 320),
    (400, 300),
    (300, 400),
    (480, 320),
    (512, 384),
    (448, 256),
)
SMALL_CANVASES: Final = (
    ((84, 84), 5),
    ((112, 112), 4),
    ((112, 84), 1),
    ((84, 112), 1),
    ((140, 140), 1),
)


@dataclass(frozen=True)
class Thing:
    """One drawn shape; `row` and `column` (0, 1, 2) are the thirds that hold its centre."""

    shape: str
    color: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    turn: float  # radians, stars only
    rgb: RGB

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.color} {self.shape}"

    @property
    def position(self) -> str:
        """Its place in words."""
        return position_name(self.row, self.column)

    @property
    def bounds(self) -> Box:
        """Left, top, right and bottom edge of the drawn shape."""
        if self.shape in ("circle", "ring"):
            corners: list[Point] = [(-1, -1), (1, 1)]
        else:
            corners = _outline(self.shape, self.turn)
        across, down = [u for u, _ in corners], [v for _, v in corners]
        r = self.radius
        return (
            self.x + r * min(across),
            self.y + r * min(down),
            self.x + r * max(across),
            self.y + r * max(down),
        )


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what is on it: `things`, or `text` with (character, x, y) per glyph."""

    image: Image.Image
    background: str
    things: tuple[Thing, ...] = ()
    text: str = ""
    text_color: str = ""
    glyphs: tuple[tuple[str, float, float], ...] = ()

    def box(self, thing: int) -> Box:
        """Bounds of a thing as fractions of the picture's width and height, within 0..1."""
        width, height = self.image.size
        left, top, right, bottom = self.things[thing].bounds
        x1, x2 = (min(1.0, max(0.0, x / width)) for x in (left, right))
        y1, y2 = (min(1.0, max(0.0, y / height)) for y in (top, bottom))
        return x1, y1, x2, y2


def position_name(row: int, column: int) -> str:
    """The place of a third of the picture in words, such as "at the top left"."""
    if row == 1 and column == 1:
        return "in the center"
    return "at the " + " ".join(name for name in (ROW_NAMES[row], COLUMN_NAMES[column]) if name)


def is_held_out_text(text: str) -> bool:
    """Whether training never shows a number: one in ten of two or three digits, by CRC-32."""
    return len(text) > 1 and text.isdigit() and zlib.crc32(text.encode()) % 10 == 0


def fitted_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) that the image processor chooses within the demo's pixel budget."""
    return smart_resize(height, width, CELL, MIN_PIXELS, MAX_PIXELS)


def fitted(image: Image.Image) -> np.ndarray:
    """Pixels [H, W, 3] uint8 of a picture after the processor's bicubic resize."""
    height, width = fitted_size(image.height, image.width)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def draw_shapes(
    rng: random.Random,
    count: int,
    *,
    canvas: tuple[int, int] | None = None,
    canvases: Sequence[tuple[tuple[int, int], float]] = SHAPE_CANVASES,
    distinct: bool = False,
    shape: str | None = None,
    color: str | None = None,
) -> Picture:
    """Draw `count` shapes, one per third of the picture.

    Args:
        rng: source of every choice.
        count: number of shapes, 1 to 9.
        canvas: (width, height) after the resize to multiples of 28; drawn from `canvases` if None.
        canvases: sizes and weights to choose from.
        distinct: give every shape its own kind and colour.
        shape: kind of the first shape; drawn by chance if None.
        color: colour of the first shape; drawn by chance if None.
    """
    background = rng.choice([name for name in BACKGROUNDS if name != color])
    if canvas is None and rng.random() < 0.3:
        width, height = rng.choice(LARGE_DRAWINGS)
        rows, columns = fitted_size(height, width)
        canvas = (columns, rows)
    else:
        sizes, weights = [size for size, _ in canvases], [weight for _, weight in canvases]
        canvas = canvas or rng.choices(sizes, weights)[0]
        width, height = _drawn_size(rng, canvas)
    cells = sorted(rng.sample(range(9), count))
    if count == 1 and rng.random() < 0.2:
        cells = [4]
    shapes, colors = _kinds(rng, count, background, distinct)
    shapes[0], colors[0] = shape or shapes[0], color or colors[0]
    smallest = (
        0.72 if max(canvas) < 150 else 0.45
    )  # of the largest radius; small shapes need pixels
    scale = width / canvas[0]
    things = []
    for cell, shape, color in zip(cells, shapes, colors, strict=True):
        row, column = divmod(cell, 3)
        box_w, box_h = width / 3, height / 3
        radius = max(9.0 * scale, rng.uniform(smallest, 0.97) * min(box_w, box_h) / 2)
        if count == 1 and cell == 4 and rng.random() < 0.6:
            radius = rng.uniform(0.25, 0.45) * min(width, height)
        free_x, free_y = max(0.0, box_w / 2 - radius), max(0.0, box_h / 2 - radius)
        things.append(
            Thing(
                shape=shape,
                color=color,
                row=row,
                column=column,
                x=(column + 0.5) * box_w + rng.uniform(-free_x, free_x),
                y=(row + 0.5) * box_h + rng.uniform(-free_y, free_y),
                radius=radius,
                turn=rng.uniform(-0.25, 0.25),
                rgb=near(rng, color, 14),
            )
        )
    image = paint(
        things,
        (width, height),
        near(rng, background, 6),
        1 if scale > 2 else rng.choice((1, 2, 2, 3)),
    )
    return Picture(_noisy(rng, image), background, tuple(things))


def draw_text(
    rng: random.Random,
    text: str,
    *,
    fonts: Sequence[str] = TRAINED_FONTS,
) -> Picture:
    """Draw one line of text, 26 to 64 px high, on a canvas a little larger than the line."""
    background = rng.choice(BACKGROUNDS)
    color = "black"
    if background != "white" or rng.random() < 0.5:
        lightness = sum(COLORS[background]) / 3
        color = rng.choice([c for c, v in COLORS.items() if abs(sum(v) / 3 - lightness) > 70])
    name = rng.choice(fonts)
    size = rng.randint(26, 46) if rng.random() < 0.85 else rng.randint(46, 64)
    font = load_font(name, size)
    left, top, right, bottom = font.getbbox(text)
    while right - left > 246:
        size -= 1
        font = load_font(name, size)
        left, top, right, bottom = font.getbbox(text)
    text_w, text_h = right - left, bottom - top
    width = max(56, math.ceil((text_w + 6) / CELL) * CELL)
    height = max(56, math.ceil((text_h + 6) / CELL) * CELL)
    while rng.random() < 0.4 and width < 224:
        width += CELL
    while rng.random() < 0.4 and height < 196:
        height += CELL
    if rng.random() < 0.4:  # centred, as most people would write
        x0, y0 = (width - text_w) / 2, (height - text_h) / 2
    else:
        x0, y0 = (
            rng.uniform(2, max(2, width - text_w - 2)),
            rng.uniform(2, max(2, height - text_h - 2)),
        )
    image = Image.new("RGB", (width, height), near(rng, background, 6))
    origin = (round(x0 - left), round(y0 - top))
    ImageDraw.Draw(image).text(origin, text, font=font, fill=near(rng, color, 10))
    glyphs = []
    for i, character in enumerate(text):
        middle = (font.getlength(text[:i]) + font.getlength(text[: i + 1])) / 2
        glyphs.append((character, origin[0] + middle, origin[1] + (top + bottom) / 2))
    if rng.random() < 0.35:
        drawn = (width + rng.randint(-13, 13), height + rng.randint(-13, 13))
        image = image.resize(drawn, Image.Resampling.BICUBIC)
        glyphs = [(c, x * drawn[0] / width, y * drawn[1] / height) for c, x, y in glyphs]
    return Picture(
        _noisy(rng, image), background, text=text, text_color=color, glyphs=tuple(glyphs)
    )


def random_text(rng: random.Random, *, held_out: bool = False) -> str:
    """A listed word, or a number of one to three digits; `held_out` asks for unseen numbers."""
    if not held_out and rng.random() < 0.42:
        return rng.choice(WORDS)
    while True:
        digits = rng.choice((1, 2, 2, 3, 3, 3))
        text = str(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
        if is_held_out_text(text) == (held_out and digits > 1) and not (held_out and digits == 1):
            return text


def paint(
    things: Sequence[Thing], size: tuple[int, int], background: RGB, zoom: int = 2
) -> Image.Image:
    """Draw things on a plain canvas; `zoom` > 1 smooths the edges."""
    image = Image.new("RGB", (size[0] * zoom, size[1] * zoom), background)
    draw = ImageDraw.Draw(image)
    for thing in things:
        _paint_one(draw, thing, zoom, background)
    return image.reduce(zoom) if zoom > 1 else image


@lru_cache(maxsize=1024)
def load_font(name: str, size: int, strict: bool = False) -> ImageFont.FreeTypeFont:
    """A DejaVu font of the system, or Pillow's own font where there is none.

    Raises:
        FileNotFoundError: `strict` is set and the font is on none of the known paths.
    """
    for folder in FONT_FOLDERS:
        path = Path(folder).expanduser() / f"{name}.ttf"
        if name != "built-in" and path.exists():
            return ImageFont.truetype(str(path), size)
    if strict and name != "built-in":
        raise FileNotFoundError(
            f"font {name}.ttf is in none of {', '.join(FONT_FOLDERS)}: "
            "training needs the DejaVu fonts "
            "(Debian: fonts-dejavu-core and fonts-dejavu-extra)"
        )
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _kinds(
    rng: random.Random, count: int, background: str, distinct: bool
) -> tuple[list[str], list[str]]:
    free = [color for color in COLORS if color != background]
    if distinct or (rng.random() < 0.3 and count <= 5):
        return rng.sample(SHAPES, count), rng.sample(free, count)
    shapes = [rng.choice(SHAPES) for _ in range(count)]
    colors = [rng.choice(free) for _ in range(count)]
    style = rng.random()
    if style < 0.15:
        shapes = [shapes[0]] * count
    elif style < 0.27:
        colors = [colors[0]] * count
    elif style < 0.55 and count >= 3:
        pool = rng.sample(SHAPES, 2)
        shapes = [rng.choice(pool) for _ in range(count)]
    return shapes, colors


def _drawn_size(rng: random.Random, canvas: tuple[int, int]) -> tuple[int, int]:
    """A size that the processor resizes to `canvas`: itself, or some pixels off."""
    width, height = canvas[0] + rng.randint(-13, 13), canvas[1] + rng.randint(-13, 13)
    if rng.random() < 0.6 or fitted_size(height, width) != (canvas[1], canvas[0]):
        return canvas
    return width, height


def near(rng: random.Random, color: str, spread: int) -> RGB:
    """A shade of a named colour, each channel up to `spread` off."""
    red, green, blue = (
        min(255, max(0, int(v + rng.uniform(-spread, spread)))) for v in COLORS[color]
    )
    return red, green, blue


def _noisy(rng: random.Random, image: Image.Image) -> Image.Image:
    """One picture in five gets a little sensor noise."""
    if rng.random() > 0.2:
        return image
    noise = np.random.default_rng(rng.randrange(2**32)).normal(
        0, rng.uniform(2, 8), (image.height, image.width, 3)
    )
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _paint_one(draw: ImageDraw.ImageDraw, thing: Thing, zoom: int, background: RGB) -> None:
    x, y, r = thing.x * zoom, thing.y * zoom, thing.radius * zoom
    if thing.shape in ("circle", "ring"):
        draw.ellipse([x - r, y - r, x + r, y + r], fill=thing.rgb)
        if thing.shape == "ring":
            hole = r * 0.55
            draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=background)
    else:
        draw.polygon(
            [(x + r * u, y + r * v) for u, v in _outline(thing.shape, thing.turn)], fill=thing.rgb
        )


def _outline(shape: str, turn: float) -> list[Point]:
    """Corner points of a shape of radius 1 around the origin."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        angles = [i * math.pi / 5 + turn for i in range(10)]
        return [(q * math.sin(a), -q * math.cos(a)) for q, a in zip(radii, angles, strict=True)]
    if shape == "cross":
        t = 0.34
        quarter = [(-t, -1.0), (t, -1.0), (t, -t), (1.0, -t), (1.0, t), (t, t)]
        return quarter + [(-u, -v) for u, v in quarter]
    assert shape == "heart", shape
    steps = [i * 2 * math.pi / 20 for i in range(20)]
    return [
        (
            math.sin(s) ** 3,
            -(13 * math.cos(s) - 5 * math.cos(2 * s) - 2 * math.cos(3 * s) - math.cos(4 * s))
            / 16.5,
        )
        for s in steps
    ]
