"""A form that answers keep to: a JSON schema, from a file, as text, or from a short description.

The description is a list of fields, as in `llm`: `date, total float, items {name, price float}[]`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlx_qwenvl.engine.grammar import MAX_SOURCE_BYTES, Grammar
from mlx_qwenvl.errors import OptionError

TYPES: Final = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
}
_WORD: Final = re.compile(r"[\w-]*")
DEEPEST: Final = 20  # braces in each other
# Longest text and list of a described form: a model that repeats itself has to come to an end.
LONGEST_TEXT: Final = 1000  # characters
LONGEST_LIST: Final = 200  # entries

Schema = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What an answer has to look like.

    Attributes:
        schema: A JSON schema.
    """

    schema: Schema

    @property
    def grammar(self) -> Grammar:
        """The form as the runtime keeps to it."""
        return Grammar("json_schema", json.dumps(self.schema, ensure_ascii=False))

    def question(self, asked: str) -> str:
        """A question that tells the model which fields there are; the grammar alone says nothing.

        Args:
            asked: What the caller asks.
        """
        lines = "\n".join(_told(name, part) for name, part in _fields(self.schema).items())
        return f"{asked}\nAnswer with JSON that has these fields:\n{lines}" if lines else asked


def read_form(text: str) -> Form:
    """Read a form.

    Args:
        text: The path of a JSON schema, the schema itself, or a list of fields. A field is a name
            and, behind blanks, its type: str (which is the default), int, float, bool, date, time,
            words to choose from as `red|green|blue`, or fields of its own in braces; `[]` behind a
            type makes a list. What follows a colon, up to a comma or a line's end, explains it.

    Raises:
        OptionError: It is none of these.
    """
    bare = text.strip()
    if bare.startswith("{"):
        return Form(_schema(bare, "the schema"))
    path = Path(text)
    if bare.endswith(".json") or _is_file(path):
        return Form(_schema(_read(path), str(path)))
    return Form(_Description(bare).schema())


def read_grammar(text: str) -> Grammar:
    """The grammar of a form; arguments and errors are those of `read_form`."""
    return read_form(text).grammar


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a description may be no possible name
        return False


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise OptionError(f"the schema {path}: {reason}") from None
    if len(text) > MAX_SOURCE_BYTES:
        raise OptionError(f"the schema {path}: has more than {MAX_SOURCE_BYTES} bytes")
    return text


def _schema(text: str, name: str) -> Schema:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise OptionError(f"{name} is no JSON: {reason}") from None
    if not isinstance(value, dict):
        raise OptionError(f"{name} is a {type(value).__name__}, expected a JSON schema's object")
    return value


class _Description:
    """Reads a list of fields."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def schema(self) -> Schema:
        """The whole description."""
        schema = self._object(deep=0)
        if self.at < len(self.text):
            raise self._wrong("expected the end")
        return schema

    def _object(self, deep: int) -> Schema:
        if deep > DEEPEST:
            raise OptionError(f"the schema has more than {DEEPEST} braces in each other")
        fields: dict[str, Schema] = {}
        while True:
            self._skip(" \t\r\n,")
            if self.at == len(self.text) or self.text[self.at] == "}":
                break
            name = self._word()
            if not name:
                raise self._wrong("expected a field's name")
            if name in fields:
                raise OptionError(f"the schema names {name!r} twice")
            fields[name] = self._type(name, deep)
            self._skip(" \t")
            if self._take(":"):
                fields[name] = fields[name] | {"description": self._until(",\n}")}
            elif self.at < len(self.text) and self.text[self.at] not in ",\r\n}":
                raise self._wrong("expected a comma, a line's end or a colon")
        if not fields:
            raise self._wrong("expected a field's name")
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }

    def _type(self, name: str, deep: int) -> Schema:
        self._skip(" \t")
        if self._take("{"):
            found = self._object(deep + 1)
            if not self._take("}"):
                raise self._wrong("expected a closing brace")
        else:
            word = self._word()
            if self.at < len(self.text) and self.text[self.at] == "|":
                choices = [word]
                while self._take("|"):
                    choices.append(self._word())
                if "" in choices:
                    raise self._wrong("expected a word to choose")
                found = {"enum": choices}
            elif word and word not in TYPES:
                known = ", ".join(TYPES)
                raise OptionError(
                    f"the schema gives {name!r} the type {word!r}, expected {known}, words with | "
                    "between them, or fields in braces"
                )
            else:
                found = dict(TYPES[word or "str"])
                if found == {"type": "string"}:
                    found["maxLength"] = LONGEST_TEXT
        while self._take("[]"):
            found = {"type": "array", "items": found, "maxItems": LONGEST_LIST}
        return found

    def _word(self) -> str:
        word = _WORD.match(self.text, self.at)
        assert word is not None
        self.at = word.end()
        return word[0]

    def _until(self, ends: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at].strip()

    def _skip(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def _take(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self.at += len(sign)
        return True

    def _wrong(self, expected: str) -> OptionError:
        rest = self.text[self.at : self.at + 20] or "its end"
        return OptionError(f"the schema, at {rest!r}: {expected}")


def _fields(schema: Schema) -> dict[str, Any]:
    """What an object's schema, or that of a list of objects, names."""
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        schema = schema["items"]
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _told(name: str, part: Any, indent: str = "") -> str:
    """A field, what it is, and the fields in it, as lines of a list."""
    if not isinstance(part, dict):
        return f"{indent}- {name}"
    explained = f": {part['description']}" if isinstance(part.get("description"), str) else ""
    choices = part.get("enum")
    kind = " or ".join(map(str, choices)) if isinstance(choices, list) else part.get("type", "")
    known = {"string": "", "array": " (list)", "object": "", "": ""}
    kind = known.get(str(kind), f" ({kind})")
    inner = [_told(key, value, indent + "  ") for key, value in _fields(part).items()]
    return "\n".join([f"{indent}- {name}{kind}{explained}", *inner])
