"""The reader of conversations, with nothing behind it."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.fuzz import bodies
from benchmarks.fuzz.target import Broken, Target
from mlx_qwenvl.inputs.messages import Message, parse_messages


def run(data: bytes) -> str:
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


def seeds() -> list[bytes]:
    """The bodies of chats."""
    return [data for data in bodies.seeds() if b'"messages"' in data]


def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """As of bodies."""
    return bodies.mutate(drawn, data, other)


MESSAGES = Target("messages", seeds, mutate, run)
