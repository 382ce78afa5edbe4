"""While it runs: how far it is, on a terminal, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mlx_qwenvl.batching.run import Counts
from mlx_qwenvl.command import EXIT_INTERRUPTED

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
STOPPING = b"\nstopping; what is complete is written. Ctrl-C again leaves at once\n"


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Gives whether Ctrl-C was pressed, which ends nothing by itself; a second one ends all.

    Where Ctrl-C is ignored already, as in a shell's background, it stays so.
    """
    pressed: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return

    def press(number: int, frame: FrameType | None) -> None:
        if pressed:
            os._exit(EXIT_INTERRUPTED)
        pressed.append(number)
        if os.isatty(2):
            os.write(2, STOPPING)  # a stream may be in the middle of something

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress(total: int, unit: str, *, beside_lines: bool) -> Iterator[Callable[[Counts], None]]:
    """A bar on stderr where people look at it.

    Args:
        total: How many questions there are.
        unit: What is counted.
        beside_lines: Whether answers are written to stdout; on one terminal they would mix.
    """
    if not sys.stderr.isatty() or (beside_lines and sys.stdout.isatty()):
        yield lambda counts: None
        return
    from tqdm import tqdm

    # The speed is that of all that was computed: what is known takes no time, and so tells nothing.
    bar = tqdm(total=total, unit=f" {unit}", smoothing=0, bar_format=BAR, dynamic_ncols=True)

    def move(counts: Counts) -> None:
        bar.initial = counts.skipped + counts.repeated
        bar.update(counts.done - bar.n)

    try:
        yield move
    finally:
        bar.close()
