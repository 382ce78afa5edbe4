"""The readers of conversations and of tool calls in answers, with nothing behind them."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

from benchmarks.fuzz import bodies
from benchmarks.fuzz.mutate import mutate_bytes
from benchmarks.fuzz.target import Broken, Target
from mlx_qwenvl.engine.tool_calls import (
    CallBegun,
    ToolCallParser,
    ToolEvent,
    join_events,
)
from mlx_qwenvl.inputs.messages import Message, parse_messages

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"a": "b}", "c": [1, {}]}}\n</tool_call>'
ANSWERS = (
    "No call at all, but < and <tool> and {}.",
    CALL,
    f"Let me see. {CALL}\n{CALL}",
    CALL.replace('"name": "look_up", ', "").replace("}}", '}, "name": "look_up"}'),
    CALL.replace("}}\n", "}\n"),
    CALL.replace("</tool_call>", ""),
    CALL[:40],
    "<tool_call>nothing of the kind</tool_call> and more",
)
PIECES = (
    *("<tool_call>", "</tool_call>", "<tool_", "</", "<", "{", "}", "[", "]", '"', "\\", "\\u12"),
    *('"name"', '"arguments"', ":", ",", '{"name": "x", "arguments": {', " ", "\n", "null"),
    *("\u00e9", "\U0001f600", "\u2003"),
)
LONG = (" " * 20_000, "\n" * 5000, "{" * 5000, "<tool_call>" * 500, "<" * 5000, '\\"' * 5000)


def read_messages(data: bytes) -> str:
    """Read a body's messages."""
    try:
        value: Any = json.loads(bodies.split(data)[1])
    except (ValueError, RecursionError):
        return "no JSON"
    given: Any = value.get("messages") if isinstance(value, dict) else value
    messages = parse_messages(given)
    if not messages or not all(isinstance(message, Message) for message in messages):
        raise Broken("gives something else than messages")
    return "messages"


def chats() -> list[bytes]:
    """The bodies of chats."""
    return [data for data in bodies.seeds() if b'"messages"' in data]


def read_calls(data: bytes) -> str:
    """Read an answer at once and in pieces; the same has to come out."""
    text = data.decode("utf-8", "replace")
    whole = _events([text])
    drawn = random.Random(len(data))
    cuts = sorted(drawn.randrange(len(text) + 1) for _ in range(drawn.randrange(8)))
    ends = [0, *cuts, len(text)]
    if _events([text[a:b] for a, b in pairwise(ends)]) != whole:
        raise Broken("reads something else where the text comes in pieces")
    begun = [event.index for event in whole if isinstance(event, CallBegun)]
    if begun != list(range(len(begun))):
        raise Broken(f"numbers the calls {begun}")
    return f"{min(len(begun), 3)} calls"


def _events(pieces: list[str]) -> list[ToolEvent]:
    """All events, neighbours of one kind joined."""
    parser = ToolCallParser()
    return join_events(
        [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    )


def mutate_answer(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """Pieces of the form come and go, or bytes change."""
    if drawn.random() < 0.3:
        return mutate_bytes(drawn, data, other)
    pieces = LONG if drawn.random() < 0.02 else PIECES
    place = drawn.randrange(len(data) + 1)
    end = place + drawn.choice((0, 0, 0, 1, 3, 10))
    return data[:place] + drawn.choice(pieces).encode() + data[end:]


MESSAGES = Target("messages", chats, bodies.mutate, read_messages)
CALLS = Target(
    "calls", lambda: [text.encode() for text in ANSWERS], mutate_answer, read_calls, most_s=1.0
)
