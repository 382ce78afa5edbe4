"""OpenAI's `tools` and `tool_choice`, told to the model and held to their schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.tool_grammar import grammar_for
from mlx_qwenvl.inputs.messages import Message
from mlx_qwenvl.inputs.tools import Tool, ToolChoice, parse_tool_choice, parse_tools, with_tools

from ..errors import RequestError
from ..settings import Settings
from .common import blaming


@dataclass(frozen=True)
class Tools:
    """The functions of one request.

    Attributes:
        tools: Those that may be called; none where the model is not to know of any.
        choice: Whether they have to be.
    """

    tools: tuple[Tool, ...]
    choice: ToolChoice

    @classmethod
    def of(
        cls,
        raw: Sequence[Mapping[str, Any]] | None,
        choice: str | Mapping[str, Any] | None,
        parallel: bool | None,
        settings: Settings,
    ) -> Tools:
        """Read OpenAI's three fields.

        Raises:
            RequestError: The tools are larger than the operator allows.
            OptionError: They are no tools, or the choice is none of them.
        """
        with blaming("tools"):
            tools = parse_tools(raw)
        with blaming("tool_choice"):
            chosen = parse_tool_choice(choice, tools, parallel)
        if len(json.dumps(raw)) > settings.max_schema_bytes:
            raise RequestError(
                f"the tools have more than {settings.max_schema_bytes} bytes", "tools"
            )
        return cls(chosen.among(tools), chosen)

    def told(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A conversation in which the model is told of the tools."""
        return tuple(with_tools(messages, self.tools))

    def form(self, asked: Grammar | None, where: str = "response_format") -> Grammar | None:
        """What the answer has to look like.

        Args:
            asked: The form that the request asks for beside its tools.
            where: What the request calls it.

        Raises:
            RequestError: Tools and another form together.
        """
        if not self.tools:
            return asked
        if asked is not None:
            raise RequestError(
                "tools and a form of the answer cannot be had together; "
                "leave out one of them or set tool_choice to none",
                where,
            )
        with blaming("tools"):
            return grammar_for(self.tools, self.choice)
