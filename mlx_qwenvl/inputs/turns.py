"""Turns that the family's dialogue form has no role for, said in the roles it has.

Checkpoints of this family learned one form for tools: a call is JSON inside `<tool_call>`, and
what came of it is a user's turn with `<tool_response>`. Their templates know neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mlx_qwenvl.inputs.messages import Message, Part, TextPart, ToolCall
from mlx_qwenvl.inputs.tools import CALL_BEGIN, CALL_END


def said_plainly(messages: Sequence[Message]) -> list[Message]:
    """Messages of system, user and assistant alone; results that follow each other share a turn."""
    plain: list[Message] = []
    after_result = False
    for message in messages:
        parts: list[Part] = list(message.parts)
        if message.role == "tool":
            parts = [TextPart("<tool_response>\n"), *parts, TextPart("\n</tool_response>")]
            if after_result:
                before = plain.pop()
                parts = [*before.parts, TextPart("\n"), *parts]
            plain.append(Message("user", tuple(parts)))
        else:
            for call in message.tool_calls:
                parts.append(TextPart(("\n" if parts else "") + _call_text(call)))
            plain.append(Message(message.role, tuple(parts)))
        after_result = message.role == "tool"
    return plain


def _call_text(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{CALL_BEGIN}\n{{"name": {name}, "arguments": {call.arguments}}}\n{CALL_END}'
