"""How long a running answer is silent while a picture of a megapixel is prefilled for another."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise
from typing import Any

from benchmarks.peers.cases import MEGAPIXEL
from benchmarks.server_load.asking import Heard, ask, client, picture, question, words
from benchmarks.server_load.serving import Served

HEAD_START = 16  # pieces of the running answer before the picture comes
QUESTION_WORDS = 10
PICTURE_TOKENS = 4  # of the answer about the picture
TOKENS = {"demo": 600, "0.1b": 200, "0.1b-4bit": 200}  # of the running answer, at first
MOST_TOKENS = 1500  # which the demo's context holds


def measure(served: Served, model: str, tokens: int, number: int) -> dict[str, Any]:
    """Stream one answer, and ask about a picture meanwhile.

    Args:
        served: The server, which is held still before and after.
        model: What it calls its model.
        tokens: Of the running answer.
        number: Of the round; each has its own picture.
    """
    served.go_on()
    try:
        while True:
            found = asyncio.run(_measure(served.url, model, tokens, number))
            if found["was_running"] or tokens >= MOST_TOKENS:
                return found
            tokens, number = min(MOST_TOKENS, 2 * tokens), number + 1000
    finally:
        served.hold()


async def _measure(url: str, model: str, tokens: int, number: int) -> dict[str, Any]:
    async with client(url) as connected:
        text = words(f"stall {number}", QUESTION_WORDS)
        small = question(model, text, HEAD_START, picture(number + 1, (84, 84)))
        await ask(connected, small)  # warms up

        running = asyncio.create_task(ask(connected, question(model, text, tokens)))
        # As long as the start of an answer takes, twice over.
        heard = await ask(connected, question(model, text + " again", HEAD_START))
        await asyncio.sleep(heard.moments[-1] - heard.asked)
        begin = time.perf_counter()
        body = question(model, text, PICTURE_TOKENS, picture(number, MEGAPIXEL))
        told = await ask(connected, body)
        end = told.moments[0]
        stream = await running
    return {
        "stall_s": stream.longest_gap(begin, end),
        "median_gap_s": _median_gap(stream),
        "picture_first_s": told.first_s,
        "was_running": stream.moments[0] < begin and stream.moments[-1] > end,
        "tokens": stream.tokens,
    }


def _median_gap(stream: Heard) -> float:
    return statistics.median(b - a for a, b in pairwise(stream.moments))


def table(entries: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the longest of all rounds, and medians."""
    lines = [
        "| model | server | rounds | longest stall, s | median of rounds, s "
        "| usual gap, ms | the picture's first token, s | still running after it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, row in dict.fromkeys((e["model"], e["row"]) for e in entries):
        mine = [e for e in entries if (e["model"], e["row"]) == (model, row)]
        stalls = [e["stall_s"] for e in mine]
        gap = 1e3 * statistics.median(e["median_gap_s"] for e in mine)
        first = statistics.median(e["picture_first_s"] for e in mine)
        ran = sum(e["was_running"] for e in mine)
        lines.append(
            f"| {model} | {row} | {len(mine)} | {max(stalls):.3g} "
            f"| {statistics.median(stalls):.3g} | {gap:.3g} | {first:.3g} | {ran} of {len(mine)} |"
        )
    return lines
