"""Real processes on this machine that MLX's ring connects, as `mlx.launch` starts them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
SILENCE_S = 3
START_S = 90.0  # that a busy machine may take for what is done within seconds elsewhere


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on.

    They lie below those that systems give to connections, one of which would take them before the
    processes that are started do; and at random, for other tests look for some at the same time.
    """
    while True:
        base = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError):
            for port in range(base, base + count):
                socket.create_server(("127.0.0.1", port)).close()
            return list(range(base, base + count))


@contextmanager
def ranks(
    size: int,
    command: Sequence[str],
    folder: Path,
    *others: Sequence[str],
    stdin: int = subprocess.DEVNULL,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start one process a rank; whatever is left of them at the end of the block is killed.

    Args:
        size: How many.
        command: Arguments of Python.
        folder: For the file of hosts.
        others: Arguments of Python for the ranks from 1 on, where they are to differ.
        stdin: What they have for standard input.
    """
    ports = free_ports(size + 1)[:size]  # the one above is where they meet
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    commands = [command, *(others or [command] * (size - 1))]
    started = []
    try:
        for rank, arguments in enumerate(commands):
            environment = os.environ | {
                "MLX_RANK": str(rank),
                "MLX_HOSTFILE": str(hosts),
                "PYTHONPATH": str(ROOT),
                "MLX_QWENVL_RANK_SILENCE": str(SILENCE_S),
                "PYTHONFAULTHANDLER": "1",  # what one that never ends is at, see `ends`
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    env=environment,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


def ends(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """How each of them ends: exit code, stdout and stderr; where none comes, all its stacks."""
    deadline, out = time.monotonic() + START_S, []
    for process in processes:
        try:
            told, errors = process.communicate(timeout=max(deadline - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            told, errors = process.communicate()
        out.append((process.returncode, told, errors))
    return out
