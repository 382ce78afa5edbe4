"""One streamed chat completion over loopback, and the moments at which its pieces came."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks.peers.cases import COARSE, WORDS

TIMEOUT = 600.0  # seconds for one answer, which may wait behind many others


@dataclass(frozen=True)
class Heard:
    """One answer.

    Attributes:
        asked: When it was asked for, by `time.perf_counter`.
        moments: When each piece of its text came.
        tokens: How many tokens the server says it has.
        finish: Why it ended.
        text: All of it.
    """

    asked: float
    moments: tuple[float, ...]
    tokens: int
    finish: str
    text: str

    @property
    def first_s(self) -> float:
        """Seconds to the first piece of text."""
        return self.moments[0] - self.asked


def client(url: str) -> httpx2.AsyncClient:
    """A client that keeps as many connections as there are askers."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits, trust_env=False)


def question(model: str, text: str, max_tokens: int, picture: str | None = None) -> dict[str, Any]:
    """The body of a streamed request with at most one picture, given as a data: URL."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture}})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content if picture else text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def longest_gap(moments: Sequence[float], begin: float, end: float) -> float:
    """Seconds of the longest silence of which a part lies between two moments."""
    gaps = [b - a for a, b in pairwise(moments) if b > begin and a < end]
    return max(gaps, default=0.0)


async def ask(
    connected: httpx2.AsyncClient, body: dict[str, Any], moments: list[float] | None = None
) -> Heard:
    """Ask and listen to the end.

    Args:
        connected: To the server.
        body: Of a streamed request.
        moments: Where to note when pieces come, for those who look on meanwhile.

    Raises:
        RuntimeError: The answer is an error, or it broke off.
    """
    moments = [] if moments is None else moments
    text, finish, tokens = "", "", 0
    asked = time.perf_counter()
    async with connected.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            said = (await response.aread()).decode("utf-8", "replace")
            raise RuntimeError(f"status {response.status_code}: {said[:200]}")
        async for event in events(response):
            if event.get("error"):
                raise RuntimeError(f"error in the stream: {event['error']}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices") or ():
                piece = choice["delta"].get("content")
                finish = choice.get("finish_reason") or finish
                if piece:
                    moments.append(time.perf_counter())
                    text += piece
    if not moments or not finish:
        raise RuntimeError("the stream ended without a text or a reason")
    return Heard(asked, tuple(moments), tokens, finish, text)


async def events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of a stream's events; comments and the closing mark are left out."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data != "[DONE]":
                yield json.loads(data)


def words(seed: str, count: int) -> str:
    """So many drawn words, other ones for each seed."""
    drawn = random.Random(seed)
    return " ".join(drawn.choice(WORDS) for _ in range(count))


def picture(number: int, size: tuple[int, int]) -> str:
    """A smooth random picture of its own for each number, as a data: URL."""
    width, height = size
    shape = (max(1, height // COARSE), max(1, width // COARSE), 3)
    coarse = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
