"""A server around the tiny model, and one around an engine that says what a test wants."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.reply import Chunk, FinishReason, Timings, TokenLogprob, Usage
from mlx_qwenvl.inputs.image import ImagePatches
from server.app import create_app
from server.call import Call
from server.engine import Engine
from server.settings import Settings
from server.ticket import Heard, Ticket
from tests.golden.tiny import picture

HERE = "http://127.0.0.1"
PICTURE = picture(41, 84, 84)
TIMINGS = Timings(0.5, 0.25, 0.75, 1.0, 2.0, 8.0, 2.0)


@pytest.fixture(scope="package")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="package")
def served(thread: ThreadPoolExecutor, tiny_folder: Path) -> QwenVL:
    return thread.submit(load, tiny_folder, dtype="float32").result()


@pytest.fixture(scope="package")
def client(served: QwenVL) -> Iterator[TestClient]:
    settings = Settings()
    with connected_to(Engine(lambda: served, settings, "tiny")) as connected:
        yield connected


@contextmanager
def connected_to(engine: Engine) -> Iterator[TestClient]:
    """A client of a server around an engine, once its model is loaded."""
    with TestClient(create_app(engine, engine.settings), HERE) as client:
        while engine.state == "loading":
            time.sleep(0.001)
        yield client


class Scripted(Engine):
    """An engine that says what it is told to and notes what it was asked.

    Args:
        vlm: For its vocabulary.
        pieces: What is heard; a number among them is a wait in seconds, an error is raised.
        settings: The operator's.
    """

    def __init__(
        self,
        vlm: QwenVL,
        pieces: Sequence[Heard | float | Exception],
        settings: Settings,
    ) -> None:
        super().__init__(lambda: vlm, settings, "tiny")
        self.pieces = pieces
        self.calls: list[Call] = []
        self.tickets: list[Ticket] = []

    async def submit(self, call: Call) -> Ticket:
        self.calls.append(call)

        async def chunks() -> AsyncIterator[Heard]:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, (int, float)):
                    await asyncio.sleep(piece)
                else:
                    yield piece

        self.tickets.append(Ticket(chunks()))
        return self.tickets[-1]


Script = Callable[..., tuple[TestClient, Scripted]]


@pytest.fixture
def script(served: QwenVL) -> Iterator[Script]:
    """Makes a client of a server that says certain pieces."""
    opened = ExitStack()

    def make(
        *pieces: Heard | float | Exception, settings: Settings | None = None
    ) -> tuple[TestClient, Scripted]:
        settings = settings or Settings()
        engine = Scripted(served, pieces, settings)
        return opened.enter_context(connected_to(engine)), engine

    with opened:
        yield make


def says(text: str, index: int = 0, logprobs: tuple[TokenLogprob, ...] = ()) -> Heard:
    return Heard(index, Chunk(text, (7,), logprobs))


def ends(
    reason: FinishReason = "stop",
    index: int = 0,
    rest: str = "",
    pictures: tuple[ImagePatches, ...] = (),
) -> Heard:
    usage = Usage(prompt_tokens=12, image_tokens=4, cached_tokens=6, completion_tokens=5)
    last = Chunk(rest, finish_reason=reason, usage=usage, timings=TIMINGS, pictures=pictures)
    return Heard(index, last)


def data_url(image: Image.Image = PICTURE) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def body(url: str | None = None, **fields: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    question = {"role": "user", "content": content}
    return {"messages": [question], "max_tokens": 8, "temperature": 0} | fields


def events(text: str) -> list[Any]:
    """What a stream holds, its comments left out."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    told = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in told]
