"""What is fuzzed, and what may never happen to it."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mlx_qwenvl.errors import QwenVLError

# Addresses of objects, places of files and traces: the insides of a program.
INSIDES = re.compile(
    r"0x[0-9a-fA-F]{6,}|site-packages|[\w/]+\.py\b|Traceback|(?:/(?:home|usr|tmp)/)"
)
MAX_MESSAGE = 1000  # characters of an error; it quotes at most a little of what came

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class Broken(Exception):
    """A target did what it must not; the text says what."""


class _TooSlow(BaseException):
    """Raised in the middle of a run; no handler of the code under test takes it."""


@dataclass(frozen=True)
class Target:
    """A piece of the program that takes bytes from strangers.

    Attributes:
        name: Of it, and of its folder of inputs.
        seeds: Gives good inputs to begin with.
        mutate: Makes an input of one, and of another to take parts from.
        run: Takes an input and tells the kind of outcome in a word or two.
        most_s: Seconds that an input may take.
        most_bytes: Memory that an input may take, as the process's peak tells.
        close: Lets go of what `run` has made for itself.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes, bytes], bytes]
    run: Callable[[bytes], str]
    most_s: float = 5.0
    most_bytes: int = 128 * 2**20
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Verdict:
    """What an input did.

    Attributes:
        outcome: A word or two.
        fault: What is wrong with that, or "".
        seconds: It took.
    """

    outcome: str
    fault: str
    seconds: float


def judge(target: Target, data: bytes) -> Verdict:
    """Run a target on an input; whatever happens is told, nothing is raised."""
    peak = peak_bytes(forget=True)
    begin = time.perf_counter()
    outcome, fault = "", ""
    try:
        with _no_longer_than(target.most_s):
            outcome = target.run(data)
    except QwenVLError as error:
        outcome = type(error).__name__
        fault = told_too_much(str(error), data)
    except Broken as error:
        outcome, fault = "broken", str(error)
    except _TooSlow:
        outcome, fault = "slow", f"takes longer than {target.most_s:g} s"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
        outcome = type(error).__name__
        fault = f"{outcome} at {where}: {str(error)[:200]}"
    seconds = time.perf_counter() - begin
    grown = peak_bytes() - peak
    if not fault and grown > target.most_bytes:
        # Without the figure, which differs from input to input: a fault is told once.
        fault = f"takes more than {target.most_bytes >> 20} MiB of memory"
    return Verdict(outcome, fault, seconds)


def told_too_much(message: str, data: bytes) -> str:
    """What is wrong with an error's text, or ""; what the input itself says may be quoted."""
    if not message or "\n" in message or len(message) > MAX_MESSAGE:
        return f"the message is empty, long or of several lines: {message[:200]!r}"
    found = INSIDES.search(message)
    if found and found[0].encode() not in data:
        return f"the message shows insides: {message[:200]!r}"
    return ""


def peak_bytes(*, forget: bool = False) -> int:
    """The most memory that this process has held, or 0 where nothing tells.

    Args:
        forget: Begin counting anew, where the kernel can (Linux).
    """
    if sys.platform.startswith("linux"):
        if forget:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(x.split()[1]) * 1024 for x in file if x.startswith("VmHWM:"))
    return 0 if resource is None else int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Ends Python code that goes on for too long; a decoder in C is ended from outside."""

    def stop(_: int, __: FrameType | None) -> None:
        raise _TooSlow

    if not hasattr(signal, "setitimer"):
        yield
        return
    former = signal.signal(signal.SIGALRM, stop)
    begin = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # Whoever had set the clock, as pytest does, is still woken.
        left = max(0.001, left - (time.monotonic() - begin)) if left else 0
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, left)
