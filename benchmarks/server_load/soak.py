"""A thousand requests of all kinds, with people who leave: is each answer right, is all given back?

Right is what a fresh server says to the same requests, one after the other and never in pieces.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from benchmarks.server_load import answers
from benchmarks.server_load.asking import client, events
from benchmarks.server_load.kinds import KINDS, MODEL, Request, pool
from benchmarks.server_load.serving import Served, descriptors, resident_bytes, threads

ASKED_AGAIN = 4  # times that each request of the pool comes
LONG, LEAVING = 0.2, 0.6  # share of long requests in the crowd, and of those that are left
STREAMED = 0.5  # share of the others that are asked for in pieces
SETTLE_S, REPORT_S = 3.0, 30.0  # seconds of peace before a report, and to wait for one
OPTIONS = ("--model", MODEL, "--port", "{port}", "--strict-model")
ENDED = (0, -signal.SIGTERM)  # exit codes of a server that was asked to end
# How much more than before may be held once all is over. Pools make their threads when all others
# are busy, up to a bound, and keep them.
TOLERANCES = {
    "resident bytes": 32 * 2**20,
    "MLX's active bytes": 2**18,
    "threads": 8,
    "asyncio tasks": 0,
    "descriptors": 0,
    "temporary files": 0,
}


@dataclass(frozen=True)
class Ask:
    """A request as it is asked in the crowd.

    Attributes:
        number: Of the request in the pool.
        request: It.
        in_pieces: Whether a stream is asked for.
        leaves: "" or when the asker goes: "before", "waiting" or "decoding".
        patience_s: Until then, in seconds; for "decoding", events of the stream.
    """

    number: int
    request: Request
    in_pieces: bool = False
    leaves: str = ""
    patience_s: float = 0.0


@dataclass(frozen=True)
class Soak:
    """What was found.

    Attributes:
        asked: How many requests of each kind.
        left: How many askers went, by when.
        alone: What a fresh server said that it should not have, one line for each.
        wrong: What differed from that, likewise.
        before: What the server held after it had seen every request once.
        after: What it held at the end.
        seconds: That the crowd took.
    """

    asked: Counter[str]
    left: Counter[str]
    alone: list[str]
    wrong: list[str]
    before: dict[str, int | None]
    after: dict[str, int | None]
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether every answer was right and everything is given back."""
        return not self.alone + self.wrong and all(self.given_back(name) for name in TOLERANCES)

    def given_back(self, name: str) -> bool:
        """Whether no more is held than before, but for the tolerance."""
        before, after = self.before[name], self.after[name]
        return before is None or after is None or after <= before + TOLERANCES[name]

    def as_entry(self) -> dict[str, Any]:
        """For JSON."""
        names = ("asked", "left", "alone", "wrong", "before", "after", "seconds")
        return {name: getattr(self, name) for name in names} | {"is_right": self.is_right}

    def table(self) -> list[str]:
        """Lines of Markdown."""
        total, gone = sum(self.asked.values()), sum(self.left.values())
        lines = [
            f"{total} requests in {self.seconds:.1f} s; {gone} left, "
            f"{total - gone - len(self.wrong)} answered right, {len(self.wrong)} wrong.\n",
            "| kind | asked |",
            "|---|---|",
            *(f"| {kind} | {count} |" for kind, count in self.asked.items()),
            *(f"| left: {moment} | {count} |" for moment, count in self.left.items()),
            "\n| held | before | after | may grow by | given back |",
            "|---|---|---|---|---|",
        ]
        for name, more in TOLERANCES.items():
            told = "yes" if self.given_back(name) else "NO"
            lines.append(f"| {name} | {self.before[name]} | {self.after[name]} | {more} | {told} |")
        return [*lines, *self.alone[:20], *self.wrong[:20]]


