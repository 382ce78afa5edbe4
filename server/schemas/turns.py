"""A conversation read item by item, for the forms in which a tool's result names its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.messages import Message, Part, TextPart, ToolCall, one_system
from mlx_qwenvl.inputs.video_part import VIDEO_KINDS


def refuse_video(where: str, part: Mapping[str, Any], form: str) -> None:
    """Turn away a part with a video, which has no place in these forms.

    Args:
        where: How errors name the part.
        part: The part.
        form: Name of the form.

    Raises:
        PromptError: It is one.
    """
    kind = part.get("type")
    if isinstance(kind, str) and kind in VIDEO_KINDS:
        raise PromptError(
            f"{where} has type {kind!r}, and {form} has no form for videos; "
            "/v1/chat/completions takes them as video_url",
            f"{where}.type",
        )


class Turns:
    """Items become turns: an answer and its calls are one, results follow in the calls' order."""

    def __init__(self) -> None:
        self._turns: list[Message] = []
        self._calls: list[str] = []  # ids of the last answer's
        self._results: dict[str, Message] = {}

    def say(self, role: str, parts: Sequence[Part]) -> None:
        """Add what somebody says; `role` is that of `Message`."""
        self._settle()
        self._turns.append(Message(role, tuple(parts)))

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a call of a tool to the answer before it, or to one that only calls.

        Args:
            call_id: By which its result names it.
            name: The function's.
            arguments: JSON text.
        """
        if self._results or not self._turns or self._turns[-1].role != "assistant":
            self.say("assistant", ())
        turn = self._turns.pop()
        calls = (*turn.tool_calls, ToolCall(name, arguments))
        self._turns.append(Message("assistant", turn.parts, calls))
        self._calls.append(call_id)

    def result(
        self, where: str, call_id: str, parts: Sequence[Part], is_error: bool = False
    ) -> None:
        """Add what came of a call.

        Args:
            where: How errors name the result.
            call_id: The call's.
            parts: What came.
            is_error: Whether it went wrong.

        Raises:
            PromptError: The answer before it made no such call, or has its result already.
        """
        if call_id not in self._calls or call_id in self._results:
            problem = "has its result already" if call_id in self._results else "was not made"
            raise PromptError(
                f"{where} is the result of a call that {problem} in the answer before it", where
            )
        begin = (TextPart("Error: "),) if is_error else ()
        self._results[call_id] = Message("tool", (*begin, *parts))

    def messages(self) -> list[Message]:
        """The conversation; system messages at its beginning are one."""
        self._settle()
        return one_system(self._turns)

    def _settle(self) -> None:
        # The model knows no ids: results stand in the order of the calls.
        self._turns += [self._results[each] for each in self._calls if each in self._results]
        self._calls, self._results = [], {}
