"""Where the time of one decode step of the embedded model goes; nearly all of it is the host's.

    python -m benchmarks.host_time [--steps 400]

    build       making the step's graph in Python, nothing computed
    dispatch    `mx.async_eval`: handing the graph's primitives to MLX's worker
    wait        until the worker is done, which works from the first primitive on
    a token     the same in a row, the graph of a token being made while the one before is computed
    of stream   a token of `QwenVL.stream`: with drawing, text, stop texts and chunks

Medians in milliseconds, and the number of primitives. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

from mlx_qwenvl import load

# isort: split
import mlx.core as mx
import numpy as np

from mlx_qwenvl.models.model import Model

PROMPT_TOKENS = 64
QUESTION = "Count from one to one hundred in words, please."


def parts(model: Model, steps: int) -> dict[str, float]:
    """Milliseconds of a step's parts, one behind the other."""
    cache = model.make_cache()
    mx.eval(model(mx.zeros((1, PROMPT_TOKENS), mx.int32), cache))
    taken: dict[str, list[float]] = {"build": [], "dispatch": [], "wait": []}
    token = mx.array([5])
    for _ in range(steps):
        moments = [time.perf_counter()]
        following = mx.argmax(model(token[None], cache)[:, -1], axis=-1)
        moments.append(time.perf_counter())
        mx.async_eval(following)
        moments.append(time.perf_counter())
        mx.eval(following)
        moments.append(time.perf_counter())
        for name, (begin, end) in zip(taken, pairwise(moments), strict=True):
            taken[name].append(1e3 * (end - begin))
        for layer in cache:
            layer.trim(1)
    return {name: statistics.median(values) for name, values in taken.items()}


def in_a_row(model: Model, steps: int) -> float:
    """Milliseconds of a token where the next graph is made while one is computed."""
    cache = model.make_cache()
    logits = model(mx.zeros((1, PROMPT_TOKENS), mx.int32), cache)[:, -1]
    current = mx.argmax(logits, axis=-1)
    mx.eval(current)
    moments = []
    for _ in range(steps):
        following = mx.argmax(model(current[None], cache)[:, -1], axis=-1)
        mx.async_eval(following)
        mx.eval(current)
        moments.append(time.perf_counter())
        current = following
    return _median_step(moments)


def primitives(model: Model) -> int:
    """Primitives of one step, views included."""
    cache = model.make_cache()
    mx.eval(model(mx.zeros((1, PROMPT_TOKENS), mx.int32), cache))
    count = 0

    def note(event: dict[str, object]) -> None:
        nonlocal count
        count += event["type"] == "primitive"

    mx.export_function(note, lambda token: model(token, cache), mx.zeros((1, 1), mx.int32))
    return count


def _median_step(moments: Sequence[float]) -> float:
    gaps = [end - begin for begin, end in pairwise(moments)]
    return 1e3 * statistics.median(gaps[2:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--steps", type=int, default=400)
    steps = p.parse_args(argv).steps
    vlm = load("demo")
    vlm.end_ids = frozenset()
    parts(vlm.model, steps)  # warms up
    found: dict[str, float] = {
        "primitives": primitives(vlm.model),
        **parts(vlm.model, steps),
        "a token": in_a_row(vlm.model, steps),
    }
    stream = vlm.stream(QUESTION, temperature=0, max_tokens=steps, cache=False, speculation=False)
    found["of stream"] = _median_step([time.perf_counter() for _ in stream])
    for name, value in found.items():
        print(f"{name:12}{value:.3f}" if isinstance(value, float) else f"{name:12}{value}")
    print(json.dumps({name: float(np.round(value, 4)) for name, value in found.items()}))


if __name__ == "__main__":
    main()
