"""How long a running answer is silent while a picture of a megapixel is prefilled for another."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.cases import MEGAPIXEL
from benchmarks.server_load.asking import ask, client, longest_gap, picture, question, words
from benchmarks.server_load.serving import Served

HEAD_START = 16  # pieces of the running answer before the picture comes
HEARD_AFTER = 4  # pieces of it after the picture's first token
QUESTION_WORDS = 10
PICTURE_TOKENS = 4  # of the answer about the picture
TOKENS = 1900  # of the running answer, which nobody hears to its end; the demo's context holds them
PATIENCE_S = 60.0  # for the pieces before and after


def measure(served: Served, model: str, number: int) -> dict[str, Any]:
    """Stream one answer, and ask about a picture meanwhile.

    Args:
        served: The server, which is held still before and after.
        model: What it calls its model.
        number: Of the round; each has its own picture.
    """
    served.go_on()
    try:
        return asyncio.run(_measure(served.url, model, number))
    finally:
        served.hold()


async def _measure(url: str, model: str, number: int) -> dict[str, Any]:
    async with client(url) as connected:
        text = words(f"stall {number}", QUESTION_WORDS)
        small = question(model, text, PICTURE_TOKENS, picture(number + 1, (84, 84)))
        await ask(connected, small)  # warms up
        moments: list[float] = []
        running = asyncio.create_task(ask(connected, question(model, text, TOKENS), moments))
        await _until(lambda: len(moments) >= HEAD_START or running.done())
        begin = time.perf_counter()
        body = question(model, text, PICTURE_TOKENS, picture(number, MEGAPIXEL))
        told = await ask(connected, body)
        was_running = not running.done()
        most = len(moments) + HEARD_AFTER
        await _until(lambda: len(moments) >= most or running.done())
        running.cancel()
        await asyncio.wait({running})
    if len(moments) < HEAD_START:
        raise RuntimeError("the running answer did not get under way")
    meanwhile = sum(begin < moment < told.moments[0] for moment in moments)
    return {
        "stall_s": longest_gap(moments, begin, told.moments[0]),
        # Pieces of one read come at one moment, so not the median.
        "usual_gap_s": (moments[HEAD_START - 1] - moments[0]) / (HEAD_START - 1),
        "picture_first_s": told.first_s,
        "pieces_meanwhile": meanwhile,
        "was_running": was_running,
    }


async def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so() and time.monotonic() < end:
        await asyncio.sleep(0.005)


def table(entries: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the longest of all rounds, and medians."""
    lines = [
        "| model | server | rounds | longest stall, s | median of rounds, s | usual gap, ms "
        "| pieces meanwhile | the picture's first token, s | still running after it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, row in dict.fromkeys((e["model"], e["row"]) for e in entries):
        mine = [e for e in entries if (e["model"], e["row"]) == (model, row)]
        stalls = [e["stall_s"] for e in mine]
        gap = 1e3 * statistics.median(e["usual_gap_s"] for e in mine)
        first = statistics.median(e["picture_first_s"] for e in mine)
        pieces = statistics.median(e["pieces_meanwhile"] for e in mine)
        ran = sum(e["was_running"] for e in mine)
        lines.append(
            f"| {model} | {row} | {len(mine)} | {max(stalls):.3g} "
            f"| {statistics.median(stalls):.3g} | {gap:.3g} | {pieces:.0f} | {first:.3g} "
            f"| {ran} of {len(mine)} |"
        )
    return lines
