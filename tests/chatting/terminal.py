"""A real pseudo terminal with a screen: what a person would type and see."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pyte

from tests.command_lines import ROOT

PATIENCE = 60.0  # seconds to wait for something to be seen, on a busy machine
HISTORY = 2000  # lines that scrolled away


class Terminal:
    """The chat in a terminal.

    Args:
        arguments: Of the command line.
        cwd: Where it runs.
        env: Changes to the environment.
        size: (columns, rows).
        code: Python to run instead of the command line.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
        code: str | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(*size, history=HISTORY, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.status: int | None = None
        run = ["-c", code] if code else ["-m", "mlx_qwenvl.chat"]
        command = [sys.executable, *run, *map(str, arguments)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            **(env or {}),
        }
        ours = ("NO_COLOR", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID", "TMUX")
        for name in (*ours, "COLUMNS", "LINES"):  # which would hide this terminal's own size
            if name not in (env or {}):
                environment.pop(name, None)
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(sys.executable, command, environment)
        self.resize(*size)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.end)

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, size)
        self.screen.resize(rows, columns)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.end, keys.encode())

    def read(self, patience: float = 0.05) -> bool:
        """Take what comes within a while; False at the end."""
        ready, _, _ = select.select([self.end], [], [], patience)
        if not ready:
            return True
        try:
            data = os.read(self.end, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if b"\x1b[6n" in data:  # asks where the cursor is
            place = f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R"
            os.write(self.end, place.encode())
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """All lines, with those that scrolled away."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return above + [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All lines as one text."""
        return "\n".join(self.lines).rstrip()

    def wait(self, seen: str | Callable[[], bool]) -> None:
        """Wait until a text is there, or something holds."""
        end = time.monotonic() + PATIENCE
        holds = seen if callable(seen) else lambda: seen in self.text
        while not holds():
            assert time.monotonic() < end, f"waited in vain for {seen!r}:\n{self.text}"
            if not self.read() and not holds():
                raise AssertionError(f"it ended before {seen!r} came:\n{self.text}")

    def wait_for_prompt(self) -> None:
        """Wait until the last line is an empty prompt."""
        self.wait(lambda: self.text.endswith("\n>") and self.screen.cursor.x == 2)

    def ask(self, line: str) -> None:
        """Type a line at a prompt and wait for the next one."""
        self.wait_for_prompt()
        before = self.text.count("\n>")
        self.type(f"{line}\r")
        self.wait(lambda: self.text.count("\n>") > before and self.text.endswith("\n>"))

    def leave(self) -> int:
        """Wait for the end and give the exit code."""
        end = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        return self.status
