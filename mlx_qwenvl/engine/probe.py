"""A process of its own that tries a stranger's grammar before we do.

A grammar can take minutes, gigabytes, or a stack so deep that the process ends without a word. Here
that harms nobody: `trial.py` starts this file, hands it one grammar after another and ends it where
it takes too long. It stands alone: the standard library and llguidance, found by the path given.

Each question is 4 bytes of length and a grammar in llguidance's form; each reply is one line of
JSON: {"error": "" or llguidance's words, "is_last": whether this process has grown too large}.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

COMPILE_STACK = 8 * 2**20  # bytes; whoever compiles it after us has more
WALK_STACK = 512 * 2**10  # bytes; what a thread has on macOS, where answers are followed
WALK_BYTES = 24  # of text to follow
STEP_S = 0.25  # of computing that the mask of one token may take
MOST_BYTES = 2**30  # of address space; macOS does not hold us to it
MOST_RESIDENT_BYTES = 512 * 2**20  # with one grammar
LAST_BYTES = 256 * 2**20  # resident, after which a new process is better
END = 256  # the token behind the 256 bytes


class _Bytes:
    """A vocabulary of single bytes: what a grammar costs hardly depends on the tokens."""

    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END,)
    tokens = (*(bytes([byte]) for byte in range(END)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main(library: str, seconds: float, states: int) -> None:
    """Answer questions until there are no more.

    Args:
        library: The folder that llguidance is in.
        seconds: Of computing that one grammar may take; the system ends us after them, also where
            nobody waits any more.
        states: That a lexer may have.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    sys.path.insert(0, library)
    import llguidance

    tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))
    limits = llguidance.LLParserLimits(max_lexer_states=states, verbose_errors=False)

    def compiled(grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(tokens, grammar, log_level=0, limits=limits)

    questions, replies = sys.stdin.buffer, sys.stdout.buffer
    _say(replies, "", is_last=False)  # ready
    is_last = False
    while not is_last and (head := questions.read(4)):
        grammar = questions.read(struct.unpack("<I", head)[0]).decode()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing; its signal ends us
        error = _fault(compiled, grammar)
        signal.setitimer(signal.ITIMER_PROF, 0)
        is_last = _resident_bytes() > LAST_BYTES
        _say(replies, error, is_last=is_last)


def _fault(compiled: Callable[[str], Any], grammar: str) -> str:
    """What is wrong with a grammar, or nothing."""
    matcher = _in_thread(COMPILE_STACK, lambda: compiled(grammar))
    if matcher is None:
        return "is not valid"
    if matcher.is_error():
        return str(matcher.get_error())
    error = str(_in_thread(WALK_STACK, lambda: _walk(matcher)))
    return "memory limit" if _resident_bytes() > MOST_RESIDENT_BYTES else error


def _walk(matcher: Any) -> str:
    """Follow some text that the grammar allows; give what went wrong."""
    chance = random.Random(0)
    for _ in range(WALK_BYTES):
        begin = time.thread_time()
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        if time.thread_time() - begin > STEP_S:
            return "step limit"
        if matcher.is_error():
            return str(matcher.get_error())
        allowed = [token for token in range(END) if bits >> token & 1]
        if not allowed:
            return "" if bits else "NoExtension"
        if not matcher.consume_token(chance.choice(allowed)):
            return str(matcher.get_error())
    return ""


def _resident_bytes() -> int:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux the largest size that is reported includes that of whoever started us.
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _in_thread(stack: int, work: Callable[[], Any]) -> Any:
    """What `work` gives, or None where it fails, in a thread with a stack of so many bytes."""
    results: list[Any] = []
    threading.stack_size(stack)
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0] if results else None


def _say(replies: BinaryIO, error: str, *, is_last: bool) -> None:
    replies.write(json.dumps({"error": error[:2000], "is_last": is_last}).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
