"""`POST /v1/chat/completions`: what is heard of an answer, in OpenAI's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_qwenvl import __version__
from mlx_qwenvl.engine.reply import Chunk, TokenLogprob, boxes_of
from mlx_qwenvl.engine.tool_calls import CallBegun, CallPiece, TextPiece, ToolCallParser
from mlx_qwenvl.inputs.tokenizer import Tokenizer

from ..engine import Engine
from ..figures import Tally, chat_logprobs
from ..pieces import Piece, ThoughtPiece, pieces
from ..schemas.chat import ChatRequest
from ..settings import Settings
from ..stream import EventStream, heard, unless_gone
from ..ticket import Ticket
from ..wire import DONE, Json, frame

FINGERPRINT = f"mlx-qwenvl-{__version__}"


def chat_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The route of chat completions."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        call = body.to_call(settings, engine.name)
        head = head_of("chatcmpl", engine.name)
        ticket = await unless_gone(request, engine.submit(call))
        has_tools = bool(body.read_tools(settings).tools)
        answer = _Answer(body, head, ticket, engine.tokenizer, call.n, has_tools)
        if body.stream:
            return EventStream(answer.chunks(), ticket, settings)
        return Json(await heard(request, ticket, answer.completion))

    return routes


def head_of(kind: str, model: str) -> dict[str, Any]:
    """What all pieces of one answer have in common.

    Args:
        kind: What its id begins with.
        model: Name of the model that answers.
    """
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


@dataclass
class _Choice:
    """One of a call's answers while it is heard.

    Attributes:
        parser: Finds calls of tools in the text, where there are tools.
        text: What was said beside them.
        thinking: What was thought before.
        calls: Calls of tools so far.
        logprobs: Of all tokens.
        finish_reason: Why it ended, once it has.
        boxes: What its text points at, as `Box.to_dict` gives it, once it has ended.
    """

    parser: ToolCallParser | None
    begun: bool = False
    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    boxes: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, chunk: Chunk) -> list[dict[str, Any]]:
        """What a piece adds to the message, as OpenAI's deltas."""
        self.logprobs += chunk.logprobs
        told = [self._delta(piece) for piece in pieces(chunk, self.parser)]
        if chunk.finish_reason is not None:
            is_whole = chunk.finish_reason == "stop" and self.calls
            self.finish_reason = "tool_calls" if is_whole else chunk.finish_reason
            self.boxes = [box.to_dict() for box in boxes_of(self.text, chunk.pictures, chunk.unit)]
        return [delta for delta in told if delta is not None]

    def _delta(self, event: Piece) -> dict[str, Any] | None:
        if isinstance(event, ThoughtPiece):
            self.thinking += event.text
            return {"content": "", "reasoning_content": event.text}
        if isinstance(event, TextPiece):
            self.text += event.text
            return {"content": event.text}
        if isinstance(event, CallBegun):
            function = {"name": event.name, "arguments": ""}
            call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
            self.calls.append(call)
            told = {"index": event.index, **call, "function": dict(function)}
            return {"content": "", "tool_calls": [told]}
        if isinstance(event, CallPiece):
            self.calls[event.index]["function"]["arguments"] += event.arguments
            told = {"index": event.index, "function": {"arguments": event.arguments}}
            return {"content": "", "tool_calls": [told]}
        return None

    @property
    def message(self) -> dict[str, Any]:
        """The whole message."""
        content = None if self.calls and not self.text else self.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        thoughts = {"reasoning_content": self.thinking} if self.thinking else {}
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {**message, **thoughts, **calls, **self.pointing}

    @property
    def pointing(self) -> dict[str, Any]:
        """This program's own field of a message that points at something."""
        return {"boxes": self.boxes} if self.boxes else {}


@dataclass
class _Answer:
    """A call's answers on their way to the wire."""

    body: ChatRequest
    head: dict[str, Any]
    ticket: Ticket
    tokenizer: Tokenizer
    n: int
    has_tools: bool
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.choices = [
            _Choice(ToolCallParser() if self.has_tools else None) for _ in range(self.n)
        ]

    async def completion(self, ticket: Ticket) -> dict[str, Any]:
        """The whole `chat.completion`."""
        async for piece in ticket:
            self.tally.add(piece)
            self.choices[piece.index].hear(piece.chunk)
        choices = [
            {
                "index": index,
                "message": choice.message,
                "logprobs": self._logprobs(tuple(choice.logprobs)),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return {
            **self.head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self.tally.usage(),
            "timings": self.tally.llama_timings(),
        }

    async def chunks(self) -> AsyncGenerator[str, None]:
        """Frames of `chat.completion.chunk`."""
        async for piece in self.ticket:
            index, chunk = piece.index, piece.chunk
            choice = self.choices[index]
            if not choice.begun:
                choice.begun = True
                yield self._frame(index, {"role": "assistant", "content": ""})
            self.tally.add(piece)
            deltas = choice.hear(chunk)
            if chunk.logprobs and not deltas:
                deltas = [{"content": ""}]
            for number, delta in enumerate(deltas):
                logprobs = None if number else self._logprobs(chunk.logprobs)
                yield self._frame(index, delta, logprobs=logprobs)
            if choice.finish_reason is not None:
                # The text stays a string to the end: clients add the pieces up as they come.
                yield self._frame(index, {"content": "", **choice.pointing}, choice.finish_reason)
        if self.body.includes_usage:
            last = {**self._chunk([]), "usage": self.tally.usage()}
            yield frame({**last, "timings": self.tally.llama_timings()})
        yield DONE

    def _frame(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = self._chunk([choice])
        if self.body.includes_usage:
            so_far = self.body.counts_always
            chunk["usage"] = self.tally.usage_so_far(self.ticket) if so_far else None
        elif finish_reason is not None and len(self.tally.usages) == self.n:
            chunk["timings"] = self.tally.llama_timings()
        return frame(chunk)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": choices}

    def _logprobs(self, entries: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        return chat_logprobs(entries, self.tokenizer) if self.body.logprobs else None
