"""OpenAI's chat completions: a request's body becomes a `Call`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from mlx_qwenvl.engine.options import MAX_TOP_LOGPROBS, MOST_FPS
from mlx_qwenvl.inputs.messages import parse_messages

from ..call import Call
from ..errors import RequestError
from ..settings import Settings
from .common import (
    NOT_HERE,
    REFUSED_EVERYWHERE,
    CompletionFields,
    Positive,
    Refusals,
    admit,
    blaming,
    only,
    read_form,
)
from .tools import Tools

_TOOLS = "is not supported; use tools and tool_choice"
_TEMPLATE = "is not supported; the dialogue form is the model's own"
_THINKING = "is not supported; whether a model thinks, and how long, is its own"

REFUSED: Refusals = {
    **REFUSED_EVERYWHERE,
    "add_generation_prompt": (only(True), _TEMPLATE),
    "agent_permission": (only(), NOT_HERE),
    "audio": (only(), "is not supported; this model neither hears nor speaks"),
    "best_of": (only(1), NOT_HERE),
    "chat_template": (only(), _TEMPLATE),
    "chat_template_kwargs": (only({}), _TEMPLATE),
    "documents": (only([]), NOT_HERE),
    "echo": (only(False), NOT_HERE),
    "enable_shell": (only(False), NOT_HERE),
    "enable_thinking": (only(False), _THINKING),
    "files": (only([]), "is not supported; put pictures into messages"),
    "function_call": (only("none", "auto"), _TOOLS),
    "functions": (only([]), _TOOLS),
    "modalities": (only(["text"], []), "holds more than text, which is all this model gives"),
    "moderation": (only(), NOT_HERE),
    "prediction": (only(), NOT_HERE),
    "reasoning_effort": (only("none"), _THINKING),
    "session_id": (only(), "is not supported; send the whole conversation"),
    "store": (only(False), "is not supported; nothing is kept here"),
    "suffix": (only(), NOT_HERE),
    "thinking": (only({"type": "disabled"}), _THINKING),
    "verbosity": (only("medium"), "is not supported; say in the messages how long to be"),
    "web_search_options": (only(), NOT_HERE),
}

MESSAGES_SCHEMA = {
    "description": "The conversation, or the text of one question.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "object"}},
                            {"type": "null"},
                        ]
                    },
                },
            },
        },
    ],
}


class ChatRequest(CompletionFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None
    fps: Annotated[float, Field(gt=0, le=MOST_FPS)] | None = None
    n_frames: Positive | None = None
    max_frames: Positive | None = None

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
            RequestError: Fields that contradict each other.
            PromptError: Messages that make no prompt.
        """
        self.check(settings, served)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        tools = self.read_tools(settings)
        with blaming("messages"):
            messages = admit(parse_messages(self.messages), settings)
        limits = [m for m in (self.max_tokens, self.max_completion_tokens) if m is not None]
        options = self.options(settings, min(limits) if limits else None, self.stop)
        options["logprobs"] = self.logprobs
        options["top_logprobs"] = self.top_logprobs
        options["min_pixels"] = self.min_pixels
        options["max_pixels"] = self.max_pixels
        options["fps"] = self.fps
        options["n_frames"] = self.n_frames
        options["max_frames"] = self.max_frames
        return Call(
            messages=tools.told(messages),
            options=options,
            n=self.n or 1,
            grammar=tools.form(read_form(self.response_format, self.grammar, settings)),
            continues=messages[-1].role == "assistant",
        )

    def read_tools(self, settings: Settings) -> Tools:
        """The functions that the model may call. Errors as of `to_call`."""
        return Tools.of(self.tools, self.tool_choice, self.parallel_tool_calls, settings)
