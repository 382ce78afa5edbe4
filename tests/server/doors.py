"""An application that tells what reached it, for tests of what stands before it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.guard import Guard
from server.listen import uvicorn_config
from server.settings import Settings
from tests.live import kept_loggers


class Echo:
    """Answers with the size of the body; `/fault` raises, `/endless` never stops writing.

    Attributes:
        seen: Method, path and body of each request that got in, in order.
        stopped: Set once a stream's reader was found to be gone.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.stopped = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{name}.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append((scope["method"], scope["path"], body))
        if scope["path"] == "/fault":
            raise RuntimeError(f"a fault with {body.decode()}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            self.stopped.set()
        answer = json.dumps({"bytes": len(body), "id": scope["state"]["request_id"]}).encode()
        await send({"type": "http.response.body", "body": answer})


@contextmanager
def listening(app: ASGIApp, settings: Settings) -> Iterator[int]:
    """Serve an application behind the door; gives the port on 127.0.0.1."""
    with kept_loggers(), socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn_config(Guard(app, settings), settings)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            end = time.monotonic() + 10
            while not server.started:
                assert thread.is_alive() and time.monotonic() < end, "the server does not start"
                time.sleep(0.005)
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server does not end"


def exchanged(port: int, *parts: bytes, pause_s: float = 0.0, timeout_s: float = 10.0) -> bytes:
    """Send bytes as they are and give everything that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause_s)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def error_of(answer: bytes) -> dict[str, Any]:
    """The error object of a raw HTTP answer."""
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error
