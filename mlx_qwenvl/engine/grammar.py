"""What an answer has to look like, and the tokens that keep it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "llguidance"]


@dataclass(frozen=True)
class Grammar:
    """A form that an answer has to have.

    Attributes:
        kind: Which language `source` is in; "json_object" is any JSON object and has no source.
        source: A JSON schema or llguidance grammar as JSON text, a regular expression, or a Lark
            grammar.
    """

    kind: GrammarKind
    source: str = ""
