"""A server that ends tells everybody: who waits for an answer, who comes, and who reads the log."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from tests.server.cases import CHAT
from tests.server.test_process import LONG, START_S, process

DRAIN_S, END_S = 1, 3  # of the process under test; the second is its own
BUSY_S = 10  # that a busy machine may take in addition, in seconds
ENDLESS: dict[str, Any] = LONG | {"max_tokens": 1900, "n": 8}
HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % CHAT.encode()


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
