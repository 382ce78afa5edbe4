"""What every wire form becomes: one question to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.inputs.messages import Message


@dataclass(frozen=True)
class Call:
    """One request as the engine understands it.

    Attributes:
        messages: The conversation; its pictures are checked against the operator's policy and not
            opened yet. Empty where `text` is given.
        text: Text to go on with as it stands, without a template, or its token ids; or None.
        options: The engine's; None values count as not given.
        n: Answers to the one prompt.
        grammar: What the answers have to look like, or None.
        continues: Whether the last message is the beginning of the answer.
    """

    messages: tuple[Message, ...] = ()
    text: str | tuple[int, ...] | None = None
    options: CallOptions = field(default_factory=CallOptions)
    n: int = 1
    grammar: Grammar | None = None
    continues: bool = False
