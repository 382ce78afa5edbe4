"""Calls of tools found in an answer's text as it streams, wherever the seams lie.

A call is `<tool_call>`, JSON with a name and arguments, and `</tool_call>`. No part of the marks is
ever given as text; white space beside a call belongs to it. What begins like a call and is none is
given as the text that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mlx_qwenvl.inputs.tools import CALL_BEGIN, CALL_END

_NAMED = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')
_BEFORE_ARGUMENTS = re.compile(_NAMED.pattern + r'\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True)
class TextPiece:
    """Text beside the calls."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call: its number in the answer from 0 up, and the tool's name."""

    index: int
    name: str


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call's arguments, which are JSON when put together."""

    index: int
    arguments: str


@dataclass(frozen=True)
class CallEnded:
    """Nothing more comes for this call, and its arguments are whole."""

    index: int


ToolEvent = TextPiece | CallBegun | CallPiece | CallEnded

# text: Beside calls. head: After a mark, before the arguments. arguments: Inside them. foot: Inside
# the call, after its arguments. behind: After the call, before its closing mark.
_State = Literal["text", "head", "arguments", "foot", "behind"]


class _Nesting:
    """How deep in JSON one is, letter by letter."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False
        self._escaped = False

    def feed(self, letter: str) -> bool:
        """Whether an object or a list closes here that was the outermost."""
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self.in_string = False
        elif letter == '"':
            self.in_string = True
        elif letter in "{[":
            self.depth += 1
        elif letter in "}]":
            self.depth -= 1
            return self.depth == 0
        return False


class ToolCallParser:
    """Reads one answer.

    Attributes:
        count: Calls begun so far.
        is_open: Whether one of them has not ended; at the answer's end, that it was cut off.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_open = False
        self._state: _State = "text"
        self._held = ""  # after a mark, not given yet
        # Not given yet beside calls: white space, and what may be the beginning of a mark. They are
        # not looked through again: a model can go on with white space for thousands of tokens.
        self._space: list[str] = []
        self._mark = ""
        self._nesting = _Nesting()
        self._events: list[ToolEvent] = []
        self._after_call = False  # so that white space is not text yet

    def feed(self, text: str) -> list[ToolEvent]:
        """What is certain with this text."""
        for letter in text:
            self._read(letter)
        return self._take()

    def finish(self) -> list[ToolEvent]:
        """What the text was that was held back; call once, at the answer's end."""
        held, self._held = self._held, ""
        if self._state == "text":
            self._say(self._take_held())
        elif self._state == "head":
            named = _NAMED.match(held)
            name = None if named is None else _string(named[1])
            if name is None:
                self._say(CALL_BEGIN + held)
            else:
                self._begin(name)
        return self._take()

    def _take(self) -> list[ToolEvent]:
        """The events so far, neighbours of one kind joined."""
        taken, self._events = self._events, []
        return join_events(taken)

    def _read(self, letter: str) -> None:
        if self._state == "text":
            self._read_text(letter)
        elif self._state == "head":
            self._read_head(letter)
        elif self._state == "behind":
            self._read_behind(letter)
        elif letter == "<" and not self._nesting.in_string:
            # No JSON has this; a brace is missing before the closing mark.
            if self._state == "foot":
                self._end()
            self._state, self._mark, self._after_call = "behind", letter, True
        elif self._state == "arguments":
            self._events.append(CallPiece(self.count - 1, letter))
            if self._nesting.feed(letter):
                self._state, self._nesting = "foot", _Nesting(1)
        elif self._nesting.feed(letter):
            self._end()

    def _read_text(self, letter: str) -> None:
        if CALL_BEGIN.startswith(self._mark + letter):
            self._mark += letter
            if self._mark == CALL_BEGIN:
                self._take_held()
                self._state, self._nesting = "head", _Nesting()
        elif letter.isspace() and not self._mark:
            self._space.append(letter)
        elif letter.isspace() or letter == CALL_BEGIN[0]:
            self._say(self._take_held())
            self._read_text(letter)
        else:
            self._say(self._take_held() + letter)

    def _take_held(self) -> str:
        held = "".join(self._space) + self._mark
        self._space, self._mark = [], ""
        return held

    def _read_head(self, letter: str) -> None:
        self._held += letter
        if letter == "{" and not self._nesting.in_string:
            found = _BEFORE_ARGUMENTS.fullmatch(self._held[:-1])
            name = None if found is None else _string(found[1])
            if name is not None:
                self._held = ""
                self._begin(name)
                self._state, self._nesting = "arguments", _Nesting()
                self._read(letter)
                return
        if self._nesting.feed(letter):
            call = _whole_call(self._held)
            if call is not None:
                self._held = ""
                self._begin(call[0])
                self._events.append(CallPiece(self.count - 1, call[1]))
                self._end()
        elif self._held.endswith(CALL_END) and not self._nesting.in_string:
            raw, self._held, self._state = CALL_BEGIN + self._held, "", "text"
            self._say(raw)

    def _read_behind(self, letter: str) -> None:
        if CALL_END.startswith(self._mark + letter):
            self._mark += letter
            if self._mark == CALL_END:
                self._take_held()
                self._state = "text"
        elif letter.isspace() and not self._mark:
            self._space.append(letter)
        else:
            # The closing mark is missing.
            held, self._state = self._take_held() + letter, "text"
            for each in held:
                self._read(each)

    def _begin(self, name: str) -> None:
        self._events.append(CallBegun(self.count, name))
        self.count += 1
        self.is_open = True

    def _end(self) -> None:
        self._events.append(CallEnded(self.count - 1))
        self.is_open, self._after_call, self._state = False, True, "behind"

    def _say(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            self._events.append(TextPiece(text))


def _string(literal: str) -> str | None:
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


def _whole_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is all there, in whatever order."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):  # JSON inside JSON, as OpenAI's own form has it
        return name, arguments
    return name, json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def join_events(events: Iterable[ToolEvent]) -> list[ToolEvent]:
    """Events with neighbours of one kind joined, as if they had come in one piece."""
    joined: list[ToolEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, TextPiece) and isinstance(last, TextPiece):
            joined[-1] = TextPiece(last.text + event.text)
        elif isinstance(event, CallPiece) and isinstance(last, CallPiece):
            joined[-1] = CallPiece(event.index, last.arguments + event.arguments)
        else:
            joined.append(event)
    return joined
