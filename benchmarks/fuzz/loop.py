"""Fuzzing of one target: mutate, run, keep what takes a new way, tell what breaks."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fuzz.coverage import Coverage
from benchmarks.fuzz.target import Target, Verdict, judge

GOOD, FRESH = 0.4, 0.2  # shares of inputs that are made of good ones and of the newest
NEWEST = 20  # inputs
MAX_CORPUS = 4000  # inputs


@dataclass
class Found:
    """What came of a while of fuzzing.

    Attributes:
        inputs: How many were run.
        seconds: They took.
        outcomes: How many of each kind.
        faults: Inputs that broke something, by what broke; the smallest of each.
        slowest_s: Seconds of the slowest input.
        corpus: Inputs that were kept.
        edges: Ways from line to line that were taken, 0 where that was not looked at.
        lines: Lines that were reached, likewise.
    """

    inputs: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, bytes] = field(default_factory=dict)
    slowest_s: float = 0.0
    corpus: int = 0
    edges: int = 0
    lines: int = 0


def fuzz(
    target: Target,
    seed: int,
    most: Callable[[Found], bool],
    coverage: Coverage | None = None,
    note: Callable[[bytes], None] = lambda data: None,
) -> Found:
    """Run mutated inputs until there are enough.

    Args:
        target: What is fuzzed.
        seed: Of all that is drawn.
        most: Tells when to stop.
        coverage: What to be guided by; without it only seeds are mutated.
        note: Takes each input before it is run: one that ends the process is known then.
    """
    drawn = random.Random(seed)
    corpus = target.seeds()
    good = len(corpus)
    found = Found()
    begin = time.perf_counter()

    def run(data: bytes) -> bool:
        note(data)
        if coverage is None:
            verdict, is_new = judge(target, data), False
        else:
            verdict, is_new = coverage.of(lambda: judge(target, data))
        _count(found, verdict, data)
        return is_new

    with no_stderr():
        for data in list(corpus):
            run(data)
        while not most(found):
            data = target.mutate(drawn, _chosen(drawn, corpus, good), drawn.choice(corpus))
            if run(data) and len(corpus) < MAX_CORPUS:
                corpus.append(data)
            found.seconds = time.perf_counter() - begin
    found.corpus = len(corpus)
    if coverage is not None:
        found.edges, found.lines = len(coverage.edges), coverage.lines
    return found


def _chosen(drawn: random.Random, corpus: list[bytes], good: int) -> bytes:
    """Changes of changes are refused early, so good inputs are gone back to again and again."""
    at = drawn.random()
    return drawn.choice(
        corpus[:good] if at < GOOD else corpus[-NEWEST:] if at < GOOD + FRESH else corpus
    )


def _count(found: Found, verdict: Verdict, data: bytes) -> None:
    found.inputs += 1
    found.outcomes[verdict.outcome] = found.outcomes.get(verdict.outcome, 0) + 1
    found.slowest_s = max(found.slowest_s, verdict.seconds)
    known = found.faults.get(verdict.fault)
    if verdict.fault and (known is None or len(data) < len(known)):
        found.faults[verdict.fault] = data


def keep(folder: Path, target: str, data: bytes) -> Path:
    """Save an input that broke something, so that tests can run it ever after."""
    file = folder / target / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


@contextmanager
def no_stderr() -> Iterator[None]:
    """Decoders in C print what they think of a file."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
