"""Where typed lines come from: what a prompt has to do, and the plain one."""

from __future__ import annotations

import sys
from typing import Protocol

SIGN = "> "


class Prompt(Protocol):
    """What gives typed lines.

    Attributes:
        is_interactive: Whether a person sits there, who sees what goes wrong.
        can_edit: Whether a line can be given back to be changed.
    """

    is_interactive: bool
    can_edit: bool

    def read(self, draft: str | None) -> str | None:
        """The next line, or None at the end.

        Args:
            draft: What stands there already; None for nothing.
        """


class PlainPrompt:
    """Lines from standard input; on a terminal behind a prompt on stderr."""

    can_edit = False

    def __init__(self) -> None:
        self.is_interactive = sys.stdin is not None and sys.stdin.isatty()
        if sys.stdin is not None and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")

    def read(self, draft: str | None) -> str | None:
        """The next line, or None at the end; Ctrl-C begins it anew, and leaves when pressed twice.

        Args:
            draft: Nothing can be done with it here.
        """
        if sys.stdin is None:
            return None
        if not self.is_interactive:
            return _chomped(sys.stdin.readline())
        for _ in range(2):
            try:
                print(SIGN, end="", file=sys.stderr, flush=True)
                return _chomped(sys.stdin.readline())
            except KeyboardInterrupt:
                print("\nCtrl-C again leaves, as Ctrl-D does", file=sys.stderr)
        return None


def _chomped(line: str) -> str | None:
    return line.rstrip("\r\n") if line else None
