"""OpenAI's Responses: a request's body becomes a `Call`. Nothing is kept between requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from mlx_qwenvl.engine.options import MAX_TOP_LOGPROBS
from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.messages import ROLES, Message, TextPart, parse_content
from mlx_qwenvl.inputs.tools import parse_tools

from ..call import Call
from ..errors import RequestError
from ..settings import Settings
from .common import (
    NOT_HERE,
    REFUSED_EVERYWHERE,
    AnswerFields,
    Positive,
    Refusals,
    admit,
    check_model,
    only,
    read_form,
)
from .tools import Tools
from .turns import Turns, refuse_video

_KEPT = "is not supported; nothing is kept here, send the whole conversation as input"
_CHAT = "belongs to /v1/chat/completions; expected "

REFUSED: Refusals = {
    **REFUSED_EVERYWHERE,
    "background": (only(False), "is not supported; nothing is kept here, stream the answer"),
    "context_management": (only([]), "is not supported; a prompt is never cut"),
    "conversation": (only(), _KEPT),
    "max_completion_tokens": (only(), f"{_CHAT}max_output_tokens"),
    "max_tokens": (only(), f"{_CHAT}max_output_tokens"),
    "messages": (only(), f"{_CHAT}input"),
    "moderation": (only(), NOT_HERE),
    "n": (only(1), NOT_HERE),
    "previous_response_id": (only(), _KEPT),
    "prompt": (only(), _KEPT),
    "response_format": (only({"type": "text"}), f"{_CHAT}text.format"),
    "stop": (only([]), "is not supported by this form; use /v1/chat/completions"),
    "truncation": (only("disabled"), "is not supported but as disabled; a prompt is never cut"),
}

LOGPROBS = "message.output_text.logprobs"
# What the others name never comes about here, so nothing of it is missing.
INCLUDABLE = (
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)

INPUT_SCHEMA = {
    "description": "The conversation, or the text of one question.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "object"}},
    ],
}


class TextConfig(BaseModel):
    """What the answer's text has to look like."""

    model_config = ConfigDict(strict=True, extra="ignore")

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(AnswerFields):
    """Body of `POST /v1/responses`."""

    input: Annotated[Any, WithJsonSchema(INPUT_SCHEMA)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    reasoning: dict[str, Any] | None = None
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None

    @classmethod
    def refused(cls) -> Refusals:
        """Fields that are refused unless they change nothing."""
        return REFUSED

    def to_call(self, settings: Settings, served: str) -> Call:
        """The request as the engine understands it.

        Args:
            settings: The operator's.
            served: Name of the model that answers.

        Raises:
            UnknownModel: Another model is asked for.
            RequestError: Fields that are not supported or contradict each other.
            PromptError: An input that makes no prompt.
        """
        check_model(self.model, settings, served)
        self._check_details()
        tools = self.read_tools(settings)
        messages = admit(_conversation(self.instructions, self.input), settings)
        form = None if self.text is None else self.text.format
        options = self.options(settings, self.max_output_tokens, None)
        options["logprobs"] = self.wants_logprobs
        options["top_logprobs"] = self.top_logprobs
        options["min_pixels"], options["max_pixels"] = self.min_pixels, self.max_pixels
        where = "text.format"
        return Call(
            messages=tools.told(messages),
            options=options,
            grammar=tools.form(read_form(form, None, settings, where), where),
            continues=messages[-1].role == "assistant",
        )

    def read_tools(self, settings: Settings) -> Tools:
        """The functions that the model may call. Errors as of `to_call`."""
        return Tools.of(self.tools, self.tool_choice, self.parallel_tool_calls, settings)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's tokens are told with their probabilities."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def echo(self) -> dict[str, Any]:
        """What was asked for, as every reply repeats it."""
        tools = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description or None,
                "parameters": dict(tool.parameters),
                "strict": tool.strict,
            }
            for tool in parse_tools(self.tools)
        ]
        form = None if self.text is None else self.text.format
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,  # whatever was asked; OpenAI's own default is true
            "temperature": self.temperature,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": tools,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
        }

    def _check_details(self) -> None:
        for name in self.include or ():
            if name not in INCLUDABLE:
                raise RequestError(
                    f"include holds {_shown(name)}, expected some of {', '.join(INCLUDABLE)}",
                    "include",
                )
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise RequestError(
                "text.verbosity is not supported; say in the input how long to be",
                "text.verbosity",
            )


def _conversation(instructions: str | None, raw: object) -> list[Message]:
    turns = Turns()
    if instructions:
        turns.say("system", (TextPart(instructions),))
    if isinstance(raw, str):
        turns.say("user", (TextPart(raw),))
        return turns.messages()
    if not isinstance(raw, Sequence):
        raise PromptError(f"input is a {type(raw).__name__}, expected text or a list", "input")
    if not raw:
        raise PromptError("input is empty, expected at least one item", "input")
    for index, item in enumerate(raw):
        _add(turns, f"input[{index}]", item)
    messages = turns.messages()
    if not messages:
        raise PromptError("input holds no messages, expected at least one", "input")
    return messages


def _add(turns: Turns, where: str, item: object) -> None:
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} is a {type(item).__name__}, expected an item", where)
    kind = item.get("type", "message")
    if kind == "message":
        role = ROLES.get(str(item.get("role")))
        if role is None or role == "tool":
            raise PromptError(
                f"{where} has role {_shown(item.get('role'))}, expected user, assistant, system or "
                "developer",
                f"{where}.role",
            )
        turns.say(role, parse_content(where, role, _content(where, item.get("content"))))
    elif kind == "function_call":
        call_id, name, arguments = (item.get(key) for key in ("call_id", "name", "arguments"))
        if not (isinstance(call_id, str) and isinstance(name, str) and name):
            raise PromptError(f"{where} has no call_id or no name", where)
        if not isinstance(arguments, str):
            raise PromptError(f"{where}.arguments is no JSON text", f"{where}.arguments")
        turns.call(call_id, name, arguments)
    elif kind == "function_call_output":
        call_id, output = item.get("call_id"), item.get("output")
        if not isinstance(call_id, str):
            raise PromptError(f"{where} has no call_id", f"{where}.call_id")
        turns.result(where, call_id, parse_content(where, "tool", _content(where, output)))
    elif kind != "reasoning":  # thoughts are not told again
        raise PromptError(
            f"{where} has type {_shown(kind)}, which is not supported here; expected message, "
            "function_call, function_call_output or reasoning",
            f"{where}.type",
        )


def _content(where: str, raw: object) -> object:
    """Content in the shape that chat completions have."""
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        return raw
    return [_part(f"{where}.content[{number}]", part) for number, part in enumerate(raw)]


def _part(where: str, part: object) -> object:
    if isinstance(part, Mapping):
        refuse_video(where, part, "Responses")
    if not isinstance(part, Mapping) or part.get("type") != "input_image":
        return part
    if part.get("file_id") is not None:
        raise PromptError(f"{where}.file_id is not supported; no files are kept", where)
    if part.get("detail") == "original":  # a picture keeps what the model can take of it
        return {**part, "detail": "high"}
    return part


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