def run(place: Path, count: int, at_once: int, seed: int) -> Soak:
    """Ask everything of two servers.

    Args:
        place: Where logs are kept.
        count: Requests of the crowd.
        at_once: How many wait for an answer at a time.
        seed: Of all that is drawn.
    """
    requests = pool(seed, max(len(KINDS), count // ASKED_AGAIN))
    served = Served([sys.executable, "-m", "server", *OPTIONS], place / "soak-sequence.log")
    try:
        plain = [Ask(number, request) for number, request in enumerate(requests)]
        expected = [said or "" for said in asyncio.run(_all(served.url, plain, 1))]
    finally:
        served.close()
    alone = [
        f"alone, {ask.request.kind}: {said[:160]}"
        for ask, said in zip(plain, expected, strict=True)
        if not said.startswith(f"{ask.request.status} ")
    ]
    wrong = []
    with TemporaryDirectory() as temporary:
        report, own = Path(temporary, "report.json"), Path(temporary, "tmp")
        own.mkdir()
        module = "benchmarks.server_load.watched"
        command = [sys.executable, "-m", module, str(report), *OPTIONS]
        served = Served(command, place / "soak-crowd.log", {"TMPDIR": str(own)})
        try:
            asyncio.run(_all(served.url, plain, at_once))
            before = _held(served, report, own)
            drawn = random.Random(seed)
            crowd = [_ask(drawn, requests) for _ in range(count)]
            begin = time.perf_counter()
            heard = asyncio.run(_all(served.url, crowd, at_once))
            seconds = time.perf_counter() - begin
            after = _held(served, report, own)
            heard += asyncio.run(_all(served.url, plain[:at_once], 1))
            crowd += plain[:at_once]
        finally:
            code = served.close()
    if code not in ENDED:
        wrong.append(f"the server ended with {code}")
    for ask, said in zip(crowd, heard, strict=True):
        if said is not None and said != expected[ask.number]:
            pieces = "in pieces" if ask.in_pieces else "whole"
            wrong.append(
                f"{ask.request.kind}, {pieces}: {said[:160]} instead of "
                f"{expected[ask.number][:160]}"
            )
    left = Counter(a.leaves for a, said in zip(crowd, heard, strict=True) if said is None)
    asked = Counter(ask.request.kind for ask in crowd)
    return Soak(asked, left, alone, wrong, before, after, seconds)


def _ask(drawn: random.Random, requests: Sequence[Request]) -> Ask:
    number = drawn.randrange(len(requests))
    if drawn.random() < LONG:
        number = drawn.choice([n for n, request in enumerate(requests) if request.is_long])
    request = requests[number]
    in_pieces = request.streams and drawn.random() < STREAMED
    if not request.is_long or drawn.random() > LEAVING:
        return Ask(number, request, in_pieces)
    leaves = drawn.choice(("before", "waiting", "decoding"))
    most = {"before": 0.004, "waiting": 0.25, "decoding": 40.0}[leaves]
    return Ask(number, request, in_pieces or leaves == "decoding", leaves, most * drawn.random())


async def _all(url: str, asks: Sequence[Ask], at_once: int) -> list[str | None]:
    """What is said to each, or None where the asker left before it was all said."""
    waiting = iter(enumerate(asks))
    heard: list[str | None] = [None] * len(asks)
    async with client(url) as connected:

        async def asker() -> None:
            for index, ask in waiting:
                heard[index] = await _one(connected, ask)

        await asyncio.gather(*(asker() for _ in range(at_once)))
    return heard


async def _one(connected: httpx2.AsyncClient, ask: Ask) -> str | None:
    most_events = int(ask.patience_s) if ask.leaves == "decoding" else None
    patience = ask.patience_s if ask.leaves in ("before", "waiting") else None
    try:
        return await asyncio.wait_for(_hear(connected, ask, most_events), patience)
    except asyncio.TimeoutError:
        return None
    except (httpx2.HTTPError, answers.Broken, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


async def _hear(connected: httpx2.AsyncClient, ask: Ask, most_events: int | None) -> str | None:
    path, body = ask.request.path, ask.request.body
    if not ask.in_pieces:
        response = await connected.post(path, json=body)
        return f"{response.status_code} {answers.whole(path, response.json())}"
    body = body | {"stream": True}
    if path.endswith("/completions"):
        body["stream_options"] = {"include_usage": True}
    async with connected.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return f"{response.status_code} {answers.whole(path, response.json())}"
        said = []
        async for event in events(response):
            said.append(event)
            if most_events is not None and len(said) > most_events:
                return None
    return f"200 {answers.in_pieces(path, said)}"


def _held(served: Served, report: Path, temporary: Path) -> dict[str, int | None]:
    """What a server holds after a moment of peace."""
    time.sleep(SETTLE_S)
    report.unlink(missing_ok=True)
    os.kill(served.pid, signal.SIGUSR1)
    end = time.monotonic() + REPORT_S
    while not report.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"the server told nothing for {REPORT_S:.0f} s")
        time.sleep(0.05)
    told = json.loads(report.read_text(encoding="utf-8"))
    return {
        "resident bytes": resident_bytes(served.pid),
        "MLX's active bytes": told["active_bytes"],
        "threads": threads(served.pid),
        "asyncio tasks": told["tasks"],
        "descriptors": descriptors(served.pid),
        "temporary files": sum(len(files) for _, _, files in os.walk(temporary)),
        "bytes that the stores had kept": told["stores_bytes"],
        "Python's objects": told["objects"],
    }
