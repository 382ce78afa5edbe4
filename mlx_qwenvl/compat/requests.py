"""What is asked, in mistral.rs's words, and the same in ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from mlx_qwenvl.compat.names import ToolChoice
from mlx_qwenvl.compat.said import ignored, refused, settle
from mlx_qwenvl.engine.grammar import Grammar, GrammarKind
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.engine.tool_grammar import grammar_for
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.messages import TextPart, parse_messages
from mlx_qwenvl.inputs.tools import Tool, parse_tool_choice, parse_tools, with_tools

MAX_CHOICES = 128  # as in our server, which has it from OpenAI
GRAMMARS: Mapping[str, GrammarKind] = {
    "regex": "regex",
    "lark": "lark",
    "json_schema": "json_schema",
    "llguidance": "llguidance",
}

_NO_DRY = "is not supported; use repetition_penalty"
_WITH_DRY = "it belongs to dry_multiplier"
_NO_ADAPTERS = "is not supported; merge an adapter into the model before converting it"
NO_AGENT = "is not supported; call tools yourself, from message.tool_calls"
_NO_THOUGHT = "is not supported; whether a model thinks, and how long, is its own"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What both kinds of requests may ask of an answer; see `docs/compat.md`.

    Attributes:
        max_tokens: Most tokens of the answer; None for 1024.
        n_choices: Answers to the one prompt.
        logit_bias: Added to the logits of token ids.
        presence_penalty: Subtracted once for every token in the answer.
        frequency_penalty: Subtracted for every time a token is in the answer.
        repetition_penalty: Divides the logits of tokens in the prompt or the answer.
        stop_seqs: Texts before which the answer ends.
        temperature: 0 takes the likeliest token. Where no setting of sampling is given, the
            checkpoint's own hold.
        top_p: Keep the likeliest tokens that reach this probability together.
        top_k: Keep the k likeliest tokens.
        min_p: Keep tokens at least this fraction as likely as the likeliest.
        grammar: What the answer has to look like.
        grammar_type: Its language: "regex", "lark", "json_schema" or "llguidance".
    """

    max_tokens: int | None = None
    n_choices: int = 1
    logit_bias: Mapping[int, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop_seqs: Sequence[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    grammar: str | None = None
    grammar_type: str | None = None
    adapters: Sequence[str] | None = refused(_NO_ADAPTERS)
    adapter: Any = refused(_NO_ADAPTERS)
    dry_multiplier: float | None = refused(_NO_DRY)
    dry_base: float | None = ignored(_WITH_DRY)
    dry_allowed_length: int | None = ignored(_WITH_DRY)
    dry_sequence_breakers: Sequence[str] | None = ignored(_WITH_DRY)
    truncate_sequence: bool = refused("is not supported; a prompt is never cut", False)
    ignore_eos: bool = refused("is not supported; an answer ends where the model ends it", False)

    def check(self) -> None:
        """Tell of what is ignored.

        Raises:
            OptionError: Something is refused, or there is no such number of answers.
        """
        settle(self)
        n = self.n_choices
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
            raise OptionError(
                f"n_choices is {n!r}, expected a whole number from 1 to {MAX_CHOICES}", "n_choices"
            )

    def options(self) -> CallOptions:
        """The same as options of `QwenVL.generate`.

        Raises:
            OptionError: A value that makes no sense.
        """
        return {
            "max_tokens": self.max_tokens,
            "logit_bias": self.logit_bias,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "stop": None if self.stop_seqs is None else list(self.stop_seqs),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "grammar": self._form(),
        }

    def _form(self) -> Grammar | None:
        if self.grammar is None and self.grammar_type is None:
            return None
        kind = GRAMMARS.get(self.grammar_type or "")
        if self.grammar is None or kind is None:
            raise OptionError(
                f"grammar_type is {self.grammar_type!r}, expected one of {', '.join(GRAMMARS)}, "
                "and grammar its text",
                "grammar_type",
            )
        return Grammar(kind, self.grammar)


@dataclass(frozen=True)
class ChatCompletionRequest(Wishes):
    """A conversation to answer; see `docs/compat.md`.

    Attributes:
        messages: In OpenAI's form, pictures by URL, path, `data:` URL or bare base64; or the text
            of one question.
        model: Any name; the runner's model answers.
        logprobs: Whether tokens come with their log-probabilities.
        top_logprobs: How many alternatives with them, at most 20.
        stream: Whether the answer comes piece by piece.
        tool_schemas: Functions that the model may call, each as JSON text.
        tool_choice: Whether it may.
    """

    messages: Sequence[Mapping[str, Any]] | str
    model: str = "default"
    _: KW_ONLY
    logprobs: bool = False
    top_logprobs: int | None = None
    stream: bool = False
    tool_schemas: Sequence[str] | None = None
    tool_choice: ToolChoice | None = None
    web_search_options: Any = refused(NO_AGENT)
    enable_thinking: bool | None = refused(_NO_THOUGHT)
    reasoning_effort: str | None = refused(_NO_THOUGHT, harmless=("off", "none"))
    max_tool_rounds: int | None = refused(NO_AGENT)
    tool_dispatch_url: str | None = refused(NO_AGENT)
    enable_code_execution: bool = refused(NO_AGENT, False)
    enable_shell: bool = refused(NO_AGENT, False)
    shell_skills: Any = refused(NO_AGENT)
    agent_permission: Any = ignored("there is no agent to permit anything to")
    agent_approval_callback: Any = ignored("there is no agent that would ask")
    code_execution_permission: Any = ignored("no code is executed")
    session_id: str | None = refused("is not supported; send the whole conversation")
    files: Any = refused("is not supported; put pictures into messages")
    input_files: Any = refused("is not supported; put pictures into messages")

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The functions that the model may call.

        Raises:
            OptionError: One is no function.
        """
        if not self.tool_schemas or self.tool_choice is ToolChoice.NoTools:
            return ()
        return parse_tools([_read_tool(i, text) for i, text in enumerate(self.tool_schemas)])

    def options(self) -> CallOptions:
        """The same as options of `QwenVL.generate`.

        Raises:
            OptionError: A value that makes no sense.
        """
        options = super().options()
        if self.top_logprobs and not self.logprobs:
            raise OptionError("top_logprobs needs logprobs=True", "top_logprobs")
        options["logprobs"], options["top_logprobs"] = self.logprobs, self.top_logprobs
        if tools := self.tools:
            if options["grammar"] is not None:
                raise OptionError("tool_schemas and grammar cannot be had together", "grammar")
            options["grammar"] = grammar_for(tools, parse_tool_choice("auto", tools, None))
        return options

    def told(self) -> str | Sequence[Mapping[str, Any]]:
        """The messages, with the model told of its tools."""
        if not self.tools:
            return self.messages
        said: list[Mapping[str, Any]] = (
            [{"role": "user", "content": self.messages}]
            if isinstance(self.messages, str)
            else list(self.messages)
        )
        is_mapping = bool(said) and isinstance(said[0], Mapping)
        count = int(is_mapping and said[0].get("role") in ("system", "developer"))
        system = with_tools(parse_messages(said[:count]) if count else [], self.tools)[0]
        text = "".join(part.text for part in system.parts if isinstance(part, TextPart))
        return [{"role": "system", "content": text}, *said[count:]]


@dataclass(frozen=True)
class CompletionRequest(Wishes):
    """Text to go on with, without the dialogue form; see `docs/compat.md`.

    Attributes:
        prompt: The text.
        model: Any name; the runner's model answers.
        echo_prompt: Whether the answer begins with the prompt.
    """

    prompt: str
    model: str = "default"
    _: KW_ONLY
    echo_prompt: bool = False
    best_of: int = refused("is not supported; n_choices gives several answers", 1)
    suffix: str | None = refused("is not supported; this model writes forward only")
    tool_schemas: Sequence[str] | None = refused("is not supported; use a chat request")
    tool_choice: Any = ignored("it belongs to tool_schemas")


def _read_tool(index: int, text: str) -> object:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise OptionError(
            f"tool_schemas[{index}] is no JSON text; expected a function as json.dumps gives it",
            "tool_schemas",
        ) from None
