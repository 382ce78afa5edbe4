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
from mlx_qwenvl.engine.reply import TokenLogprob
from mlx_qwenvl.inputs.tokenizer import Tokenizer

from ..engine import Engine, Ticket
from ..figures import Tally, chat_logprobs
from ..schemas.chat import ChatRequest
from ..settings import Settings
from ..stream import EventStream, heard, unless_gone
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
        answer = _Answer(body, head, ticket, engine.tokenizer, call.n)
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
    """One of a call's answers while it is collected."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Answer:
    """A call's answers on their way to the wire."""

    body: ChatRequest
    head: dict[str, Any]
    ticket: Ticket
    tokenizer: Tokenizer
    n: int
    tally: Tally = field(default_factory=Tally)

    async def completion(self, ticket: Ticket) -> dict[str, Any]:
        """The whole `chat.completion`."""
        choices = [_Choice() for _ in range(self.n)]
        async for piece in ticket:
            self.tally.add(piece)
            choice = choices[piece.index]
            choice.text.append(piece.chunk.text)
            choice.logprobs += piece.chunk.logprobs
            choice.finish_reason = piece.chunk.finish_reason or choice.finish_reason
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [self._whole(index, choice) for index, choice in enumerate(choices)],
            "usage": self.tally.usage(),
            "timings": self.tally.llama_timings(),
        }

    def _whole(self, index: int, choice: _Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": self._logprobs(tuple(choice.logprobs)),
            "finish_reason": choice.finish_reason,
        }

    async def chunks(self) -> AsyncGenerator[str, None]:
        """Frames of `chat.completion.chunk`."""
        begun: set[int] = set()
        async for piece in self.ticket:
            index, chunk = piece.index, piece.chunk
            if index not in begun:
                begun.add(index)
                yield self._frame(index, {"role": "assistant", "content": ""})
            self.tally.add(piece)
            if chunk.text or chunk.logprobs:
                logprobs = self._logprobs(chunk.logprobs)
                yield self._frame(index, {"content": chunk.text}, logprobs=logprobs)
            if chunk.finish_reason is not None:
                # The text stays a string to the end: clients add the pieces up as they come.
                yield self._frame(index, {"content": ""}, chunk.finish_reason)
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
