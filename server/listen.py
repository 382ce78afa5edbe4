"""How connections are held: uvicorn with deadlines that it does not have itself.

uvicorn waits for the head of a request without end, and for a reader that stopped reading too.
Both hold a connection, and so a file descriptor, for as long as somebody likes.
"""

from __future__ import annotations

import asyncio
import json

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from .callers import MAX_HEAD_BYTES
from .logs import log_config
from .refused import Refused
from .settings import Settings

KEEP_ALIVE_S = 5  # seconds that a connection may idle between two requests


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """A configuration of uvicorn for an application that is behind the door already."""

    class Connection(BoundedConnection):
        bounds = settings

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="auto",
        log_config=log_config(settings),
        log_level=None,
        access_log=False,  # with the query; `guard.py` writes one without
        proxy_headers=False,  # nobody may claim another address
        server_header=False,
        h11_max_incomplete_event_size=2 * MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


class BoundedConnection(H11Protocol):
    """One connection: few of them, with a time for each head and for each piece that is written."""

    bounds: Settings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        super().connection_made(transport)
        if len(self.connections) > self.bounds.max_connections:
            retry = ((b"retry-after", b"1"),)
            self._last_words(Refused(503, "too many connections are open; try again", None, retry))
        else:
            self._abort_after("head", self.bounds.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Parse what came; the time for a head runs from its first byte."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._abort_after("head", self.bounds.head_timeout_s)
        else:
            self._keep("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection and its timers."""
        for name in list(self._timers):
            self._keep(name)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader does not keep up: it has some time to."""
        super().pause_writing()
        self._abort_after("write", self.bounds.write_timeout_s)

    def resume_writing(self) -> None:
        """The reader has read."""
        self._keep("write")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also where its last answer was never read."""
        super().timeout_keep_alive_handler()
        self._abort_after("close", self.bounds.write_timeout_s)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the shape of every error."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no place for another
        else:
            self._last_words(Refused(400, msg))

    def _abort_after(self, name: str, seconds: float) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _keep(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _last_words(self, refused: Refused) -> None:
        body = json.dumps(refused.body("", None)).encode()
        fields = [*refused.headers, (b"content-type", b"application/json")]
        fields += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        head = [b"HTTP/1.1 %d Refused" % refused.status]
        head += [name + b": " + value for name, value in fields]
        # Past h11, which sends nothing any more once it has met an error within a request.
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self.transport.close()
