"""Grammars are tried in processes that may be ended, so that none of them can harm this one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

from mlx_qwenvl.errors import OptionError

TRIAL_S = 2.5  # seconds of computing; compiling it afterwards takes as long again
WALL = 2.0  # times as many seconds may pass, on a machine that has other work
START_S = 30.0  # seconds in which a process has to be ready on a busy machine
MOST_PROCESSES = 4
PROBE = Path(__file__).with_name("probe.py")


class Trials:
    """Processes that try grammars; they are started when needed, and one is kept.

    Args:
        states: That a grammar's lexer may have.
        seconds: Of computing that a grammar may take.
    """

    def __init__(self, states: int, seconds: float = TRIAL_S) -> None:
        self._states, self._seconds = states, seconds
        self._room = threading.Semaphore(MOST_PROCESSES)
        self._idle: list[_Process] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def try_out(self, text: str) -> str | None:
        """Try a grammar.

        Args:
            text: In llguidance's form.

        Returns:
            What is wrong with it in llguidance's words, "" for nothing, or None where it ended the
            process that tried it.

        Raises:
            OptionError: It took too long, or too many others are being tried.
        """
        if not self._room.acquire(timeout=WALL * self._seconds):
            raise OptionError("too many grammars are being compiled at once; try again")
        try:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is not None and process.has_died:
                process.end()
                process = None
            return self._ask(process or _Process(self._states, self._seconds), text)
        finally:
            self._room.release()

    def _ask(self, process: _Process, text: str) -> str | None:
        """What a process says, which is kept if it is the only one, and ended otherwise."""
        said = None
        try:
            said = process.ask(text)
            return None if said is None else str(said["error"])
        finally:
            with self._lock:
                is_kept = said is not None and not said["is_last"] and not self._idle
                if is_kept:
                    self._idle.append(process)
            if not is_kept:
                process.end()

    def close(self) -> None:
        """End the processes; more are started where more is asked."""
        with self._lock:
            _end_all(self._idle)


class _Process:
    """One process that runs `probe.py`."""

    def __init__(self, states: int, seconds: float) -> None:
        import llguidance

        self._seconds = seconds
        library = str(Path(llguidance.__file__).parents[1])
        self._popen = subprocess.Popen(
            [sys.executable, "-I", str(PROBE), library, str(seconds), str(states)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._in, self._out = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        ready = None
        with contextlib.suppress(OptionError):
            ready = self._line(START_S)
        if ready is None:
            self.end()
            raise OptionError(
                "no grammar can be compiled: the process that tries them is not there"
            )

    @property
    def has_died(self) -> bool:
        """Whether something ended it."""
        return self._popen.poll() is not None

    def ask(self, text: str) -> dict[str, object] | None:
        """What it says of a grammar, or None where it died of it.

        Raises:
            OptionError: It took too long; the process is of no use any more.
        """
        data = text.encode()
        with contextlib.suppress(BrokenPipeError):
            _write(self._in, struct.pack("<I", len(data)) + data)
        said = self._line(WALL * self._seconds)
        if said is None and self._popen.wait() == -signal.SIGPROF:
            raise self._too_slow
        return said

    @property
    def _too_slow(self) -> OptionError:
        return OptionError(
            f"the grammar takes more than {self._seconds:g} s to compile; make it simpler"
        )

    def _line(self, seconds: float) -> dict[str, object] | None:
        deadline = time.monotonic() + seconds
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._too_slow
                piece = os.read(self._out, 65536)
                if not piece:
                    return None
                data += piece
        said: dict[str, object] = json.loads(data)
        return said

    def end(self) -> None:
        """End the process, at once."""
        self._popen.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._popen.wait()


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _end_all(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()
