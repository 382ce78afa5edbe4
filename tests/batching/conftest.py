"""Pictures in files, drawn with the demo's own generator, what the demo says alone, the command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.train_demo.scenes import draw_shapes
from mlx_qwenvl import QwenVL
from mlx_qwenvl.batch import main
from mlx_qwenvl.engine.scheduler import Scheduler

COUNT = "How many shapes are there?"
NUMBERS = ("one", "two", "three")  # of shapes, in the demo's words
Lines = list[dict[str, Any]]
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


class Batch:
    """Runs the command in this process.

    Attributes:
        folder: The current folder.
        err: What it said last.
        asked: Questions that the model was asked in the last run.
    """

    def __init__(self, folder: Path, captured: Callable[[], Any]) -> None:
        self.folder, self._captured = folder, captured
        self.err, self.asked = "", 0

    def __call__(self, *arguments: str | Path, code: int = 0) -> Lines:
        """Give what was printed, line by line."""
        self.asked = 0
        try:
            got = main([*map(str, arguments)])
        except SystemExit as exit:
            got = int(str(exit.code))
        printed = self._captured()
        self.err = printed.err
        assert got == code, printed.err
        assert "Traceback" not in printed.err and "\r" not in printed.err
        return [json.loads(line) for line in printed.out.splitlines()]

    def kept(self, *arguments: str | Path, code: int = 0, output: str = "a.jsonl") -> Lines:
        """Write to a file, and give all that is in it then."""
        assert self(*arguments, "--output", self.folder / output, code=code) == []
        return lines(self.folder / output)


def lines(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def by_name(entries: Lines) -> dict[str, str]:
    """Texts by the pictures' names; each may be there once."""
    assert len({entry["image"] for entry in entries}) == len(entries)
    return {Path(entry["image"]).name: entry["text"] for entry in entries}


@pytest.fixture
def batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Batch:
    monkeypatch.chdir(tmp_path)
    made, add = Batch(tmp_path, capsys.readouterr), Scheduler.add

    def counted(*arguments: Any, **options: Any) -> Any:
        made.asked += 1
        return add(*arguments, **options)

    monkeypatch.setattr(Scheduler, "add", counted)
    return made
