"""The whole application with the demo behind it, asked without a network in between."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from benchmarks.fuzz import bodies
from benchmarks.fuzz.target import Broken, Target, told_too_much
from mlx_qwenvl import load

# isort: split

from server.app import create_app
from server.engine import Engine
from server.settings import Settings

SETTINGS = Settings(
    remote_images=False,
    max_tokens=2,
    max_body_bytes=2**18,
    max_image_bytes=2**17,
    max_image_pixels=1_000_000,
    max_total_pixels=2_000_000,
)
HEADERS = ((b"host", b"127.0.0.1"), (b"content-type", b"application/json"))
STATUSES = frozenset({200, 400, 404, 413, 415, 422})  # what a single polite client may meet


class App:
    """The application, its engine and a loop to run them in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        engine = Engine(lambda: load("demo"), SETTINGS, "demo")
        self._app: Any = create_app(engine, SETTINGS)
        self._running = engine.running()
        self._loop.run_until_complete(self._running.__aenter__())
        self._loop.run_until_complete(engine.ready())
        self._logged: list[str] = []
        self._ear = _Ear(self._logged)
        logging.getLogger().addHandler(self._ear)

    def close(self) -> None:
        """End the engine's thread and the loop."""
        logging.getLogger().removeHandler(self._ear)
        self._loop.run_until_complete(self._running.__aexit__(None, None, None))
        self._loop.close()

    def run(self, data: bytes) -> str:
        """Ask, and hold the answer to what every answer has to be."""
        self._logged.clear()
        path, body = bodies.split(data)
        status, headers, said = self._loop.run_until_complete(self._ask(path, body))
        if self._logged:
            raise Broken(f"logs an error: {self._logged[0][:200]}")
        if status not in STATUSES:
            raise Broken(f"status {status}: {said[:200]!r}")
        if headers.get("content-type", "").startswith("text/event-stream"):
            return f"{status} stream {_check_stream(said, data)}"
        try:
            answer = json.loads(said)
        except ValueError:
            raise Broken(f"status {status} with a body that is no JSON: {said[:100]!r}") from None
        if status != 200:
            _check_error(path, answer, data)
        return str(status)

    async def _ask(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        status, headers, said = 0, {}, b""

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.get_running_loop().create_future()  # the client stays
            raise AssertionError("nothing comes any more")

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, said
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.update({k.decode().lower(): v.decode() for k, v in message["headers"]})
            else:
                said += message.get("body", b"")

        length = (b"content-length", str(len(body)).encode())
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*HEADERS, length],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await self._app(scope, receive, send)
        return status, headers, said


class _Ear(logging.Handler):
    """Hears what is logged as an error."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._heard.append(text)


def _check_error(path: str, answer: Any, data: bytes) -> None:
    is_anthropic = path.startswith("/v1/messages")
    error = answer.get("error") if isinstance(answer, dict) else None
    names = {"type", "message"} if is_anthropic else {"message", "type", "param", "code"}
    if not isinstance(error, dict) or not names <= set(error):
        raise Broken(f"an error of another shape: {str(answer)[:200]}")
    fault = told_too_much(error["message"], data)
    if fault:
        raise Broken(fault)


def _check_stream(said: bytes, data: bytes) -> str:
    """Whether all events are JSON and the stream has an end; tells which."""
    last, failed = "", False
    for block in said.decode("utf-8").split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data:"):
                last = line[5:].strip()
                event = {} if last == "[DONE]" else json.loads(last)
                if event.get("error"):
                    failed = True
                    fault = told_too_much(event["error"]["message"], data)
                    if fault:
                        raise Broken(fault)
    ends = ("[DONE]", "message_stop", "response.completed", "response.incomplete")
    if not failed and not any(end in last for end in ends):
        raise Broken(f"a stream that ends with {last[:100]!r}")
    return "error" if failed else "whole"


class _WhenAsked:
    """An application that is made when it is first asked: loading a model takes a while."""

    def __init__(self) -> None:
        self._made: App | None = None

    def run(self, data: bytes) -> str:
        self._made = self._made or App()
        return self._made.run(data)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None


_APP = _WhenAsked()
APP = Target("app", bodies.seeds, bodies.mutate, _APP.run, most_s=20.0, close=_APP.close)
