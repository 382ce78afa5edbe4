"""Pictures in files, drawn with the demo's own generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from examples.train_demo.scenes import draw_shapes

COUNT = "How many shapes are there?"
NUMBERS = ("one", "two", "three", "four")  # of shapes, in the demo's words
DrawnIn = Callable[..., list[Path]]


def drawn(seed: int) -> Image.Image:
    """A picture of one to four shapes."""
    return draw_shapes(random.Random(2**41 + seed), 1 + seed % len(NUMBERS)).image


@pytest.fixture
def draw_in(tmp_path: Path) -> DrawnIn:
    """Draws pictures into files of a folder and gives their paths, in the order of their names."""

    def draw(count: int, folder: str = "photos", *, seed: int = 0) -> list[Path]:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{index:03}.png" for index in range(count)]
        for index, path in enumerate(paths):
            drawn(seed + index).save(path)
        return paths

    return draw
