"""What an answer has to look like, in the languages that callers say it in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlx_qwenvl.errors import OptionError

GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "llguidance", "tools"]

MAX_SOURCE_BYTES = 256 * 2**10  # bytes of one grammar, as UTF-8

# A random model must not fill its answer with blanks: one at most between two tokens of JSON.
# A schema may neither say otherwise nor have keywords left out in silence.
JSON_FORM: Any = {"whitespace_pattern": r"\x20?", "lenient": False}


@dataclass(frozen=True)
class Grammar:
    """A form that an answer has to have.

    Attributes:
        kind: Which language `source` is in; "json_object" is any JSON object and has no source,
            "tools" is the Lark grammar that `tool_grammar.py` makes.
        source: A JSON schema or llguidance grammar as JSON text, a regular expression, or a Lark
            grammar.
        instead: What is taken where this cannot be compiled, or None where that is an error.

    Raises:
        OptionError: An unknown kind, or a source that is no text or longer than `MAX_SOURCE_BYTES`.
    """

    kind: GrammarKind
    source: str = ""
    instead: Grammar | None = None

    def __post_init__(self) -> None:
        """Refuse what is no grammar at first sight."""
        kinds = get_args(GrammarKind)
        if self.kind not in kinds:
            raise OptionError(f"grammar has kind {self.kind!r:.40}, expected one of {kinds}")
        if not isinstance(self.source, str):
            raise OptionError(f"grammar is a {type(self.source).__name__}, expected its text")
        size = len(self.source.encode("utf-8", "replace"))
        if size > MAX_SOURCE_BYTES:
            raise OptionError(
                f"the {self.name} has {size} bytes, expected at most {MAX_SOURCE_BYTES}"
            )
        if not self.source and self.kind != "json_object":
            raise OptionError(f"the {self.name} is empty")

    @property
    def name(self) -> str:
        """What people call it."""
        return {
            "json_schema": "JSON schema",
            "regex": "regular expression",
            "lark": "Lark grammar",
            "tools": "schema of the tools",
        }.get(self.kind, "grammar")


def guidance_text(grammar: Grammar) -> str:
    """A grammar in llguidance's own form, not checked yet.

    Raises:
        OptionError: The JSON around it is none.
    """
    from llguidance import LLMatcher

    source = grammar.source.encode("utf-8", "replace").decode("utf-8")
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(source)
    if grammar.kind in ("lark", "tools"):
        return LLMatcher.grammar_from_lark(source)
    if grammar.kind == "llguidance":
        return source
    if grammar.kind == "json_object":
        source = '{"type": "object"}'
    try:
        return LLMatcher.grammar_from_json_schema(source, overrides=JSON_FORM)
    except ValueError:
        raise OptionError(
            "the JSON schema is no JSON object, or one that is nested too deeply"
        ) from None


def one_line(grammar: Grammar, error: str) -> str:
    """What was wrong with a grammar, without the parser's state that llguidance adds to it.

    Args:
        grammar: Which one.
        error: As llguidance put it.
    """
    name = grammar.name
    for sign, said in _SAID.items():
        if sign in error:
            return f"the {name} {said}"
    begin = "Unimplemented keys: "
    if begin in error:
        keys = error[error.index(begin) + len(begin) :].split("\n")[0]
        return f"the {name} uses {_listed(keys)}, which cannot be enforced here"
    return f"the {name} is not valid"


def _listed(keys: str) -> str:
    try:
        names = [str(name) for name in json.loads(keys)]
    except (ValueError, TypeError):
        return "a keyword"
    shown = ", ".join(name if name.isidentifier() else ascii(name) for name in names[:5])
    return shown[:100]


_TOO_COMPLEX = "is too complex"
_NEEDS_OTHERS = "refers to another document; references are followed only inside the schema"

# Parts of llguidance's messages, the first that fits.
_SAID = {
    "not present in a registry": _NEEDS_OTHERS,
    "Unsatisfiable schema": "cannot be satisfied by any value",
    "NoExtension": "lets no text through",
    "backreferences": "uses backreferences, which are not supported",
    "look-around": "uses look-around, which is not supported",
    "recursion limit": "is nested too deeply",
    "too deeply nested": "is nested too deeply",
    "too large": _TOO_COMPLEX,
    "too big": _TOO_COMPLEX,
    "too many": _TOO_COMPLEX,
    "fuel": _TOO_COMPLEX,
    "limit": _TOO_COMPLEX,
    "max is": _TOO_COMPLEX,
    "Unable to determine": _TOO_COMPLEX,
    "oneOf constraints": "has a oneOf whose parts may overlap; expected anyOf",
    "Invalid type": "names a type that is none of JSON's",
    "does not exist": "refers to a definition that it does not have",
    "float range": "has a range of numbers that cannot be enforced here",
    "disjoint": "has patternProperties that overlap",
    "Unknown format": "uses a format that is not known here",
    "unknown name": "uses a rule that it does not define",
    "invalid regex": "has a regular expression that is not valid",
}
