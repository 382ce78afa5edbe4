"""A server that ends tells everybody: who waits for an answer, who comes, and who reads the log."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.clients.asking import said
from tests.command_lines import ROOT
from tests.server.cases import CHAT

START_S = 60.0  # in which the process answers, in seconds
TOKENS = 400  # of an answer that is long enough to be interrupted
LONG = {"messages": said("What can you see?"), "temperature": 0, "max_tokens": TOKENS}
LONG |= {"stream": True, "logit_bias": {"900": -100, "902": -100}}
DRAIN_S, END_S = 1, 3  # of the process under test; the second is its own
BUSY_S = 10  # that a busy machine may take in addition, in seconds
ENDLESS: dict[str, Any] = LONG | {"max_tokens": 1900, "n": 8}
HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % CHAT.encode()


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


def _asks(port: int, *pieces: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    for piece in pieces:
        sock.sendall(piece)
    return sock


def _ending(response: httpx2.Response) -> bool:
    told = response.json()["error"]
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    return bool(told["code"] == "unavailable" and told["message"] == "the server is ending")


def test_when_the_time_to_end_is_over_everybody_is_told_and_the_log_has_no_trace() -> None:
    with (
        process("--drain", str(DRAIN_S), "--max-concurrency", "8") as (running, client, port),
        ThreadPoolExecutor(2) as pool,
    ):
        plain = pool.submit(client.post, CHAT, json=ENDLESS | {"stream": False})
        stream = pool.submit(client.post, CHAT, json=ENDLESS)  # queued behind the other
        body = json.dumps(ENDLESS | {"logprobs": True, "top_logprobs": 20}).encode()
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        with (
            _asks(port, HEAD, length, body),  # and reads nothing
            _asks(port, HEAD, length, body[:5]),  # and does not finish
            _asks(port, HEAD[:20]),
            _asks(port),
        ):
            while client.get("/health").json()["open_calls"] < 3:
                assert not plain.done() and not stream.done()
            begin = time.monotonic()
            os.kill(running.pid, signal.SIGTERM)
            while (health := client.get("/health")).status_code == 200:
                assert time.monotonic() - begin < DRAIN_S
            assert health.json()["status"] == "draining"
            assert _ending(client.post(CHAT, json=LONG))
            assert _ending(plain.result())
            *_, last = [line for line in stream.result().text.splitlines() if line]
            assert json.loads(last.removeprefix("data: "))["error"]["message"] == (
                "the server is ending"
            )
            assert running.wait(START_S) == 0
            assert time.monotonic() - begin < DRAIN_S + END_S + BUSY_S
        assert running.stderr is not None
        assert running.stderr.read().splitlines() == [
            f"mlx-qwenvl serves demo at http://127.0.0.1:{port}/v1",
            "SIGTERM: ending; once more ends at once",
        ]
    socket.create_server(("127.0.0.1", port)).close()


def test_a_server_that_nobody_asks_ends_soon_after_a_signal() -> None:
    with process() as (running, client, _):
        assert client.get("/health").status_code == 200  # its connection stays open
        begin = time.monotonic()
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(START_S) == 0
        assert time.monotonic() - begin < END_S
