"""Anthropic's Messages: a request's body becomes a `Call`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import WithJsonSchema

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.messages import Message, Part, parse_content
from mlx_qwenvl.inputs.tools import as_json

from ..call import Call
from ..errors import RequestError
from ..settings import Settings
from .common import (
    NOT_HERE,
    REFUSED_EVERYWHERE,
    AnswerFields,
    Positive,
    Refusals,
    Stops,
    admit,
    check_model,
    only,
    read_form,
)
from .tools import Tools
from .turns import Turns, refuse_video

# Claude Code begins its system prompt with this line. It says who pays, differs from request to
# request, and would keep all that follows from being found again.
ATTRIBUTION = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")

THINKING = ("adaptive", "between_tools", "disabled", "enabled")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
THOUGHTS = ("thinking", "redacted_thinking")
# What is told of thoughts: all, that there were some, nothing. Anthropic sums up; here it is all.
Display: TypeAlias = Literal["summarized", "omitted", "none"]
DISPLAYS: tuple[Display, ...] = ("summarized", "omitted")


def _only_about_thoughts(value: Any) -> bool:
    """Whether nothing but earlier thoughts is to be left out, which never are told again here."""
    edits = value.get("edits", ()) if isinstance(value, Mapping) else None
    return isinstance(edits, Sequence) and all(
        isinstance(each, Mapping) and str(each.get("type")).startswith("clear_thinking")
        for each in edits
    )


REFUSED: Refusals = {
    **REFUSED_EVERYWHERE,
    "container": (only(), "is not supported; the server runs nothing for anybody"),
    "context_management": (_only_about_thoughts, "is not supported; a prompt is never cut"),
    "max_completion_tokens": (only(), "belongs to /v1/chat/completions; expected max_tokens"),
    "mcp_servers": (only([]), "is not supported; this server calls no others"),
    "n": (only(1), NOT_HERE),
    "prompt": (only(), "belongs to /v1/completions; expected messages"),
    "response_format": (only({"type": "text"}), "is not supported; use output_config.format"),
    "stop": (only([]), "is not supported; use stop_sequences"),
}

_BLOCKS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
}
SYSTEM_SCHEMA = {"description": "What the model is to keep to.", **_BLOCKS}
MESSAGES_SCHEMA = {
    "description": "The conversation.",
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _BLOCKS},
    },
}


class CountTokensRequest(AnswerFields):
    """Body of `POST /v1/messages/count_tokens`."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    system: Annotated[Any, WithJsonSchema(SYSTEM_SCHEMA)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
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
            PromptError: Messages that make no prompt.
        """
        check_model(self.model, settings, served)
        if self.thinking is not None and self.thinking.get("type") not in THINKING:
            raise RequestError(f"thinking.type is not one of {', '.join(THINKING)}", "thinking")
        if self.thinking is not None and self.thinking.get("display") not in (None, *DISPLAYS):
            raise RequestError(f"thinking.display is not one of {', '.join(DISPLAYS)}", "thinking")
        tools = self.read_tools(settings)
        messages = admit(_conversation(self.system, self.messages), settings)
        where, form = "output_config.format", (self.output_config or {}).get("format")
        if form is None:
            where, form = "output_format", self.output_format
        if form is not None and not isinstance(form, Mapping):
            raise RequestError(f"{where} is no object", where)
        options = self.options(settings, self.most, self.stops)
        options["min_pixels"], options["max_pixels"] = self.min_pixels, self.max_pixels
        return Call(
            messages=tools.told(messages),
            options=options,
            grammar=tools.form(read_form(form, None, settings, where), where),
            continues=messages[-1].role == "assistant",
        )

    @property
    def display(self) -> Display:
        """What is told of thoughts; a model that thinks does so, whatever is asked."""
        asked = self.thinking or {}
        if asked.get("type") == "disabled":
            return "none"
        return "omitted" if asked.get("display") == "omitted" else "summarized"

    @property
    def most(self) -> int | None:
        """Tokens that the answer may have."""
        return None

    @property
    def stops(self) -> list[str] | None:
        """Texts before which the answer ends."""
        return None

    def read_tools(self, settings: Settings) -> Tools:
        """The functions that the model may call. Errors as of `to_call`."""
        choice = self.tool_choice or {}
        kind, chosen = str(choice.get("type")), None
        if kind == "tool":
            chosen = {"type": "function", "name": choice.get("name")}
        elif self.tool_choice is not None and kind not in CHOICES:
            named = "auto, any, tool, none"
            raise RequestError(f"tool_choice.type is not one of {named}", "tool_choice.type")
        parallel = choice.get("disable_parallel_tool_use") is not True
        tools = None if self.tools is None else [_tool(i, t) for i, t in enumerate(self.tools)]
        return Tools.of(tools, chosen or CHOICES.get(kind), parallel, settings)


class MessagesRequest(CountTokensRequest):
    """Body of `POST /v1/messages`."""

    max_tokens: Positive
    stop_sequences: Stops | None = None

    @property
    def most(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_tokens

    @property
    def stops(self) -> list[str] | None:
        """Texts before which the answer ends."""
        return self.stop_sequences


def _tool(index: int, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    kind = raw.get("type")
    if kind not in (None, "custom"):
        raise RequestError(
            f"tools[{index}].type is {_shown(kind)}, which this server does not bring along; "
            "expected custom",
            f"tools[{index}].type",
        )
    if "input_schema" not in raw:
        raise RequestError(f"tools[{index}] has no input_schema", f"tools[{index}].input_schema")
    told = {key: raw.get(key) for key in ("name", "description", "strict")}
    return {"type": "function", "function": {**told, "parameters": raw["input_schema"]}}


def _conversation(system: object, raw: object) -> list[Message]:
    turns = Turns()
    for number, block in enumerate(_blocks("system", system or ())):
        where = f"system[{number}]"
        if block.get("type") != "text":
            raise PromptError(f"{where} has type {_shown(block.get('type'))}, expected text", where)
        text = block.get("text")
        if number == 0 and isinstance(text, str):
            text = ATTRIBUTION.sub("", text, count=1) if ATTRIBUTION.match(text) else text
            if not text:
                continue
        turns.say("system", parse_content("system", "system", [{**block, "text": text}]))
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise PromptError(f"messages is a {type(raw).__name__}, expected a list", "messages")
    if not raw:
        raise PromptError("messages is empty, expected at least one message", "messages")
    for index, message in enumerate(raw):
        _add(turns, f"messages[{index}]", message)
    return turns.messages()


def _add(turns: Turns, where: str, message: object) -> None:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}, expected an object", where)
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise PromptError(
            f"{where} has role {_shown(role)}, expected user, assistant or system", f"{where}.role"
        )
    if "content" not in message:
        raise PromptError(f"{where} has no content", f"{where}.content")
    blocks = _blocks(f"{where}.content", message["content"])
    said: list[dict[str, Any]] = []
    calls: list[Callable[[], None]] = []
    has_results = False
    for number, block in enumerate(blocks):
        place, kind = f"{where}.content[{number}]", block.get("type")
        if kind == "tool_result" and role == "user":
            has_results = True
            turns.result(place, *_result(place, block), is_error=block.get("is_error") is True)
        elif kind == "tool_use" and role == "assistant":
            calls.append(_call(turns, place, block))
        elif kind not in THOUGHTS or role != "assistant":  # thoughts are not told again
            said.append(_part(place, block))
    if said or not has_results:
        turns.say(role, parse_content(where, role, said))
    for call in calls:
        call()


def _blocks(where: str, raw: object) -> list[Mapping[str, Any]]:
    if isinstance(raw, str):
        return [{"type": "text", "text": raw}]
    if not isinstance(raw, Sequence):
        raise PromptError(
            f"{where} is a {type(raw).__name__}, expected text or a list of blocks", where
        )
    for number, block in enumerate(raw):
        if not isinstance(block, Mapping):
            place = f"{where}[{number}]"
            raise PromptError(f"{place} is a {type(block).__name__}, expected a block", place)
    return list(raw)


def _result(place: str, block: Mapping[str, Any]) -> tuple[str, tuple[Part, ...]]:
    call_id, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(call_id, str):
        raise PromptError(f"{place} has no tool_use_id", f"{place}.tool_use_id")
    inside = f"{place}.content"
    parts = [_part(f"{inside}[{n}]", b) for n, b in enumerate(_blocks(inside, content or ()))]
    return call_id, parse_content(place, "tool", parts)


def _call(turns: Turns, place: str, block: Mapping[str, Any]) -> Callable[[], None]:
    call_id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(call_id, str) or not isinstance(name, str) or not name:
        raise PromptError(f"{place} has no id or no name", place)
    if not isinstance(given, Mapping):
        raise PromptError(f"{place}.input is no object", f"{place}.input")
    arguments = as_json(given, f"{place}.input")
    return lambda: turns.call(call_id, name, arguments)


def _part(place: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """A block as a part of OpenAI's form."""
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": block.get("text")}
    refuse_video(place, block, "Messages")
    if kind != "image":
        raise PromptError(
            f"{place} has type {_shown(kind)}, which is not supported here; expected text, image, "
            "or a tool's call or result in its place",
            f"{place}.type",
        )
    source = block.get("source")
    form = source.get("type") if isinstance(source, Mapping) else None
    key = {"base64": "data", "url": "url"}.get(str(form))
    if not isinstance(source, Mapping) or key is None:
        raise PromptError(
            f"{place}.source has type {_shown(form)}, expected base64 or url; no files are kept",
            f"{place}.source.type",
        )
    named = source.get(key)
    if not isinstance(named, str):
        raise PromptError(f"{place}.source has no {key}", f"{place}.source.{key}")
    # Base64 is told as such, so that nothing in it is ever taken for a path.
    bare = form == "base64" and not named.startswith("data:")
    return {"type": "image", "image": f"data:;base64,{named}" if bare else named}


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
