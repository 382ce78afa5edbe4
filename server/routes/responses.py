"""`POST /v1/responses`: an answer in the form of OpenAI's Responses."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_qwenvl.engine.reply import Chunk, TokenLogprob
from mlx_qwenvl.engine.tool_calls import CallBegun, CallPiece, TextPiece, ToolCallParser
from mlx_qwenvl.inputs.tokenizer import Tokenizer

from ..engine import Engine
from ..errors import Fault
from ..figures import chat_logprobs
from ..pieces import Piece, ThoughtPiece, pieces
from ..schemas.responses import ResponsesRequest
from ..settings import Settings
from ..stream import EventStream, heard, unless_gone
from ..ticket import Ticket
from ..wire import Json, frame


def response_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The route of OpenAI's Responses."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/responses", response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation; nothing of it is kept."""
        call = body.to_call(settings, engine.name)
        parser = ToolCallParser() if body.read_tools(settings).tools else None
        ticket = await unless_gone(request, engine.submit(call))
        answer = _Answer(body, engine.name, ticket, engine.tokenizer, parser)
        if body.stream:
            return EventStream(answer.frames(), ticket, settings, answer.failure)
        return Json(await heard(request, ticket, lambda _: answer.response()))

    return routes


@dataclass
class _Answer:
    """A call's answer while it is heard.

    Attributes:
        output: Its items so far.
        is_open: Whether the last item goes on.
        logprobs: Of the tokens whose text is still to come.
        number: Of the next event.
        last: The chunk that ended it, once there is one.
    """

    body: ResponsesRequest
    model: str
    ticket: Ticket
    tokenizer: Tokenizer
    parser: ToolCallParser | None
    output: list[dict[str, Any]] = field(default_factory=list)
    is_open: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()
    number: int = 0
    last: Chunk | None = None

    def __post_init__(self) -> None:
        self.head = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": self.model,
            **self.body.echo(),
        }

    async def response(self) -> dict[str, Any]:
        """The whole response."""
        async for _ in self._events():
            pass
        return self._response()

    async def frames(self) -> AsyncGenerator[str, None]:
        """The response as events."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._response()})
        async for event in self._events():
            yield self._frame(event)
        response = self._response()
        yield self._frame({"type": f"response.{response['status']}", "response": response})

    def failure(self, fault: Fault) -> str:
        """What ends a stream that fails: the error, then the response as far as it came."""
        told = {"code": fault.code, "message": fault.message, "param": fault.param}
        code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(fault.status, "server_error")
        response = {
            **self._response(),
            "status": "failed",
            "error": {"code": code, "message": fault.message},
        }
        return self._frame({"type": "error", **told}) + self._frame(
            {"type": "response.failed", "response": response}
        )

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        async for piece in self.ticket:
            self._note(piece.chunk)
            for event in pieces(piece.chunk, self.parser):
                for told in self._told(event):
                    yield told
            if piece.chunk.finish_reason is not None:
                self.last = piece.chunk
        for told in self._close():
            yield told

    def _frame(self, event: dict[str, Any]) -> str:
        self.number += 1
        return frame({**event, "sequence_number": self.number - 1}, event["type"])

    def _note(self, chunk: Chunk) -> None:
        """Keep the probabilities of tokens that become text: thoughts and their marks do not."""
        is_text = chunk.said is None or bool(chunk.text)
        self.logprobs = self.logprobs + chunk.logprobs if is_text else ()

    def _told(self, event: Piece) -> Iterator[dict[str, Any]]:
        if isinstance(event, ThoughtPiece):
            yield from self._think(event.text)
        elif isinstance(event, TextPiece):
            yield from self._say(event.text)
        elif isinstance(event, CallBegun):
            self.logprobs = ()
            item = {
                "type": "function_call",
                "id": _new_id("fc"),
                "call_id": _new_id("call"),
                "name": event.name,
                "arguments": "",
            }
            yield from self._open(item)
        elif isinstance(event, CallPiece):
            self.output[-1]["arguments"] += event.arguments
            yield self._of_item(
                "response.function_call_arguments.delta", {"delta": event.arguments}
            )
        else:
            self.logprobs = ()
            yield from self._close()

    def _think(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._is_within("reasoning"):
            item = {"type": "reasoning", "id": _new_id("rs"), "summary": [], "content": []}
            yield from self._open(item, {"type": "reasoning_text", "text": ""})
        self.output[-1]["content"][0]["text"] += text
        yield self._of_part("response.reasoning_text.delta", {"delta": text})

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._is_within("message"):
            item = {"type": "message", "id": _new_id("msg"), "role": "assistant", "content": []}
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield from self._open(item, empty)
        part = self.output[-1]["content"][0]
        logprobs: list[dict[str, Any]] = []
        if self.body.wants_logprobs:
            logprobs = chat_logprobs(self.logprobs, self.tokenizer)["content"]
            self.logprobs = ()
        part["text"] += text
        part["logprobs"] += logprobs
        yield self._of_part(
            "response.output_text.delta", {"delta": text, "logprobs": _without_bytes(logprobs)}
        )

    def _is_within(self, kind: str) -> bool:
        return self.is_open and self.output[-1]["type"] == kind

    def _open(
        self, item: dict[str, Any], part: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self.is_open = True
        self.output.append({**item, "status": "in_progress"})
        yield self._item("response.output_item.added")
        if part is not None:
            self.output[-1]["content"] = [part]
            yield self._of_part("response.content_part.added", {"part": dict(part)})

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self.is_open:
            return
        self.is_open = False
        item = self.output[-1]
        # An item that the answer's end closes may have been cut off.
        item["status"] = "completed" if self._status != "incomplete" else "incomplete"
        if item["type"] == "function_call":
            yield self._of_item(
                "response.function_call_arguments.done", {"arguments": item["arguments"]}
            )
        else:
            part = item["content"][0]
            whole = {"text": part["text"]}
            if "logprobs" in part:
                whole["logprobs"] = _without_bytes(part["logprobs"])
            yield self._of_part(f"response.{part['type']}.done", whole)
            yield self._of_part("response.content_part.done", {"part": dict(part)})
        yield self._item("response.output_item.done")

    def _item(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "output_index": len(self.output) - 1, "item": dict(self.output[-1])}

    def _of_item(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        index = len(self.output) - 1
        return {"type": kind, "item_id": self.output[-1]["id"], "output_index": index, **fields}

    def _of_part(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self._of_item(kind, {"content_index": 0, **fields})

    @property
    def _status(self) -> str:
        if self.last is None:
            return "in_progress"
        return "incomplete" if self.last.finish_reason == "length" else "completed"

    def _response(self) -> dict[str, Any]:
        """The response as far as it came."""
        status = self._status
        is_cut = status == "incomplete"
        return {
            **self.head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self.output,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any] | None:
        usage = None if self.last is None else self.last.usage
        if usage is None:
            return None
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
            "total_tokens": usage.total_tokens,
        }


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _without_bytes(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log-probabilities as events have them: the bytes come with the whole part only."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [
                {"token": each["token"], "logprob": each["logprob"]}
                for each in entry["top_logprobs"]
            ],
        }
        for entry in entries
    ]
