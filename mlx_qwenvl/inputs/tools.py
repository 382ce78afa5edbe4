"""Functions that the model may call: what a caller says of them, and how the model is told.

The family's later text models learned one form: the functions stand as JSON in the system message,
a call is JSON between `<tool_call>` and `</tool_call>`, and what came of it goes back between
`<tool_response>` and `</tool_response>`. Qwen2-VL's own template has no place for functions, so
they are told as text. Whatever a caller writes into them stays text as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.messages import Message, TextPart

MAX_TOOLS = 128  # OpenAI's limit
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
DEFAULT_SYSTEM = "You are a helpful assistant."  # what the family's templates say by themselves

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")  # Anthropic's limit; OpenAI's is 64
_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    f"within {CALL_BEGIN}{CALL_END} XML tags:\n{CALL_BEGIN}\n"
    f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{CALL_END}'
)


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: At most 128 of the characters a-z, A-Z, 0-9, _ and -.
        description: What it is for, or nothing.
        parameters: A JSON schema of its arguments, which are an object.
        strict: Whether a keyword of the schema that cannot be enforced is an error.

    Raises:
        OptionError: It is no such function.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no function."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise OptionError(
                f"a tool has the name {_shown(self.name)}, expected 1 to 128 of the characters "
                "a-z, A-Z, 0-9, _ and -"
            )
        for name, value, kinds, said in (
            ("description", self.description, str, "a text"),
            ("parameters", self.parameters, Mapping, "a JSON schema"),
            ("strict", self.strict, bool, "true or false"),
        ):
            if not isinstance(value, kinds):
                raise OptionError(
                    f"tool {self.name} has a {type(value).__name__} as {name}, expected {said}"
                )
        if self.parameters.get("type", "object") != "object":
            raise OptionError(
                f"tool {self.name} has parameters of type {_shown(self.parameters['type'])}, "
                "expected object"
            )
        as_json(self.parameters, f"the parameters of tool {self.name}")

    @property
    def told(self) -> str:
        """One line of JSON, as the model learned it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return as_json({"type": "function", "function": function}, f"tool {self.name}")


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools have to be called, and which may be.

    Attributes:
        mode: "none", "auto" or "required".
        names: The tools that may be called, or None for all.
        parallel: Whether several may be called in one answer.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: frozenset[str] | None = None
    parallel: bool = True

    def among(self, tools: Sequence[Tool]) -> tuple[Tool, ...]:
        """Those of the tools that may be called."""
        if self.mode == "none":
            return ()
        return tuple(tool for tool in tools if self.names is None or tool.name in self.names)


def parse_tools(raw: object) -> tuple[Tool, ...]:
    """Read OpenAI's `tools`.

    Args:
        raw: A list of {"type": "function", "function": {"name": ..., "parameters": ...}}, or with
            the function's fields beside the type.

    Raises:
        OptionError: Something is no function, two have one name, or there are too many.
    """
    if raw is None:
        return ()
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise OptionError(f"tools is a {type(raw).__name__}, expected a list of functions")
    return check_tools([_tool(f"tools[{index}]", entry) for index, entry in enumerate(raw)])


def check_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools, if they can be told apart.

    Raises:
        OptionError: There are too many, or two have one name.
    """
    if len(tools) > MAX_TOOLS:
        raise OptionError(f"tools has {len(tools)} entries, expected at most {MAX_TOOLS}")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in seen:
            raise OptionError(f"tools[{index}] has the name {tool.name}, which another has too")
        seen.add(tool.name)
    return tuple(tools)


def _tool(where: str, entry: object) -> Tool:
    if not isinstance(entry, Mapping):
        raise OptionError(f"{where} is a {type(entry).__name__}, expected a function")
    if entry.get("type", "function") != "function":
        raise OptionError(f"{where} has type {_shown(entry['type'])}, expected function")
    function = entry.get("function", entry)
    if not isinstance(function, Mapping):
        raise OptionError(f"{where}.function is a {type(function).__name__}, expected a mapping")
    given = {key: function.get(key) for key in ("description", "parameters", "strict")}
    try:
        return Tool(
            function.get("name", ""),
            **{key: value for key, value in given.items() if value is not None},
        )
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def parse_tool_choice(raw: object, tools: Sequence[Tool], parallel: bool | None) -> ToolChoice:
    """Read OpenAI's `tool_choice` and `parallel_tool_calls`.

    Args:
        raw: None, "none", "auto", "required", a function by name, or `allowed_tools`.
        tools: All tools.
        parallel: Whether several may be called in one answer; None counts as true.

    Raises:
        OptionError: It is none of these, or names a tool that there is not.
    """
    several = parallel is not False
    if raw is None:
        return ToolChoice("auto" if tools else "none", parallel=several)
    if raw == "none" or (raw == "auto" and not tools):
        return ToolChoice("none", parallel=several)
    if not tools:
        raise OptionError("tool_choice was given without tools")
    if raw == "auto" or raw == "required":
        return ToolChoice("auto" if raw == "auto" else "required", parallel=several)
    if isinstance(raw, Mapping) and raw.get("type") == "function":
        # Who names a function wants it called, once.
        return ToolChoice("required", _names([raw], tools), parallel=False)
    if isinstance(raw, Mapping) and raw.get("type") == "allowed_tools":
        said = raw.get("allowed_tools", raw)
        mode = said.get("mode", "auto") if isinstance(said, Mapping) else None
        listed = said.get("tools") if isinstance(said, Mapping) else None
        if mode in ("auto", "required") and isinstance(listed, Sequence) and listed:
            return ToolChoice(mode, _names(listed, tools), parallel=several)
        raise OptionError("tool_choice.allowed_tools has no mode or tools, expected both")
    raise OptionError(
        f"tool_choice is {_shown(raw)}, expected none, auto, required, a function or allowed_tools"
    )


def _names(entries: Sequence[object], tools: Sequence[Tool]) -> frozenset[str]:
    known = {tool.name for tool in tools}
    names = set()
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, Mapping) else entry
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in known:
            raise OptionError(f"tool_choice names {_shown(name)}, which is none of the tools")
        names.add(name)
    return frozenset(names)


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Messages whose system message tells of the tools.

    Args:
        messages: A conversation; its first message may be a system message.
        tools: Those to tell of; none changes nothing.
    """
    if not tools:
        return list(messages)
    told = _HEAD + "\n".join(tool.told for tool in tools) + _FOOT
    if messages and messages[0].role == "system":
        system, *rest = messages
        return [Message("system", (*system.parts, TextPart(f"\n\n{told}"))), *rest]
    return [Message("system", (TextPart(f"{DEFAULT_SYSTEM}\n\n{told}"),)), *messages]


def as_json(value: object, name: str) -> str:
    """A value as one line of JSON.

    Raises:
        OptionError: JSON cannot say it.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise OptionError(f"{name} cannot be written as JSON") from None


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
