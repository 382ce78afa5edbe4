"""What went wrong, as the wire tells it: the only place that knows status codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_qwenvl.errors import ContextError, MemoryExceeded, QwenVLError, RanksLost
from mlx_qwenvl.inputs.tokenizer import printable

from .ticket import EngineFailed, Overloaded, Unavailable
from .wire import Json

log = logging.getLogger(__name__)

RETRY_S = 1  # after which a refused client may come again, in seconds
GONE = 499  # what proxies note for a client that has hung up; nobody reads it


class RequestError(QwenVLError):
    """A field of a request is malformed, or asks for what this server does not do."""


class UnknownModel(QwenVLError):
    """A request names another model than the one that is served."""


class NotFound(QwenVLError):
    """There is nothing under this address."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Fault:
    """An error as clients see it.

    Attributes:
        status: HTTP's.
        message: One line that is safe to show to a stranger.
        type: OpenAI's name of the kind.
        param: The field that is at fault, or None.
        code: OpenAI's name of the very error, or None.
        headers: To be sent with it.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form; all four keys are always there."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def anthropic(self, request_id: str | None) -> dict[str, Any]:
        """The error in the form of Anthropic's Messages."""
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        if self.status >= 500 and self.status != 503:
            kind = "api_error"
        error = {"type": kind, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id}


ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
WAIT = {"Retry-After": str(RETRY_S), "x-should-retry": "true"}
NEVER = {"x-should-retry": "false"}
INTERNAL = Fault(
    500, "the server failed on this request; its log says why", "server_error", headers=NEVER
)
# The first class that fits decides, so the special ones come before what they are made from.
FAULTS: tuple[tuple[type[QwenVLError], int, str, str | None, Mapping[str, str]], ...] = (
    (UnknownModel, 404, "invalid_request_error", "model_not_found", {}),
    (NotFound, 404, "invalid_request_error", "not_found", {}),
    (Overloaded, 429, "rate_limit_error", "overloaded", WAIT),
    (Unavailable, 503, "server_error", "unavailable", WAIT),
    (EngineFailed, 500, "server_error", "engine_failed", {}),
    (RanksLost, 503, "server_error", "unavailable", WAIT),
    (ContextError, 400, "invalid_request_error", "context_length_exceeded", {}),
    (MemoryExceeded, 400, "invalid_request_error", "memory_exceeded", NEVER),
    (QwenVLError, 400, "invalid_request_error", None, {}),
)


def fault_of(error: BaseException) -> Fault:
    """What clients are told of an error; what was not foreseen is logged and not told."""
    if isinstance(error, QwenVLError):
        for kind, status, name, code, headers in FAULTS:
            if isinstance(error, kind):
                message = printable(" ".join(str(error).split()))
                return Fault(status, message, name, error.param, code, headers)
    if isinstance(error, MemoryError):  # while pictures are opened; elsewhere the scheduler says so
        return fault_of(
            MemoryExceeded("memory ran out on this request; smaller pictures need less")
        )
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    log.error("a request failed", exc_info=error)
    return INTERNAL


def respond(error: BaseException, scope: Scope) -> Response:
    """The response to a request that failed, in the form of its path."""
    if isinstance(error, ClientGone):
        return Response(status_code=GONE)
    fault = fault_of(error)
    body = form_for(scope["path"], fault, request_id_of(scope))
    return Json(body, fault.status, dict(fault.headers))


def request_id_of(scope: Scope) -> str | None:
    """The id that the request was given at the door."""
    found: str | None = scope.get("state", {}).get("request_id")
    return found


def form_for(path: str, fault: Fault, request_id: str | None = None) -> dict[str, Any]:
    """The error as the clients of a path expect it."""
    is_anthropic = "messages" in path.split("/") and "models" not in path.split("/")
    return fault.anthropic(request_id) if is_anthropic else fault.body


def handle_errors(app: FastAPI) -> None:
    """Answer whatever fails in an application in one of the two forms."""

    async def answer(request: Request, error: Exception) -> Response:
        return respond(error, request.scope)

    for kind in (QwenVLError, ClientGone, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_middleware(_Unforeseen)


class _Unforeseen:
    """Answers what no handler foresaw, so that it is logged once and reaches no other request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            response = respond(error, scope)
            if not begun:  # otherwise the server closes the connection
                await response(scope, receive, send)


def _of_validation(error: RequestValidationError) -> Fault:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return Fault(400, f"the body is no JSON: {reason} at character {place[0]}")
    field_ = ".".join(place)
    told = f"{field_ or 'the body'} is {_shown(first['input'])}: {first['msg']}"
    if first["type"] == "missing":
        told = f"{field_ or 'the body'} is missing"
    return Fault(400, " ".join(told.split())[:500], param=field_ or None)


def _shown(value: object) -> str:
    """A value as part of a message: bodies hold pictures, which are not to be echoed."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 2**70 else "a huge number"
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    return f"a {type(value).__name__}"


def _of_http(error: HTTPException) -> Fault:
    headers = dict(error.headers or {})
    told = {
        404: ("there is nothing under this address", "not_found"),
        405: ("this address does not take this method", "method_not_allowed"),
        413: ("the body is too large", "request_too_large"),
    }
    message, code = told.get(error.status_code, ("the body cannot be read as JSON", None))
    return Fault(error.status_code, message, code=code, headers=headers)
