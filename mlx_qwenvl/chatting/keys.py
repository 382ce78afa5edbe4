"""Keys that are pressed while an answer is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys are not echoed into the answer; they wait for the next prompt, Ctrl-D among them."""
    try:
        import termios

        keys = sys.stdin.fileno()
        before = termios.tcgetattr(keys)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield
        return
    silent = [*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]
    termios.tcsetattr(keys, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)
