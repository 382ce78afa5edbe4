"""Requests of many kinds, drawn from a seed: what people's programs send, and what goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.server_load.asking import picture, words

MODEL = "demo"
SIZES = ((84, 84), (112, 84), (168, 140), (56, 224))  # pixels
PICTURES = 24  # of which requests name the same ones again and again
LONG_WORDS = 700  # nearly a context of the demo
TOO_MANY_WORDS = 3000
END = "902"  # the demo's end token: an answer that must not have it runs to its length
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "sure": {"type": "boolean"},
    },
    "required": ["shape", "count", "sure"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a shape up.",
        "parameters": {
            "type": "object",
            "properties": {"shape": {"type": "string", "maxLength": 12}},
            "required": ["shape"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: What is special about it.
        path: Where it goes.
        body: Its JSON, without `stream`.
        streams: Whether its answer may be asked for in pieces.
        is_long: Whether it takes long enough to be left in the middle.
        status: What the server has to say.
    """

    kind: str
    path: str
    body: dict[str, Any]
    streams: bool = True
    is_long: bool = False
    status: int = 200


def pool(seed: int, count: int) -> list[Request]:
    """So many requests; every kind comes as often as every other."""
    drawn = random.Random(seed)
    kinds = list(KINDS.items())
    made = []
    for number in range(count):
        kind, write = kinds[number % len(kinds)]
        made.append(write(kind, drawn))
    return made


def _text(drawn: random.Random, count: int = 12) -> str:
    return words(str(drawn.random()), count)


def _url(drawn: random.Random) -> str:
    number = drawn.randrange(PICTURES)
    return picture(number, SIZES[number % len(SIZES)])


def _image(drawn: random.Random) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _url(drawn)}}


def _chat(kind: str, content: Any, max_tokens: int = 24, **fields: Any) -> Request:
    messages = [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    return Request(kind, CHAT, body | fields)


def _plain(kind: str, drawn: random.Random) -> Request:
    return _chat(kind, _text(drawn))


def _pictures(count: int, kind: str, drawn: random.Random) -> Request:
    content = [*(_image(drawn) for _ in range(count)), {"type": "text", "text": _text(drawn)}]
    return _chat(kind, content)


def _seeded(kind: str, drawn: random.Random) -> Request:
    seed = drawn.randrange(2**31)
    return _chat(kind, _text(drawn), temperature=1.0, top_p=0.95, seed=seed)


def _stops(kind: str, drawn: random.Random) -> Request:
    return _chat(kind, _text(drawn), 40, stop=["image", " a "], logit_bias={END: -100})


def _two(kind: str, drawn: random.Random) -> Request:
    return _chat(kind, _text(drawn), n=2, temperature=0.9, seed=drawn.randrange(2**31))


def _schema(kind: str, drawn: random.Random) -> Request:
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    return _chat(kind, _text(drawn), 80, response_format=form)


def _tools(kind: str, drawn: random.Random) -> Request:
    return _chat(kind, _text(drawn), 60, tools=[TOOL], tool_choice="required")


def _turns(kind: str, drawn: random.Random) -> Request:
    """A dialogue whose turns begin alike for all who draw the same picture."""
    url = _image(drawn)
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [url, {"type": "text", "text": "What is shown?"}]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": _text(drawn, 6)},
    ]
    body = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
    return Request(kind, CHAT, body)


def _logprobs(kind: str, drawn: random.Random) -> Request:
    return _chat(kind, _text(drawn), 12, logprobs=True, top_logprobs=2)


def _messages(kind: str, drawn: random.Random) -> Request:
    _, _, data = _url(drawn).partition(",")
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": _text(drawn)}]
    turns = [{"role": "user", "content": content}]
    body = {"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": turns}
    return Request(kind, "/v1/messages", body)


def _responses(kind: str, drawn: random.Random) -> Request:
    content = [
        {"type": "input_image", "image_url": _url(drawn), "detail": "auto"},
        {"type": "input_text", "text": _text(drawn)},
    ]
    turns = [{"role": "user", "content": content}]
    body = {"model": MODEL, "input": turns, "max_output_tokens": 24, "temperature": 0}
    return Request(kind, "/v1/responses", body)


def _completions(kind: str, drawn: random.Random) -> Request:
    body = {"model": MODEL, "prompt": _text(drawn), "max_tokens": 16, "temperature": 0}
    return Request(kind, "/v1/completions", body)


def _count(kind: str, drawn: random.Random) -> Request:
    body = _pictures(1, kind, drawn).body
    return Request(kind, "/v1/tokenize", {"messages": body["messages"]}, streams=False)


def _long_prompt(kind: str, drawn: random.Random) -> Request:
    made = _chat(kind, _text(drawn, LONG_WORDS), 60, logit_bias={END: -100})
    return Request(kind, made.path, made.body, is_long=True)


def _long_answer(kind: str, drawn: random.Random) -> Request:
    made = _chat(kind, _text(drawn), 300, logit_bias={END: -100})
    return Request(kind, made.path, made.body, is_long=True)


def _refused(kind: str, drawn: random.Random, status: int, fields: dict[str, Any]) -> Request:
    made = _chat(kind, _text(drawn))
    return Request(kind, made.path, made.body | fields, status=status)


def _bad_picture(kind: str, drawn: random.Random) -> Request:
    url = _url(drawn)
    cut = url[: 40 + 4 * drawn.randrange((len(url) - 80) // 4)]
    made = _chat(kind, [{"type": "image_url", "image_url": {"url": cut}}])
    return Request(kind, made.path, made.body, status=400)


def _too_long(kind: str, drawn: random.Random) -> Request:
    made = _chat(kind, _text(drawn, TOO_MANY_WORDS))
    return Request(kind, made.path, made.body, status=400)


_BROKEN_SCHEMA = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "no"}}}}
_BROKEN_FORM = {"response_format": {"type": "json_schema", "json_schema": _BROKEN_SCHEMA}}

KINDS: dict[str, Callable[[str, random.Random], Request]] = {
    "text": _plain,
    "one picture": partial(_pictures, 1),
    "two pictures": partial(_pictures, 2),
    "seeded": _seeded,
    "stops": _stops,
    "n=2": _two,
    "json schema": _schema,
    "tools": _tools,
    "turns of a chat": _turns,
    "logprobs": _logprobs,
    "messages": _messages,
    "responses": _responses,
    "completions": _completions,
    "counting": _count,
    "long prompt": _long_prompt,
    "long answer": _long_answer,
    "bad picture": _bad_picture,
    "broken schema": partial(_refused, status=400, fields=_BROKEN_FORM),
    "too long": _too_long,
    "wrong model": partial(_refused, status=404, fields={"model": "no-such-model"}),
    "bad option": partial(_refused, status=400, fields={"temperature": -1}),
}
