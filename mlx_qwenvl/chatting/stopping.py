"""Ctrl-C while an answer is computed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mlx_qwenvl.engine.reply import Chunk


@dataclass
class Stop:
    """Whether Ctrl-C was pressed.

    Attributes:
        waits: Whether it waits for the end of a token, so that no word is half shown and kept.
        is_asked: Whether it was pressed meanwhile.
    """

    waits: bool = False
    is_asked: bool = False


@contextmanager
def _stoppable() -> Iterator[Stop]:
    """Ctrl-C interrupts at once, or waits where asked to; a second one does not wait."""
    stop = Stop()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield stop
        return

    def press(number: int, frame: FrameType | None) -> None:
        if not stop.waits or stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def hear(chunks: Iterator[Chunk], show: Callable[[Chunk], None]) -> bool:
    """Show an answer as it comes, and tell whether Ctrl-C ended it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed before the first word, or twice.
    """
    with _stoppable() as stop:
        try:
            for chunk in chunks:
                stop.waits = True
                show(chunk)
                if stop.is_asked:
                    break
        finally:
            if isinstance(chunks, Generator):
                chunks.close()
    return stop.is_asked
