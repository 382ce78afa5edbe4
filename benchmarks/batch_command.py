"""Many pictures through `mlx-qwenvl batch` against one by one.

    python -m benchmarks.batch_command [--model demo] [--count 64] [--rounds 3]

    loop      `QwenVL.generate` in a loop, in this process
    together  `ask_all` on the same pictures, in this process; stores are emptied before each
    batch     the command, from its start to its end
    commands  `mlx-qwenvl generate` for one picture after another

Pictures are the demo's own drawings. Answers are greedy, and those of `together` have to be those
of `loop`. Medians of rounds that take turns; the last line is one JSON document. The load of the
machine is told because it decides about the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.train_demo.scenes import draw_shapes
from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.batching import ask_all

QUESTIONS = ("How many shapes are there?", "Describe the image.")
GREEDY: Any = {"temperature": 0, "max_tokens": 64}
OPTIONS = ("--temperature", "0", "--max-tokens", "64")


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def command(name: str, *arguments: str) -> None:
    """Run one of ours as a process."""
    line = [sys.executable, "-m", f"mlx_qwenvl.{name}", *arguments]
    subprocess.run(line, check=True, capture_output=True)


def measure(
    vlm: QwenVL, paths: Sequence[str], question: str, running: int, rounds: int, commands: int
) -> dict[str, Any]:
    """Seconds for all pictures in each way, and the ratios to the loop."""
    alone: dict[object, str] = {}
    beside: dict[object, str] = {}
    tokens = 0

    def loop() -> None:
        nonlocal tokens
        vlm.stores.make_room(2**63)
        replies = {path: vlm.generate(question, images=[path], **GREEDY) for path in paths}
        tokens = sum(reply.usage.completion_tokens for reply in replies.values())
        alone.update({path: reply.text for path, reply in replies.items()})

    def together() -> None:
        vlm.stores.make_room(2**63)
        for answer in ask_all(vlm, paths, question, max_running=running, **GREEDY):
            assert answer.reply is not None, answer.error
            beside[answer.image] = answer.reply.text

    def batch() -> None:
        asked = ("--model", vlm.name, "--prompt", question, "--max-running", str(running))
        command("batch", *paths, *asked, *OPTIONS)

    def generate() -> None:
        for path in paths[:commands]:
            asked = ("--model", vlm.name, "--image", path, "--prompt", question)
            command("generate", *asked, *OPTIONS)

    ways: dict[str, Callable[[], None]] = {"loop": loop, "together": together, "batch": batch}
    if commands:
        ways["commands"] = generate
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if number:  # the first round warms up
                found[name].append(seconds(way))
            elif name in ("loop", "together"):
                way()
    median = {name: statistics.median(took) for name, took in found.items()}
    if commands:
        median["commands"] *= len(paths) / commands
    return {
        "question": question,
        "pictures": len(paths),
        "tokens_an_answer": tokens / len(paths),
        "equal": sum(alone[path] == beside[path] for path in paths),
        "seconds": median,
        "together_against_loop": median["loop"] / median["together"],
        "batch_against_loop": median["loop"] / median["batch"],
        "batch_against_commands": median["commands"] / median["batch"] if commands else None,
        "load": os.getloadavg()[0],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", default="demo")
    p.add_argument("--count", type=int, default=64, help="pictures")
    p.add_argument("--running", type=int, default=8, help="answers side by side")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--commands", type=int, default=16, help="pictures that commands are run for")
    arguments = p.parse_args(argv)
    vlm = load(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{index:04}.png") for index in range(arguments.count)]
        for index, path in enumerate(paths):
            draw_shapes(random.Random(2**41 + index), 1 + index % 3).image.save(path)
        results = [
            measure(vlm, paths, q, arguments.running, arguments.rounds, arguments.commands)
            for q in QUESTIONS
        ]
    for result in results:
        print(f"{result['question']}  ({result['tokens_an_answer']:.1f} tokens an answer)")
        for name, took in result["seconds"].items():
            print(f"  {name:<9}{took:8.2f} s  {result['pictures'] / took:7.1f} pictures/s")
        print(
            f"  together is {result['together_against_loop']:.2f} times as fast as the loop, "
            f"{result['equal']} of {result['pictures']} answers are equal; load "
            f"{result['load']:.1f}"
        )
    print(json.dumps({"model": arguments.model, "results": results}))


if __name__ == "__main__":
    main()
