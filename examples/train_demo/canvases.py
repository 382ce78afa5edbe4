"""Dense canvases: many glyphs or many shapes at once, labelled per cell and per patch.

A scene with three shapes teaches the vision tower three shapes; a canvas of the same price teaches
thirty glyphs. Without them the tower learns colours but neither shapes nor characters in any
reasonable time.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from examples.train_demo import labels, scenes
from examples.train_demo.scenes import BACKGROUNDS, COLORS, SHAPES, TRAINED_FONTS, Picture, Thing

PATCH: Final = 14  # px
ALPHABET: Final = labels.CHARACTERS + "0123456789" * 3  # digits are read more often than letters
UNLABELLED: Final = -100
PIXELS_PER_BATCH: Final = 16 * 150 * 150
CANVASES: Final = (*scenes.SHAPE_CANVASES, ((140, 56), 4), ((112, 56), 4))


@dataclass(frozen=True)
class CanvasBatch:
    """Pictures of one size; patch_labels: [N, 3] character, shape, colour per patch, or -100."""

    pixels: Tensor
    patch_positions: Tensor
    groups: list[tuple[int, int]]
    cell_labels: Tensor
    patch_labels: Tensor


def batch(rng: random.Random) -> CanvasBatch:
    """Draw one batch: a third text canvases, a quarter shape canvases, the rest plain scenes."""
    weights = [weight for _, weight in CANVASES]
    width, height = rng.choices([size for size, _ in CANVASES], weights)[0]
    count = max(4, min(32, PIXELS_PER_BATCH // (width * height)))
    makers = (text_canvas, shape_canvas, scene)
    chances = (0.42, 0.2, 0.38) if height > 56 else (1, 0, 0)
    pixels, cells, patches = [], [], []
    for _ in range(count):
        picture, patch_map = rng.choices(makers, chances)[0](rng, width, height)
        array = scenes.fitted(picture.image)
        pixels.append(labels.patchify(array)[0])
        table = labels.label_cells(picture, height, width).table
        table[:, labels.CHAR_INDEX] = 0
        cells.append(table)
        patches.append(np.stack([labels.merge_order(layer) for layer in patch_map], 1))
    rows, columns = height // PATCH, width // PATCH
    return CanvasBatch(
        pixels=torch.from_numpy(np.concatenate(pixels)),
        patch_positions=torch.from_numpy(
            np.tile(labels.patch_positions(rows, columns), (count, 1))
        ),
        groups=[(count, rows * columns)],
        cell_labels=torch.from_numpy(np.concatenate(cells)),
        patch_labels=torch.from_numpy(np.concatenate(patches)),
    )


def picture(rng: random.Random, scene_share: float) -> Picture:
    """One picture to look at: shapes, or a line of random characters or of text to be asked for."""
    if rng.random() < scene_share:
        return scenes.draw_shapes(rng, rng.randint(1, 5))
    if rng.random() < 0.6:
        characters = labels.CHARACTERS[:10] if rng.random() < 0.5 else labels.CHARACTERS
        return scenes.draw_text(rng, "".join(rng.choices(characters, k=rng.randint(1, 5))))
    return scenes.draw_text(rng, scenes.random_text(rng))


def scene(rng: random.Random, width: int, height: int) -> tuple[Picture, np.ndarray]:
    """An ordinary picture of one to five shapes; its patches stay unlabelled."""
    count = rng.choices((1, 2, 3, 4, 5), (25, 25, 25, 12, 13))[0]
    picture = scenes.draw_shapes(rng, count, canvas=(width, height))
    return picture, np.full((3, height // PATCH, width // PATCH), UNLABELLED, np.int64)


def text_canvas(rng: random.Random, width: int, height: int) -> tuple[Picture, np.ndarray]:
    """Lines of random characters in several fonts, sizes and colours."""
    background = rng.choice(BACKGROUNDS)
    lightness = sum(COLORS[background]) / 3
    inks = [color for color, rgb in COLORS.items() if abs(sum(rgb) / 3 - lightness) > 70]
    image = Image.new("RGB", (width, height), scenes.near(rng, background, 8))
    draw = ImageDraw.Draw(image)
    rows, columns = height // PATCH, width // PATCH
    patch_map = np.zeros((3, rows, columns), np.int64)
    glyphs: list[tuple[str, float, float]] = []
    y: float = rng.randint(0, 14)
    ink = rng.choice(inks)  # one ink per canvas: a picture has one text colour
    while True:
        font = scenes.load_font(
            rng.choice(TRAINED_FONTS), rng.choice((rng.randint(20, 29), rng.randint(28, 44)))
        )
        x = rng.randint(0, 14)
        line = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 9)))
        while line and x + font.getlength(line) > width:
            line = line[:-1]
        if not line:
            break
        _, top, _, bottom = font.getbbox(line)
        tall = bottom - top
        if y + tall > height:
            break
        draw.text((x, y - top), line, font=font, fill=scenes.near(rng, ink, 10))
        for i, character in enumerate(line):
            left, right = x + font.getlength(line[:i]), x + font.getlength(line[: i + 1])
            glyphs.append((character, (left + right) / 2, y + tall / 2))
            r = slice(
                max(0, math.ceil((y - 8) / PATCH)), min(rows, int((y + tall - 6) // PATCH) + 1)
            )
            c = slice(
                max(0, math.ceil((left - 7) / PATCH)), min(columns, int((right - 7) // PATCH) + 1)
            )
            patch_map[0, r, c] = labels.CHARACTERS.index(character) + 1
            patch_map[2, r, c] = labels.COLOR_NAMES.index(ink) + 1
        y += max(28, tall + 3) + rng.randint(0, 10)
    return Picture(image, background, text_color=ink, glyphs=tuple(glyphs)), patch_map


def shape_canvas(rng: random.Random, width: int, height: int) -> tuple[Picture, np.ndarray]:
    """A grid of up to 4 x 4 shapes, some places left empty."""
    background = rng.choice(BACKGROUNDS)
    step = max(17.0, min(width, height) / rng.choice((2, 3, 3, 3, 4)))
    columns, rows = int(width // step), int(height // step)
    empty = rng.choice((0.2, 0.5, 0.8))
    things = []
    for i in range(rows):
        for j in range(columns):
            if rng.random() < empty:
                continue
            radius = max(6.5, rng.uniform(0.6, 0.97) * step / 2)
            free = max(0.0, step / 2 - radius)
            x = (j + 0.5) * width / columns + rng.uniform(-free, free)
            y = (i + 0.5) * height / rows + rng.uniform(-free, free)
            color = rng.choice([c for c in COLORS if c != background])
            things.append(
                Thing(
                    shape=rng.choice(SHAPES),
                    color=color,
                    row=min(2, int(3 * y / height)),
                    column=min(2, int(3 * x / width)),
                    x=x,
                    y=y,
                    radius=radius,
                    turn=rng.uniform(-0.25, 0.25),
                    rgb=scenes.near(rng, color, 14),
                )
            )
    image = scenes.paint(
        things, (width, height), scenes.near(rng, background, 8), rng.choice((1, 2, 3))
    )
    patch_map = np.zeros((3, height // PATCH, width // PATCH), np.int64)
    for thing in things:
        inside = labels.disc(
            height // PATCH, width // PATCH, thing.x, thing.y, thing.radius + 3, PATCH
        )
        patch_map[1][inside] = SHAPES.index(thing.shape) + 1
        patch_map[2][inside] = labels.COLOR_NAMES.index(thing.color) + 1
    return Picture(image, background, tuple(things)), patch_map
