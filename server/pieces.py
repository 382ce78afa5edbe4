"""What a piece of an answer says: text, or a part of a tool's call."""

from __future__ import annotations

from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.tool_calls import TextPiece, ToolCallParser, ToolEvent


def pieces(chunk: Chunk, parser: ToolCallParser | None) -> list[ToolEvent]:
    """What is certain with this chunk.

    Args:
        chunk: The next of one answer.
        parser: Of that answer; None where its text holds no calls.
    """
    if parser is None:
        return [TextPiece(chunk.text)] if chunk.text else []
    found = parser.feed(chunk.text)
    return found if chunk.finish_reason is None else [*found, *parser.finish()]
