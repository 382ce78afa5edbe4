"""`POST /v1/completions`: one or several texts go on, in the form of OpenAI's older API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_qwenvl.engine.reply import TokenLogprob
from mlx_qwenvl.inputs.tokenizer import Tokenizer

from ..call import Call
from ..engine import Engine
from ..figures import Tally, usage_of
from ..schemas.completions import CompletionRequest
from ..settings import Settings
from ..stream import EventStream, heard, unless_gone
from ..ticket import Heard, Ticket
from ..wire import DONE, Json, frame
from .chat import head_of


def completion_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The route of plain completions."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        calls = body.to_calls(settings, engine.name)
        head = {**head_of("cmpl", engine.name), "object": "text_completion"}
        tickets = await unless_gone(request, _submit(engine, calls))
        answer = _Answer(body, head, tickets, engine.tokenizer)
        if body.stream:
            return EventStream(answer.chunks(), tickets, settings)
        return Json(await heard(request, tickets, lambda _: answer.completion()))

    return routes


class Tickets(Ticket):
    """Several calls of one request, heard one after another; all are under way from the start.

    Args:
        tickets: At least one, each with the same number of answers.
        n: That number.
    """

    def __init__(self, tickets: list[Ticket], n: int) -> None:
        super().__init__(_joined(tickets, n))
        self.tickets, self.n = tickets, n

    def cancel(self) -> None:
        """Withdraw all calls."""
        for ticket in self.tickets:
            ticket.cancel()


async def _joined(tickets: list[Ticket], n: int) -> AsyncIterator[Heard]:
    for number, ticket in enumerate(tickets):
        async for piece in ticket:
            yield Heard(number * n + piece.index, piece.chunk)


async def _submit(engine: Engine, calls: list[Call]) -> Tickets:
    tickets: list[Ticket] = []
    try:
        for call in calls:
            tickets.append(await engine.submit(call))
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return Tickets(tickets, calls[0].n)


@dataclass
class _Choice:
    """One answer while it is collected."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Answer:
    """A request's answers on their way to the wire."""

    body: CompletionRequest
    head: dict[str, Any]
    tickets: Tickets
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        prompts = self.body.prompts
        self.tallies = [Tally() for _ in prompts]
        echoed = [self._text(prompt) if self.body.echo else "" for prompt in prompts]
        self.choices = [_Choice(text) for text in echoed for _ in range(self.tickets.n)]

    async def completion(self) -> dict[str, Any]:
        """The whole `text_completion`."""
        async for piece in self.tickets:
            self._add(piece)
            choice = self.choices[piece.index]
            choice.text += piece.chunk.whole
            choice.logprobs += piece.chunk.logprobs
        choices = [
            self._choice(index, c.text, c.finish_reason, self._logprobs(c.logprobs, 0))
            for index, c in enumerate(self.choices)
        ]
        return {**self.head, "choices": choices, "usage": usage_of(self.tallies)}

    async def chunks(self) -> AsyncGenerator[str, None]:
        """Frames of `text_completion`, each with the text that is new."""
        echoed: set[int] = set()
        offsets = [0] * len(self.choices)
        async for piece in self.tickets:
            self._add(piece)
            index, chunk = piece.index, piece.chunk
            text = chunk.whole
            if index not in echoed:
                echoed.add(index)
                text = self.choices[index].text + text
            if text or chunk.logprobs or chunk.finish_reason:
                logprobs = self._logprobs(list(chunk.logprobs), offsets[index])
                offsets[index] += len(text)
                yield self._frame([self._choice(index, text, chunk.finish_reason, logprobs)])
        if self.body.includes_usage:
            yield frame({**self.head, "choices": [], "usage": usage_of(self.tallies)})
        yield DONE

    def _add(self, piece: Heard) -> None:
        self.tallies[piece.index // self.tickets.n].add(piece)
        choice = self.choices[piece.index]
        choice.finish_reason = piece.chunk.finish_reason or choice.finish_reason

    def _frame(self, choices: list[dict[str, Any]]) -> str:
        body = {**self.head, "choices": choices}
        if self.body.includes_usage:
            body["usage"] = None
        return frame(body)

    def _choice(
        self, index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs(self, entries: list[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        told: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for entry in entries:
            token = self._text((entry.token_id,))
            told["tokens"].append(token)
            told["token_logprobs"].append(max(entry.logprob, -9999.0))
            top = {self._text((index,)): max(logprob, -9999.0) for index, logprob in entry.top}
            told["top_logprobs"].append(top)
            told["text_offset"].append(offset)
            offset += len(token)
        return told

    def _text(self, prompt: str | tuple[int, ...]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
