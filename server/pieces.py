"""What a piece of an answer says: a thought before it, text, or a part of a tool's call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.tool_calls import TextPiece, ToolCallParser, ToolEvent


@dataclass(frozen=True)
class ThoughtPiece:
    """More of what the model thinks before it answers."""

    text: str


Piece: TypeAlias = ThoughtPiece | ToolEvent


def pieces(chunk: Chunk, parser: ToolCallParser | None) -> list[Piece]:
    """What is certain with this chunk.

    Args:
        chunk: The next of one answer.
        parser: Of that answer; None where its text holds no calls.
    """
    thoughts: list[Piece] = [ThoughtPiece(chunk.thinking)] if chunk.thinking else []
    if parser is None:
        return [*thoughts, *([TextPiece(chunk.text)] if chunk.text else [])]
    found = [*thoughts, *parser.feed(chunk.text)]
    return found if chunk.finish_reason is None else [*found, *parser.finish()]
