"""Command lines as people run them: another process, another folder, nothing read by chance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
SHAPES = ROOT / "examples" / "images" / "shapes.png"
GENERATE = ("-m", "mlx_qwenvl.generate")
PATIENCE = 100.0  # seconds; a command on a busy machine


@dataclass(frozen=True)
class Ran:
    """What a finished command left.

    Attributes:
        code: Exit code.
        out: Standard output.
        err: Standard error.
        seconds: Wall time.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def err_lines(self) -> list[str]:
        """Standard error line by line."""
        return self.err.splitlines()


def start(
    *arguments: str | Path,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.PIPE,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start this Python with arguments, in a folder that is not the checkout."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=cwd or tempfile.gettempdir(),
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )


def run(
    *arguments: str | Path,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run this Python to its end; without `stdin` standard input is empty."""
    begin = time.perf_counter()
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    with start(*arguments, stdin=source, cwd=cwd, env=env) as process:
        try:
            out, err = process.communicate(stdin, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    seconds = time.perf_counter() - begin
    return Ran(process.returncode, out.decode(), err.decode(), seconds)


def interrupted_while_loading(folder: Path, *arguments: str | Path) -> tuple[int, str, list[str]]:
    """What a command leaves that gets Ctrl-C while it reads a model's folder.

    Args:
        folder: The model's, whose config.json becomes a pipe that nobody writes to.
        arguments: Of this Python.

    Returns:
        Exit code, standard output, and standard error line by line.
    """
    config = folder / "config.json"
    config.unlink()
    os.mkfifo(config)
    with start(*arguments) as process:
        # A pipe can be opened for writing without waiting only once someone reads it.
        end = time.monotonic() + PATIENCE
        while True:
            try:
                held = os.open(config, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE)
    os.close(held)
    return process.returncode, out.decode(), errors.decode().splitlines()
