"""Pictures in files, drawn with the demo's own generator, and what the demo says alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.train_demo.scenes import draw_shapes
from mlx_qwenvl import QwenVL

COUNT = "How many shapes are there?"
NUMBERS = ("one", "two", "three")  # of shapes, in the demo's words
GREEDY: Any = {"temperature": 0, "max_tokens": 24}


@dataclass(frozen=True)
class Gallery:
    """A folder of pictures.

    Attributes:
        folder: The folder.
        paths: Its pictures by name.
        numbers: Of shapes in each, as a word.
        alone: The demo's greedy answer to `COUNT` about each, asked by itself from nothing.
    """

    folder: Path
    paths: tuple[Path, ...]
    numbers: tuple[str, ...]
    alone: tuple[str, ...]


def drawn(seed: int) -> Image.Image:
    """A picture of one to three shapes."""
    return draw_shapes(random.Random(2**41 + seed), 1 + seed % len(NUMBERS)).image


@pytest.fixture(scope="session")
def gallery(demo: QwenVL, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Twelve pictures; nobody writes to them."""
    folder = tmp_path_factory.mktemp("gallery")
    paths = tuple(folder / f"{seed:02}.png" for seed in range(12))
    for seed, path in enumerate(paths):
        drawn(seed).save(path)
    plain: Any = GREEDY | {"cache": False, "speculation": False}
    alone = tuple(demo.generate(COUNT, images=[path], **plain).text for path in paths)
    return Gallery(folder, paths, NUMBERS * 4, alone)
