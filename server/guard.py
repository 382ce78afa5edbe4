"""The door of the server: nothing reaches the application that did not pass it.

In order: a request id, the size of the head, Host, Origin, the answer to a preflight, the key, the
content type, the body within its budget and time, strict JSON. It knows nothing of the application
behind it. Starlette's middlewares for hosts and bodies are not used: they answer in plain text, the
first takes one of several Host headers, and the second knows no time and keeps the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .callers import (
    check_content_type,
    check_head,
    check_host,
    check_key,
    check_origin,
    has_body,
    headers,
    host_names,
    key_digests,
    origin_pattern,
)
from .errors import request_id_of
from .json_body import BodyError, parse_json
from .refused import Refused
from .settings import Settings

DRAIN_S = 2.0  # seconds; a client that still sends hears no answer on a connection that is reset
SMALL_BYTES = 128 * 2**10  # bytes of a body that is read in less than a millisecond or two
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
ANSWER_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),  # no page embeds what it may not read
)

log = logging.getLogger("mlx_qwenvl.server")
access = logging.getLogger("mlx_qwenvl.server.access")


class Guard:
    """The door. Routes find the request's id in `scope["state"]["request_id"]`.

    Args:
        app: What is behind it.
        settings: The operator's.
        is_open: Whether a request gets something that needs no key, such as the form that asks for
            one. It is held to all else.

    Raises:
        OptionError: Settings that say nothing sensible about who may call.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        is_open: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self._app, self._settings, self._is_open = app, settings, is_open
        self._hosts = host_names(settings)
        self._digests = key_digests(settings.api_keys)
        pattern = origin_pattern(settings)
        self._origins = re.compile(pattern)
        # Foreign origins never get to it, so it may grant any header; it never grants credentials.
        self._cors = CORSMiddleware(
            self._enter,
            allow_origin_regex=pattern,
            allow_methods=("DELETE", "GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("x-request-id", "request-id", "retry-after", "x-should-retry"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or answer it here."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        answer = _Answer(send, _request_id(scope))
        scope.setdefault("state", {})["request_id"] = answer.request_id
        start = time.monotonic()
        try:
            check_head(scope)
            check_host(scope, self._hosts)
            check_origin(scope, self._origins)
            await self._cors(scope, receive, answer)
        except Refused as refused:
            await _refuse(refused, scope, receive, answer)
        except Exception:
            # The one place where a fault of ours is logged; uvicorn would do so a second time.
            log.exception("request %s failed", answer.request_id)
            if not answer.status:
                close = ((b"connection", b"close"),)
                words = "the server met a fault of its own; its log says more"
                await _refuse(Refused(500, words, headers=close), scope, None, answer)
        finally:
            line = scope["method"][:16], _path(scope), answer.status, time.monotonic() - start
            access.info("%s %s %d in %.3f s [%s]", *line, answer.request_id)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What a caller meets who may call from where it is."""
        try:
            if not self._is_open(scope):
                check_key(scope, self._digests)
            if not has_body(scope):
                return await self._app(scope, receive, send)
            check_content_type(scope)
            body = await self._body(scope, receive)
        except Refused as refused:
            return await _refuse(refused, scope, receive, send)
        if body is None:
            return None
        try:
            if len(body) > SMALL_BYTES:
                await asyncio.to_thread(parse_json, body)  # streams to others go on meanwhile
            else:
                parse_json(body)
        except BodyError as error:
            return await _refuse(Refused(400, str(error), "invalid_json"), scope, None, send)
        rest = [body]
        del body

        async def replay() -> Message:
            if rest:
                return {"type": "http.request", "body": rest.pop(), "more_body": False}
            return await receive()

        return await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body within budget and time; None where the client has gone."""
        most, seconds = self._settings.max_body_bytes, self._settings.body_timeout_s
        too_large = Refused(413, f"the body is too large; at most {most} bytes are read")
        lengths = headers(scope, b"content-length")
        if any(not v.isdigit() or len(v) > 18 or int(v) > most for v in lengths):
            raise too_large
        try:
            body = await asyncio.wait_for(_read(receive, most), seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"the body did not come within {seconds:g} s") from None
        except _TooLarge:
            raise too_large from None
        except _Gone:
            return None
        return body


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    pass


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _TooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


class _Answer:
    """Sends an answer on, with the headers of every answer, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id, self.status = send, request_id, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = self.request_id.encode()
            # OpenAI's name and Anthropic's.
            own = ((b"x-request-id", given), (b"request-id", given), *ANSWER_HEADERS)
            names = (b"x-request-id", b"request-id")
            kept = [(k, v) for k, v in message.get("headers", ()) if k.lower() not in names]
            message = {**message, "headers": [*kept, *own]}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = headers(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0].decode()
    return f"req_{uuid.uuid4().hex}"


def _path(scope: Scope) -> str:
    # As it was sent: percent-encoded, so without line breaks; never the query, which holds secrets.
    raw = scope.get("raw_path") or scope["path"].encode("ascii", "replace")
    return ascii(raw[:200].partition(b"?")[0].decode("latin-1"))[1:-1]


async def _refuse(refused: Refused, scope: Scope, receive: Receive | None, send: Send) -> None:
    """Answer instead of the application.

    Args:
        refused: The answer.
        scope: The request.
        receive: What may still bring an unread body; None where it was read.
        send: Where the answer goes.
    """
    # A connection with an unread body is closed, so that nothing in it passes for a next request.
    unread = receive is not None and has_body(scope)
    body = json.dumps(refused.body(scope["path"], request_id_of(scope))).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    fields += [*refused.headers, *([(b"connection", b"close")] if unread else [])]
    await send({"type": "http.response.start", "status": refused.status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": unread})
    if unread and receive is not None:
        if not headers(scope, b"expect"):
            await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    """Throw away what a client still sends, for a moment."""
    end = time.monotonic() + DRAIN_S
    try:
        while (left := end - time.monotonic()) > 0:
            message = await asyncio.wait_for(receive(), left)
            if message["type"] != "http.request" or not message.get("more_body"):
                return
    except asyncio.TimeoutError:
        return
