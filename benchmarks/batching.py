"""Decoding together against one after another, what one alone pays, and how long streams stall.

    python -m benchmarks.batching [--model demo] [--tokens 64] [--rounds 3]

    together   tokens per second of 1, 2, 4, ... answers that are decoded together, and how many
               times as many as one at a time through `QwenVL.stream`
    alone      a single question through the scheduler against `QwenVL.stream`: tokens per second
               and time to the first token, in turns
    stall      longest and median gap between two tokens of a running answer while a picture of a
               megapixel is read beside it, and how long that takes with and without it

Medians of rounds that take turns. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from mlx_qwenvl import QwenVL, load

# isort: split
import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.options import read_options
from mlx_qwenvl.engine.scheduler import Job, Scheduler
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import question_messages

SIZES = (1, 2, 4, 8, 16)
QUESTION = "Count from one to one hundred in words, please."
MEGAPIXEL = (1024, 1024)
PLAIN = {"temperature": 0, "cache": False, "speculation": False}


def add(
    vlm: QwenVL, scheduler: Scheduler, text: str, images: Sequence[ImageSource] = (), **options: Any
) -> Job:
    """Queue a question."""
    read = read_options(PLAIN | options, vlm.sampling)
    turns = question_messages(text, images, None, None)
    return scheduler.add(vlm.prompt(turns, read), read, Stopwatch())


def together(vlm: QwenVL, count: int, tokens: int) -> float:
    """Tokens per second of `count` answers that run together, prompts read before."""
    scheduler = vlm.scheduler(count)
    for index in range(count):
        # The others wait for the last one's prompt.
        add(vlm, scheduler, f"{index}. {QUESTION}", max_tokens=tokens + 64 * count)
    while scheduler.running < count:
        scheduler.step()
    scheduler.step()
    begin, heard = time.perf_counter(), 0
    while heard < count * tokens:
        heard += len(scheduler.step())
    return heard / (time.perf_counter() - begin)


def streamed(vlm: QwenVL, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of `QwenVL.stream`, and tokens per second after it."""
    begin = time.perf_counter()
    moments = [
        time.perf_counter()
        for _ in vlm.stream(QUESTION, max_tokens=tokens, **PLAIN)  # type: ignore[arg-type]
    ]
    return moments[0] - begin, (tokens - 1) / (moments[tokens - 1] - moments[0])


def scheduled(vlm: QwenVL, scheduler: Scheduler, tokens: int) -> tuple[float, float]:
    """The same through a scheduler."""
    begin, moments = time.perf_counter(), []
    add(vlm, scheduler, QUESTION, max_tokens=tokens)
    while not scheduler.is_idle:
        if scheduler.step():
            moments.append(time.perf_counter())
    return moments[0] - begin, (tokens - 1) / (moments[tokens - 1] - moments[0])


def stall(vlm: QwenVL) -> dict[str, float]:
    """Gaps of a stream while a picture is read, in seconds."""
    noise = np.random.default_rng(0).integers(0, 256, (*MEGAPIXEL, 3), dtype=np.uint8)
    budget = {"max_pixels": 2 * MEGAPIXEL[0] * MEGAPIXEL[1], "max_tokens": 1}

    def read() -> float:
        job = add(vlm, scheduler, "What is this?", [noise], **budget)
        begin = last = time.perf_counter()
        while not job.is_over:
            events = scheduler.step()
            now = time.perf_counter()
            if any(event.job is running for event in events):
                gaps.append(now - last)
                last = now
        return time.perf_counter() - begin

    scheduler = vlm.scheduler()
    gaps: list[float] = []
    running: Job | None = None
    read()
    alone_s = read()
    running = add(vlm, scheduler, QUESTION, max_tokens=10_000)
    for _ in range(32):
        scheduler.step()
    read()
    gaps.clear()
    beside_s = read()
    scheduler.cancel(running)
    return {
        "longest_gap_s": max(gaps),
        "median_gap_s": statistics.median(gaps),
        "gaps": len(gaps),
        "read_alone_s": alone_s,
        "read_beside_s": beside_s,
    }


def in_turns(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """Results of each measure, one of each a round."""
    results: list[list[Any]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, kept in zip(measures, results, strict=True):
            kept.append(measure())
            mx.clear_cache()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", default="demo")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--quantize")
    p.add_argument("--no-stall", action="store_true")
    arguments = p.parse_args(argv)
    vlm, tokens = load(arguments.model, quantize=arguments.quantize), arguments.tokens
    vlm.end_ids = frozenset()
    scheduler = vlm.scheduler()
    found: dict[str, Any] = {"model": arguments.model, "quantize": arguments.quantize}
    streamed(vlm, tokens)  # warms up
    alone, one, *crowds = in_turns(
        arguments.rounds,
        lambda: streamed(vlm, tokens),
        lambda: scheduled(vlm, scheduler, tokens),
        *(lambda count=count: together(vlm, count, tokens) for count in SIZES),
    )
    base = statistics.median(speed for _, speed in alone)
    found["stream"] = base
    print(f"stream      {base:8.1f} tokens/s")
    for count, speeds in zip(SIZES, crowds, strict=True):
        speed = statistics.median(speeds)
        found[f"together {count}"] = speed
        print(f"together {count:<3}{speed:8.1f} tokens/s  {speed / base:.2f} x")
    pairs = list(zip(alone, one, strict=True))
    found["alone_speed"] = statistics.median(b[1] / a[1] for a, b in pairs)
    found["alone_first"] = statistics.median(b[0] / a[0] for a, b in pairs)
    print(f"alone       {found['alone_speed']:.2f} x tokens/s, {found['alone_first']:.2f} x first")
    if not arguments.no_stall:
        found |= stall(vlm)
        print(
            f"stall       {found['longest_gap_s']:.3f} s at most, {found['median_gap_s']:.3f} s "
            f"median; read in {found['read_beside_s']:.2f} s, alone {found['read_alone_s']:.2f} s"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
