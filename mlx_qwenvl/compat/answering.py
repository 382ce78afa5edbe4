"""From a request to the model's own calls, and from its chunks to responses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_qwenvl.compat.requests import ChatCompletionRequest, CompletionRequest
from mlx_qwenvl.compat.responses import (
    CalledFunction,
    ChatCompletionChunkResponse,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Delta,
    Logprobs,
    ResponseLogprob,
    ResponseMessage,
    ToolCallResponse,
    Usage,
)
from mlx_qwenvl.engine.answer import Stopwatch
from mlx_qwenvl.engine.options import CallOptions, read_options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.tool_calls import CallBegun, CallPiece, TextPiece, ToolCallParser
from mlx_qwenvl.inputs.prompt import text_prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.vlm import QwenVL


@dataclass
class Answering:
    """Answers requests with one model.

    Attributes:
        vlm: The model.
        seed: That of the first answer; each further one takes the next. None draws anew.
        prefill_step: Prompt tokens computed at once, or None for the usual.
        max_pixels: Most pixels of a picture, or None for the model's.
    """

    vlm: QwenVL
    seed: int | None = None
    prefill_step: int | None = None
    max_pixels: int | None = None
    _requests: int = 0
    _answers: int = 0

    def chat(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """Answer a conversation. Errors are those of `QwenVL.generate`."""
        choices, lasts = [], []
        id_ = self._next_id()
        request.check()
        for index in range(request.n_choices):
            heard = _Heard(index, self.vlm.tokenizer, has_tools=bool(request.tools))
            for chunk in self._stream(request):
                heard.hear(chunk)
            lasts.append(chunk)
            choices.append(heard.choice())
        return ChatCompletionResponse(
            id_, choices, int(time.time()), self.vlm.name, Usage.of(lasts)
        )

    def stream(self, request: ChatCompletionRequest) -> Iterator[ChatCompletionChunkResponse]:
        """Answer a conversation piece by piece; what is wrong with it is raised at once."""
        request.check()
        id_, first = self._next_id(), self._stream(request)
        return self._pieces(id_, request, first)

    def _pieces(
        self, id_: str, request: ChatCompletionRequest, first: Iterator[Chunk]
    ) -> Iterator[ChatCompletionChunkResponse]:
        created, lasts = int(time.time()), []
        for index in range(request.n_choices):
            heard = _Heard(index, self.vlm.tokenizer, has_tools=bool(request.tools))
            for chunk in self._stream(request) if index else first:
                piece, usage = heard.hear(chunk), None
                if chunk.finish_reason is not None:
                    lasts.append(chunk)
                    is_end = index == request.n_choices - 1
                    usage = Usage.of(lasts) if is_end else None
                yield ChatCompletionChunkResponse(id_, [piece], created, self.vlm.name, usage)

    def complete(self, request: CompletionRequest) -> CompletionResponse:
        """Go on with a text. Errors are those of `QwenVL.generate`, but for pictures'."""
        choices, lasts = [], []
        id_ = self._next_id()
        request.check()
        vlm, context = self.vlm, self.vlm.config.text.max_position_embeddings
        for index in range(request.n_choices):
            options = read_options(self._options(request.options()), vlm.sampling)
            prompt = text_prompt(request.prompt, vlm.tokenizer, context)
            chunks = list(vlm._answer(prompt, options, Stopwatch(vlm.load_s)))
            text = "".join(chunk.whole for chunk in chunks)
            lasts.append(chunks[-1])
            choices.append(
                CompletionChoice(
                    chunks[-1].finish_reason or "length",
                    index,
                    request.prompt + text if request.echo_prompt else text,
                )
            )
        return CompletionResponse(id_, choices, int(time.time()), vlm.name, Usage.of(lasts))

    def _stream(self, request: ChatCompletionRequest) -> Iterator[Chunk]:
        options = self._options(request.options())
        return self.vlm.stream(messages=request.told(), **options)

    def _options(self, asked: CallOptions) -> CallOptions:
        """The options of the next answer."""
        asked["prefill_step"], asked["max_pixels"] = self.prefill_step, self.max_pixels
        if self.seed is not None:
            asked["seed"] = self.seed + self._answers
        self._answers += 1
        return asked

    def _next_id(self) -> str:
        id_ = str(self._requests)
        self._requests += 1
        return id_


@dataclass
class _Heard:
    """One of a request's answers while it is heard."""

    index: int
    tokenizer: Tokenizer
    has_tools: bool
    text: str = ""
    thinking: str = ""
    calls: list[ToolCallResponse] = field(default_factory=list)
    logprobs: list[ResponseLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._parser = ToolCallParser() if self.has_tools else None
        self._begun: list[list[str]] = []  # of each call: the name, then pieces of its arguments

    def hear(self, chunk: Chunk) -> ChunkChoice:
        """What a chunk adds."""
        added = chunk.text if self._parser is None else self._beside_calls(chunk, self._parser)
        self.text += added
        self.thinking += chunk.thinking
        entries = [ResponseLogprob.of(entry, self.tokenizer) for entry in chunk.logprobs]
        self.logprobs += entries
        if chunk.finish_reason is not None:
            # A call that was cut off is none.
            whole = self._begun[: -1 if self._parser and self._parser.is_open else None]
            self.calls = [_call(index, *call) for index, call in enumerate(whole)]
            is_call = chunk.finish_reason == "stop" and self.calls
            self.finish_reason = "tool_calls" if is_call else chunk.finish_reason
        delta = Delta(added, "assistant", self.calls, chunk.thinking or None)
        return ChunkChoice(self.finish_reason, self.index, delta, entries[0] if entries else None)

    def choice(self) -> Choice:
        """The whole answer."""
        content = None if self.calls and not self.text else self.text
        return Choice(
            self.finish_reason or "length",
            self.index,
            ResponseMessage(content, "assistant", self.calls, self.thinking or None),
            Logprobs(self.logprobs) if self.logprobs else None,
        )

    def _beside_calls(self, chunk: Chunk, parser: ToolCallParser) -> str:
        events = parser.feed(chunk.text)
        text = ""
        for event in events if chunk.finish_reason is None else [*events, *parser.finish()]:
            if isinstance(event, TextPiece):
                text += event.text
            elif isinstance(event, CallBegun):
                self._begun.append([event.name])
            elif isinstance(event, CallPiece):
                self._begun[event.index].append(event.arguments)
        return text


def _call(index: int, name: str, *arguments: str) -> ToolCallResponse:
    called = CalledFunction(name, "".join(arguments))
    return ToolCallResponse(index, f"call_{uuid.uuid4().hex}", called)
