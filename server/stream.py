"""Answers on their way: one writer of server-sent events, and what happens when nobody listens.

A client that is gone withdraws its call, whether the answer is streamed or not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ClientGone, Fault, fault_of
from .settings import Settings
from .ticket import Ticket
from .wire import frame

log = logging.getLogger(__name__)

T = TypeVar("T")
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends frames as they come, and signs of life while none come.

    The headers go out at once. An error that comes later is told in the stream, which ends with
    it; OpenAI's `[DONE]` follows whole answers only.

    Args:
        frames: From `frame`; closed at the end, whatever happens.
        ticket: The call they come from; withdrawn if the client is gone or does not read.
        settings: The operator's.
        tell_error: Frames of an error, for the forms that have their own.
        sign_of_life: A frame for when nothing else comes, for the forms that have their own.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[str, None],
        ticket: Ticket,
        settings: Settings,
        tell_error: Callable[[Fault], str] | None = None,
        sign_of_life: Callable[[Ticket], str] | None = None,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._frames, self._ticket, self._settings = frames, ticket, settings
        self._tell_error = tell_error or _plain_error
        self._sign_of_life = sign_of_life or _comment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not writing.cancelled():
                writing.result()
            elif writing.cancelled():
                log.info("a listener stopped reading and was dropped")
        finally:
            # Before anything is awaited: the engine's time is not spent on someone who is gone.
            self._ticket.cancel()
            await _end(writing, leaving)
            await self._frames.aclose()

    async def _write(self, send: Send) -> None:
        """Send all frames; cancelled where one of them is not taken in time."""
        loop, writing = asyncio.get_running_loop(), asyncio.current_task()
        assert writing is not None
        turn, silent_since = asyncio.Lock(), loop.time()

        async def put(text: str, *, more: bool = True) -> None:
            nonlocal silent_since
            # A timer and not `wait_for`, which costs a task and can lose a cancellation.
            late = loop.call_later(self._settings.write_timeout_s, writing.cancel)
            try:
                message = {"type": "http.response.body", "body": text.encode(), "more_body": more}
                await send(message)
            finally:
                late.cancel()
            silent_since = loop.time()

        async def live() -> None:
            while True:
                left = silent_since + self._settings.keepalive_s - loop.time()
                if left > 0:
                    await asyncio.sleep(left)
                    continue
                async with turn:
                    await put(self._sign_of_life(self._ticket))

        status, headers = self.status_code, self.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})
        living = asyncio.ensure_future(live())
        try:
            async for text in self._frames:
                async with turn:
                    await put(text)
        except Exception as error:
            async with turn:
                await put(self._tell_error(fault_of(error)))
        finally:
            await _end(living)
        await put("", more=False)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work that only the client of a request wants; it is cancelled if they leave.

    Raises:
        ClientGone: They have left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await _end(working, leaving)


async def heard(request: Request, ticket: Ticket, hear: Callable[[Ticket], Awaitable[T]]) -> T:
    """What becomes of a whole answer; the call is withdrawn if its client leaves before the end.

    Args:
        request: Whose client waits.
        ticket: The call.
        hear: Collects the answer.

    Raises:
        ClientGone: They have left.
    """
    try:
        return await unless_gone(request, hear(ticket))
    finally:
        ticket.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _plain_error(fault: Fault) -> str:
    return frame(fault.body)


def _comment(ticket: Ticket) -> str:
    if ticket.progress is None:
        return ": waiting\n\n"
    done, total = ticket.progress
    return f": prefill {done}/{total}\n\n"


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end; what they ended with is of no interest any more."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
