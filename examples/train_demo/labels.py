"""What each vision cell of a picture shows: targets of the auxiliary losses.

A cell is one merged vision token, 28 x 28 px of the resized picture, in raster order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from examples.train_demo.boxes import bins
from examples.train_demo.scenes import CELL, COLORS, SHAPES, Picture

CHARACTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLOR_NAMES: Final = tuple(COLORS)

# Columns of the label table; every class 0 means "none".
SHAPE, COLOR, CENTRES, CHAR_1, CHAR_2, CHAR_3, ROW, COLUMN, CELL_ROW, CELL_COLUMN = range(10)
BACKGROUND, TEXT_COLOR, CHAR_INDEX, PICTURE = range(10, 14)
# Edges of the cell's thing: hundredths of the picture + 1, and steps from the cell's centre + 1.
BOX: Final = slice(14, 18)
EDGES: Final = slice(18, 22)
N_COLUMNS: Final = 22
EDGE_STEP: Final = 2  # px
EDGE_REACH: Final = 40  # steps to either side


@dataclass(frozen=True)
class CellLabels:
    """table: [cells, N_COLUMNS] int64; cells_of, centre_of: cell indices per thing or glyph."""

    table: np.ndarray
    cells_of: tuple[tuple[int, ...], ...]
    centre_of: tuple[int, ...]


def label_cells(picture: Picture, height: int, width: int, number: int = 0) -> CellLabels:
    """Label the cells of a picture resized to height x width; `number` is its place in the row."""
    rows, columns = height // CELL, width // CELL
    sx, sy = width / picture.image.width, height / picture.image.height
    table = np.zeros((rows, columns, N_COLUMNS), np.int64)
    table[..., CELL_ROW] = np.minimum(np.arange(rows)[:, None], 7)
    table[..., CELL_COLUMN] = np.minimum(np.arange(columns)[None], 7)
    table[..., BACKGROUND] = COLOR_NAMES.index(picture.background) + 1
    table[..., PICTURE] = number
    nearest = np.full((rows, columns), np.inf)
    owner = np.full((rows, columns), -1)
    centre_y = (np.arange(rows)[:, None] + 0.5) * CELL
    centre_x = (np.arange(columns)[None] + 0.5) * CELL
    centres = []
    for index, thing in enumerate(picture.things):
        x, y, radius = thing.x * sx, thing.y * sy, thing.radius * (sx + sy) / 2
        distance = np.hypot(centre_x - x, centre_y - y)
        i, j = min(rows - 1, int(y // CELL)), min(columns - 1, int(x // CELL))
        mine = (distance < radius * 0.9 + 7) & (distance < nearest)
        mine[i, j] = True
        nearest[mine] = distance[mine]
        nearest[i, j] = -1.0
        owner[mine] = index
        table[mine, SHAPE] = SHAPES.index(thing.shape) + 1
        table[mine, COLOR] = COLOR_NAMES.index(thing.color) + 1
        table[mine, ROW] = thing.row + 1
        table[mine, COLUMN] = thing.column + 1
        box = np.array(picture.box(index))
        table[mine, BOX] = np.array(bins(picture.box(index))) + 1
        centres_of = np.stack(np.broadcast_arrays(centre_x, centre_y), -1)[mine]
        steps = (box * (width, height, width, height) - np.tile(centres_of, 2)) / EDGE_STEP
        table[mine, EDGES] = np.clip(steps.round(), -EDGE_REACH, EDGE_REACH) + EDGE_REACH + 1
        table[i, j, CENTRES] = min(3, table[i, j, CENTRES] + 1)
        centres.append(i * columns + j)
    cells = [
        tuple(np.flatnonzero(owner.reshape(-1) == i).tolist()) for i in range(len(picture.things))
    ]
    for index, (character, x, y) in enumerate(picture.glyphs):
        i = min(rows - 1, max(0, int(y * sy // CELL)))
        j = min(columns - 1, max(0, int(x * sx // CELL)))
        for slot in (CHAR_1, CHAR_2, CHAR_3):
            if table[i, j, slot] == 0:
                table[i, j, slot] = CHARACTERS.find(character) + 1
                break
        if table[i, j, CHAR_INDEX] == 0 and index < 6:
            table[i, j, CHAR_INDEX] = index + 1
        table[i, j, TEXT_COLOR] = COLOR_NAMES.index(picture.text_color) + 1
        centres.append(i * columns + j)
        cells.append((i * columns + j,))
    return CellLabels(table.reshape(-1, N_COLUMNS), tuple(cells), tuple(centres))


def merge_order(grid: np.ndarray) -> np.ndarray:
    """Flatten a patch map [2 rows, 2 columns] in the order of the vision tower: by 2 x 2 blocks."""
    height, width = grid.shape
    return grid.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(-1)


def patchify(
    pixels: np.ndarray, patch: int = 14, merge: int = 2
) -> tuple[np.ndarray, tuple[int, int]]:
    """Flat patches [patches, 1176] uint8 of pixels [H, W, 3] uint8, and (rows, columns)."""
    height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    blocks = pixels.transpose(2, 0, 1).reshape(
        channels, rows // merge, merge, patch, columns // merge, merge, patch
    )
    flat = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, channels, 1, patch * patch)
    # A still picture fills both frames of a temporal patch.
    return np.ascontiguousarray(np.repeat(flat, 2, axis=2)).reshape(rows * columns, -1), (
        rows,
        columns,
    )


def patch_positions(rows: int, columns: int) -> np.ndarray:
    """(row, column) of every patch [patches, 2] in the order of the vision tower."""
    grid = np.indices((rows, columns))
    return np.stack([merge_order(grid[0]), merge_order(grid[1])], axis=1)


def disc(rows: int, columns: int, x: float, y: float, radius: float, step: int) -> np.ndarray:
    """Mask [rows, columns] of grid points whose centre lies within `radius` of (x, y)."""
    dy = (np.arange(rows)[:, None] + 0.5) * step - y
    dx = (np.arange(columns)[None] + 0.5) * step - x
    return np.hypot(dx, dy) < max(radius, math.sqrt(2) * step / 2)
