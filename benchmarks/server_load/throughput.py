"""Completion tokens a second and time to the first token, with 1 to 16 askers at a time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.server_load.asking import Heard, ask, client, question, words
from benchmarks.server_load.serving import Served

ASKERS = (1, 2, 4, 8, 16)
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Amount:
    """How much is asked.

    Attributes:
        words: Of a question.
        tokens: Of every answer.
        each: Questions of one asker, one after the other.
        least: Questions of a round in all, where few ask.
    """

    words: int
    tokens: int
    each: int
    least: int


AMOUNTS = {
    "demo": Amount(words=60, tokens=128, each=3, least=6),
    "0.1b": Amount(words=30, tokens=64, each=2, least=3),
    "0.1b-4bit": Amount(words=30, tokens=64, each=2, least=3),
}
QUICK = Amount(words=20, tokens=16, each=1, least=1)


def measure(served: Served, model: str, amount: Amount, askers: int, round_: int) -> dict[str, Any]:
    """Let so many ask at a time, each its next question once it has the answer.

    Args:
        served: The server, which is held still before and after.
        model: What it calls its model.
        amount: How much is asked.
        askers: How many ask.
        round_: Its number; no two rounds ask the same.
    """
    served.go_on()
    try:
        return asyncio.run(_measure(served.url, model, amount, askers, round_))
    finally:
        served.hold()


async def _measure(
    url: str, model: str, amount: Amount, askers: int, round_: int
) -> dict[str, Any]:
    count = max(amount.each, -(-amount.least // askers))
    async with client(url) as connected:

        async def asker(number: int) -> list[Heard]:
            heard = []
            for turn in range(count):
                text = words(f"{round_} {askers} {number} {turn}", amount.words)
                heard.append(await ask(connected, question(model, text, amount.tokens)))
            return heard

        warm = words(f"warm {round_} {askers}", amount.words)
        await ask(connected, question(model, warm, WARM_UP_TOKENS))
        begin = time.perf_counter()
        heard = [one for some in await asyncio.gather(*map(asker, range(askers))) for one in some]
        seconds = time.perf_counter() - begin
    for one in heard:
        if one.tokens != amount.tokens or one.finish != "length":
            raise RuntimeError(f"{one.tokens} tokens and {one.finish}, asked for {amount.tokens}")
    firsts = [one.first_s for one in heard]
    return {
        "answers": len(heard),
        "tokens_per_s": sum(one.tokens for one in heard) / seconds,
        "first_s": firsts,
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    if len(values) == 1:
        return values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[round(100 * share) - 1]


def table(entries: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: medians of the rounds, and ours by each other round by round."""
    lines = [
        "| model | askers | server | rounds | tokens/s | first token p50, s | p95, s "
        "| ours by it, tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((e["model"], e["askers"], e["row"]) for e in entries)
    rates: Mapping[tuple[Any, ...], float] = {
        (e["model"], e["askers"], e["row"], e["round"]): e["tokens_per_s"] for e in entries
    }
    for model, askers, row in keys:
        mine = [e for e in entries if (e["model"], e["askers"], e["row"]) == (model, askers, row)]
        firsts = [value for e in mine for value in e["first_s"]]
        pairs = [
            rates[model, askers, "ours", e["round"]] / e["tokens_per_s"]
            for e in mine
            if (model, askers, "ours", e["round"]) in rates
        ]
        rate = statistics.median(e["tokens_per_s"] for e in mine)
        by = f"{statistics.median(pairs):.3g}" if pairs else ""
        lines.append(
            f"| {model} | {askers} | {row} | {len(mine)} | {rate:.4g} "
            f"| {percentile(firsts, 0.5):.3g} | {percentile(firsts, 0.95):.3g} | {by} |"
        )
    return lines
