"""`POST /v1/messages` and `/v1/messages/count_tokens`: answers in Anthropic's form."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.tool_calls import CallBegun, CallPiece, TextPiece, ToolCallParser

from ..engine import Engine
from ..errors import Fault, request_id_of
from ..pieces import Piece, ThoughtPiece, pieces
from ..schemas.messages import CountTokensRequest, Display, MessagesRequest
from ..settings import Settings
from ..stream import EventStream, heard, unless_gone
from ..ticket import Ticket
from ..wire import Json, frame

PING = frame({"type": "ping"}, "ping")


def message_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of Anthropic's Messages."""
    routes = APIRouter(tags=["Anthropic"])

    @routes.post("/messages", response_model=None)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation in Anthropic's form."""
        call = body.to_call(settings, engine.name)
        parser = ToolCallParser() if body.read_tools(settings).tools else None
        ticket = await unless_gone(request, engine.submit(call))
        answer = _Answer(engine.name, ticket, parser, body.display)
        if body.stream:

            def tell_error(fault: Fault) -> str:
                return frame(fault.anthropic(request_id_of(request.scope)), "error")

            return EventStream(
                answer.frames(), ticket, settings, tell_error, lambda _: answer.sign_of_life()
            )
        return Json(await heard(request, ticket, lambda _: answer.message()))

    @routes.post("/messages/count_tokens", response_model=None)
    async def count_tokens(body: CountTokensRequest, request: Request) -> Json:
        """Tokens of a conversation with its pictures, its system prompt and its tools."""
        call = body.to_call(settings, engine.name)
        return Json({"input_tokens": await unless_gone(request, engine.count(call))})

    return routes


@dataclass
class _Answer:
    """A call's answer while it is heard.

    Attributes:
        display: What is told of thoughts.
        content: Its blocks so far.
        thought: All of the thought that is the last block, told or not.
        arguments: Of the call that is the last block, JSON as far as it came.
        is_open: Whether the last block goes on.
        is_begun: Whether the message was begun on the wire.
        last: The chunk that ended it, once there is one.
    """

    model: str
    ticket: Ticket
    parser: ToolCallParser | None
    display: Display
    content: list[dict[str, Any]] = field(default_factory=list)
    thought: str = ""
    arguments: str = ""
    is_open: bool = False
    is_begun: bool = False
    last: Chunk | None = None

    def __post_init__(self) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"

    async def message(self) -> dict[str, Any]:
        """The whole message."""
        async for _ in self.frames():
            pass
        return {**self._message(), "content": self.content, **self._end(), "usage": self._usage()}

    async def frames(self) -> AsyncGenerator[str, None]:
        """The message as events."""
        async for piece in self.ticket:
            if piece.chunk.finish_reason is not None:
                self.last = piece.chunk
            if not self.is_begun:
                yield self._begin()
            for event in pieces(piece.chunk, self.parser):
                for told in self._events(event):
                    yield frame(told, told["type"])
        for told in self._close():
            yield frame(told, told["type"])
        delta = {"type": "message_delta", "delta": self._end(), "usage": self._usage()}
        yield frame(delta, "message_delta")
        yield frame({"type": "message_stop"}, "message_stop")

    def sign_of_life(self) -> str:
        """What is said while nothing else is: that the message begins, then that it goes on."""
        return PING if self.is_begun else self._begin()

    def _begin(self) -> str:
        self.is_begun = True
        message = {**self._message(), "usage": self._usage()}
        return frame({"type": "message_start", "message": message}, "message_start")

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _events(self, event: Piece) -> Iterator[dict[str, Any]]:
        if isinstance(event, ThoughtPiece):
            yield from self._think(event.text)
        elif isinstance(event, TextPiece):
            if not self._is_within("text"):
                yield from self._open({"type": "text", "text": ""})
            self.content[-1]["text"] += event.text
            yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, CallBegun):
            call_id = f"toolu_{uuid.uuid4().hex}"
            yield from self._open(
                {"type": "tool_use", "id": call_id, "name": event.name, "input": {}}
            )
        elif isinstance(event, CallPiece):
            self.arguments += event.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
        else:
            yield from self._close()

    def _think(self, text: str) -> Iterator[dict[str, Any]]:
        if self.display == "none":
            return
        if not self._is_within("thinking"):
            yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
        self.thought += text
        if self.display == "summarized":
            self.content[-1]["thinking"] += text
            yield self._delta({"type": "thinking_delta", "thinking": text})

    def _is_within(self, kind: str) -> bool:
        return self.is_open and bool(self.content[-1]["type"] == kind)

    def _open(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self.is_open, self.arguments, self.thought = True, "", ""
        self.content.append(block)
        index = len(self.content) - 1
        yield {"type": "content_block_start", "index": index, "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        index = len(self.content) - 1
        return {"type": "content_block_delta", "index": index, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self.is_open:
            return
        self.is_open = False
        block = self.content[-1]
        if block["type"] == "tool_use":
            block["input"] = _arguments(self.arguments)
        elif block["type"] == "thinking":
            block["signature"] = _signature(self.thought)
            yield self._delta({"type": "signature_delta", "signature": block["signature"]})
        yield {"type": "content_block_stop", "index": len(self.content) - 1}

    def _end(self) -> dict[str, Any]:
        """Why the answer ended."""
        assert self.last is not None, "the answer is not finished"
        stop = self.last.stop_text
        if self.last.finish_reason == "length":
            reason, stop = "max_tokens", None
        elif stop is not None:
            reason = "stop_sequence"
        else:
            calls = any(block["type"] == "tool_use" for block in self.content)
            reason = "tool_use" if calls else "end_turn"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _usage(self) -> dict[str, Any]:
        """Anthropic's counts; tokens that were found again are not input tokens."""
        usage = None if self.last is None else self.last.usage
        if usage is None:  # the message only begins
            prompt = self.ticket.progress[1] if self.ticket.progress else 0
            cached = completion = thought = 0
        else:
            prompt, cached = usage.prompt_tokens, usage.cached_tokens
            completion, thought = usage.completion_tokens, usage.thinking_tokens
        details = {"output_tokens_details": {"thinking_tokens": thought}} if thought else {}
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": completion,
            **details,
        }


def _signature(thought: str) -> str:
    """What clients hand back with a thought: its digest, as nobody here asks who wrote it."""
    return base64.b64encode(hashlib.sha256(thought.encode("utf-8", "replace")).digest()).decode()


def _arguments(text: str) -> dict[str, Any]:
    """Arguments of a call; none where the answer ended within them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
