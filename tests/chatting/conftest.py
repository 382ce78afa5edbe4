"""What the tests of the chat share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from PIL import Image

from mlx_qwenvl import Chunk, QwenVL, load
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.stopping import hear
from mlx_qwenvl.chatting.talk import Talk
from tests.command_lines import ROOT
from tests.faults import make_endless

IMAGES = ROOT / "examples" / "images"


@pytest.fixture(scope="session")
def talker() -> QwenVL:
    """The embedded model, which keeps what it computed."""
    return load("demo", dtype="float32")


@pytest.fixture
def session(talker: QwenVL) -> Session:
    """A new conversation with the embedded model."""
    return Session(talker, {})


class Recorder:
    """A screen that remembers what it was told to show."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.answers: list[str] = []
        self.read: list[str] = []
        self.pictures: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)

    def reading(self, names: Sequence[str]) -> AbstractContextManager[None]:
        self.read += names
        return nullcontext()

    def advance(self) -> None:
        return None

    def answer(self, chunks: Iterator[Chunk]) -> bool:
        self.answers.append("")

        def show(chunk: Chunk) -> None:
            self.answers[-1] += chunk.text

        return hear(chunks, show)

    def picture(self, picture: Image.Image) -> None:
        self.pictures.append(picture.size)


@pytest.fixture
def screen() -> Recorder:
    """A screen that remembers."""
    return Recorder()


@pytest.fixture
def talk(session: Session, screen: Recorder, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A conversation as people type it, among the example pictures."""
    monkeypatch.chdir(IMAGES)
    return Talk(session, screen, load, can_edit=True)


@pytest.fixture
def endless(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model whose answers never end."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "endless"))
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    make_endless(folder, ends if isinstance(ends, list) else [ends])
    return folder
