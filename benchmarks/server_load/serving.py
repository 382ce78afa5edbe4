"""A server's process: started, held still while another is measured, and looked at from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from benchmarks.peers.talk import ROOT, environ

PATIENCE = 120.0  # seconds to come up
LAST_WORDS = 300  # characters of a failed process's log
OPENBLAS = {"LD_PRELOAD": "libopenblas.so.0"}


@dataclass(frozen=True)
class Row:
    """A server in one of the ways it is run.

    Attributes:
        note: What a reader has to know.
        arguments: Of `python`; `{folder}` and `{port}` are put in.
        peer: Whether another Python has it.
        environment: Variables on top.
    """

    note: str
    arguments: tuple[str, ...]
    peer: bool = False
    environment: dict[str, str] = field(default_factory=dict)


_OURS = ("-m", "server", "--model", "{folder}", "--port", "{port}", "--max-concurrency")
ROWS = {
    "ours": Row("up to 16 answers side by side", (*_OURS, "16")),
    "ours-in-turn": Row("one answer after the other", (*_OURS, "1")),
    "mlx-vlm": Row(
        "its own server, with OpenBLAS preloaded",
        (
            "-m",
            "mlx_vlm.server",
            "--model",
            "{folder}",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--log-level",
            "WARNING",
        ),
        peer=True,
        environment=OPENBLAS,
    ),
}


class Served:
    """A server that runs.

    Args:
        command: With `{port}` where the port belongs.
        log: Where what it says goes.
        environment: Variables on top of this process's.

    Raises:
        RuntimeError: It did not come up.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in command],
                cwd=ROOT,
                env=environ(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, row: Row, folder: Path, log: Path, peer_python: str) -> Served:
        """Start a row's server on a model."""
        python = peer_python if row.peer else sys.executable
        arguments = [part.replace("{folder}", str(folder)) for part in row.arguments]
        return cls([python, *arguments], log, row.environment)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def hold(self) -> None:
        """Let it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> int:
        """End it; gives its exit code, which is -9 where it did not end by itself."""
        self.go_on()
        self._process.terminate()
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        with httpx2.Client(base_url=self.url, trust_env=False) as client:
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    said = self._log.read_text(encoding="utf-8", errors="replace").strip()
                    raise RuntimeError(f"the server ended: {said[-LAST_WORDS:]}")
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(0.1)
        raise RuntimeError(f"the server was not ready after {PATIENCE:.0f} s")


def resident_bytes(pid: int) -> int | None:
    """What a process holds of memory, where the kernel tells (Linux)."""
    return _status(pid, "VmRSS:", 1024)


def threads(pid: int) -> int | None:
    """How many threads a process has (Linux)."""
    return _status(pid, "Threads:", 1)


def descriptors(pid: int) -> int | None:
    """How many files and sockets a process holds open (Linux)."""
    folder = f"/proc/{pid}/fd"
    return len(os.listdir(folder)) if os.path.exists(folder) else None


def _status(pid: int, name: str, unit: int) -> int | None:
    file = Path(f"/proc/{pid}/status")
    if not file.exists():
        return None
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(x.split()[1]) * unit for x in lines if x.startswith(name)), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
