"""How long work will take, told on a terminal and nowhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Progress that nobody watches."""

    def begin(self, what: str, total: int, *, is_bytes: bool) -> None:
        """A stretch of work begins.

        Args:
            what: What is done.
            total: How much of it there is.
            is_bytes: Whether that is bytes, or things.
        """

    def advance(self, amount: int) -> None:
        """So much more is done."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing behind."""


class Bars(Progress):
    """A bar on stderr for every stretch."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, what: str, total: int, *, is_bytes: bool) -> None:
        """Replace the bar by a new one."""
        from tqdm import tqdm

        self._close()
        unit, divisor = ("B", 1000) if is_bytes else ("", 1)
        self._bar = tqdm(
            total=total, desc=what, unit=unit, unit_scale=is_bytes, unit_divisor=divisor
        )

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(amount)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar, so that it is not drawn over what is said next."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def on_terminal() -> Progress:
    """Bars where stderr is a terminal, else silence."""
    return Bars() if sys.stderr is not None and sys.stderr.isatty() else Progress()
