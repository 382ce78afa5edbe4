"""The server as a process: it drains on a signal, ends at once on a second, and frees its port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.clients.asking import said
from tests.command_lines import ROOT
from tests.server.cases import CHAT

START_S = 60.0  # in which the process answers, in seconds
TOKENS = 400  # of an answer that is long enough to be interrupted
LONG = {"messages": said("What can you see?"), "temperature": 0, "max_tokens": TOKENS}
LONG |= {"stream": True, "logit_bias": {"900": -100, "902": -100}}


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client, int]]:
    """`python -m server` with the embedded model, once it is well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "server", "--model", "demo", "--port", str(port), *arguments]
    with (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            end = time.monotonic() + START_S
            while True:
                assert running.poll() is None and time.monotonic() < end, running.poll()
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                time.sleep(0.05)
            yield running, client, port
        finally:
            running.kill()


def _is_free(port: int) -> bool:
    with socket.create_server(("127.0.0.1", port)):
        return True


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_a_stream_finish(sent: signal.Signals) -> None:
    with process() as (running, client, port):
        with client.stream("POST", CHAT, json=LONG) as response:
            lines = response.iter_lines()
            heard = [next(lines)]
            os.kill(running.pid, sent)
            heard += list(lines)
        assert heard[-1] == "" or heard[-1] == "data: [DONE]"
        assert "data: [DONE]" in heard and any('"length"' in line for line in heard)
        assert running.wait(START_S) == 0
        assert running.stderr is not None and "Traceback" not in running.stderr.read()
    assert _is_free(port)


def test_the_second_signal_ends_it_at_once() -> None:
    with process() as (running, client, port):
        endless: dict[str, Any] = LONG | {"max_tokens": 1900}
        with (
            pytest.raises(httpx2.TransportError),
            client.stream("POST", CHAT, json=endless) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            os.kill(running.pid, signal.SIGTERM)
            time.sleep(0.2)
            os.kill(running.pid, signal.SIGTERM)
            list(lines)
        assert running.wait(10) == 128 + signal.SIGTERM
    assert _is_free(port)
