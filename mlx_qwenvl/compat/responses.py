"""What is answered: mistral.rs's objects with their fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum

from mlx_qwenvl.engine.reply import Chunk, TokenLogprob
from mlx_qwenvl.inputs.tokenizer import Tokenizer


@dataclass(frozen=True)
class Usage:
    """Counts, rates and times; `str()` has one a line, as mistral.rs prints them.

    Attributes:
        completion_tokens: Of all answers.
        prompt_tokens: Of the prompt, image slots and what was kept of earlier prompts included.
        total_tokens: Both.
        avg_tok_per_sec: All tokens by all the time.
        avg_prompt_tok_per_sec: Of the prompt, its pictures' time included.
        avg_compl_tok_per_sec: Of the answers.
        total_time_sec: All the time, in seconds.
        total_prompt_time_sec: For reading pictures and the prompt, in seconds.
        total_completion_time_sec: For writing, in seconds.
    """

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    avg_tok_per_sec: float
    avg_prompt_tok_per_sec: float
    avg_compl_tok_per_sec: float
    total_time_sec: float
    total_prompt_time_sec: float
    total_completion_time_sec: float

    @classmethod
    def of(cls, lasts: Sequence[Chunk]) -> Usage:
        """Figures of a request.

        Args:
            lasts: The last chunk of each of its answers, the first answer's first.
        """
        usages = [last.usage for last in lasts if last.usage is not None]
        timings = [last.timings for last in lasts if last.timings is not None]
        prompt = usages[0].prompt_tokens
        completion = sum(usage.completion_tokens for usage in usages)
        prompt_s = sum(each.vision_s + each.prefill_s for each in timings)
        completion_s = sum(each.decode_s for each in timings)
        return cls(
            completion,
            prompt,
            prompt + completion,
            _rate(prompt + completion, prompt_s + completion_s),
            _rate(prompt, prompt_s),
            _rate(completion, completion_s),
            prompt_s + completion_s,
            prompt_s,
            completion_s,
        )

    def __str__(self) -> str:
        figures = ((f.name, getattr(self, f.name)) for f in fields(self))
        lines = (
            f"    {name}: {value if isinstance(value, int) else format(value, '.7g')},\n"
            for name, value in figures
        )
        return f"Usage {{\n{''.join(lines)}}}"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


class ToolCallType(Enum):
    """What can be called."""

    Function = "function"


@dataclass(frozen=True)
class CalledFunction:
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallResponse:
    """A function that the model wants called; `index` counts in the answer from 0 up."""

    index: int
    id: str
    function: CalledFunction
    tp: ToolCallType = ToolCallType.Function

    @property
    def type(self) -> ToolCallType:
        """The same as `tp`."""
        return self.tp


@dataclass(frozen=True)
class TopLogprob:
    """An alternative: its id, its log-probability and its text."""

    token: int
    logprob: float
    bytes: str


@dataclass(frozen=True)
class ResponseLogprob:
    """A token: its text, its log-probability, its bytes and its strongest alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]

    @classmethod
    def of(cls, entry: TokenLogprob, tokenizer: Tokenizer) -> ResponseLogprob:
        """The same in mistral.rs's form."""
        data = tokenizer.token_bytes(entry.token_id)
        top = [TopLogprob(i, logprob, tokenizer.decode([i])) for i, logprob in entry.top]
        return cls(data.decode("utf-8", "replace"), entry.logprob, list(data), top)


@dataclass(frozen=True)
class Logprobs:
    """One entry for each token."""

    content: list[ResponseLogprob]


@dataclass(frozen=True)
class ResponseMessage:
    """What the model says; `content` is None where it only calls tools.

    `reasoning_content` is what it thought before, or None.
    """

    content: str | None
    role: str
    tool_calls: list[ToolCallResponse]
    reasoning_content: str | None = None


@dataclass(frozen=True)
class Choice:
    """One of the answers; `finish_reason` is "stop", "length" or "tool_calls"."""

    finish_reason: str
    index: int
    message: ResponseMessage
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class ChatCompletionResponse:
    """All answers to a chat request; `created` in seconds since 1970."""

    id: str
    choices: list[Choice]
    created: int
    model: str
    usage: Usage
    system_fingerprint: str = "local"
    object: str = "chat.completion"


@dataclass(frozen=True)
class Delta:
    """What a piece adds: its text, empty where there is none, and calls that are whole with it.

    `reasoning_content` is what it adds to the thoughts before the answer, or None.
    """

    content: str
    role: str
    tool_calls: list[ToolCallResponse]
    reasoning_content: str | None = None


@dataclass(frozen=True)
class ChunkChoice:
    """A piece of one of the answers; only its last has a `finish_reason`."""

    finish_reason: str | None
    index: int
    delta: Delta
    logprobs: ResponseLogprob | None = None


@dataclass(frozen=True)
class ChatCompletionChunkResponse:
    """A piece of an answer as it comes; the last one of all carries the usage."""

    id: str
    choices: list[ChunkChoice]
    created: int
    model: str
    usage: Usage | None = None
    system_fingerprint: str = "local"
    object: str = "chat.completion.chunk"


@dataclass(frozen=True)
class CompletionChoice:
    """One of the texts."""

    finish_reason: str
    index: int
    text: str
    logprobs: None = None


@dataclass(frozen=True)
class CompletionResponse:
    """All answers to a completion request; `created` in seconds since 1970."""

    id: str
    choices: list[CompletionChoice]
    created: int
    model: str
    usage: Usage
    system_fingerprint: str = "local"
    object: str = "text_completion"
