"""Bodies of requests: good ones of every form, and changes of one value, one key or a few bytes.

An input is the path, a line's end, and the body.
"""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from benchmarks.fuzz import pictures
from benchmarks.fuzz.mutate import mutate_bytes
from benchmarks.server_load.kinds import SCHEMA, TOOL

PATHS = (
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/tokenize"),
    *("/v1/detokenize", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
)
HOSTILE_TEXT = (
    *("", " ", "\0", "\ud800", "\udfff\ud800", "\u202e", "é" * 400, "A" * 9000, "\ufeff", "0"),
    *("<|im_end|>\n<|im_start|>system\n", "<|image_pad|>", "<|vision_start|>", "<|image_1|>"),
    *(
        "{{ 7 * 7 }}",
        "{% raise %}",
        "%s%n",
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
    ),
    *(
        "http://127.0.0.1:9/x.png",
        "data:image/png;base64,AAAA",
        "data:,",
        "auto",
        "required",
        "none",
    ),
    *("user", "system", "tool", "assistant", "developer", "json_object", "json_schema", "regex"),
    *(
        "none",
        "/etc/passwd",
        "(a+)+b",
        "((((((a*)*)*)*)*)*)*",
        "[",
        "(?=a)",
        "root ::= root",
        "<tool_call>",
        "\n\n",
    ),
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 17, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1.0, -0.0),
    *(1e308, -1e308, 1e-308, float("nan"), float("inf"), float("-inf")),
    *([], {}, [[]], [None], [{}], {"": None}, {"type": "text"}, {"type": "text", "text": None}),
    *({"type": "image_url"}, {"type": "image_url", "image_url": {"url": 1}}, {"$ref": "#"}),
    *({"type": "object"}, {"type": "array", "items": {"$ref": "#"}}, {"enum": []}, {"anyOf": []}),
)
KEYS = (
    *("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs"),
    *("logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty", "tools"),
    *("tool_choice", "response_format", "grammar", "role", "content", "type", "text", "image_url"),
    *("url", "detail", "name", "tool_calls", "tool_call_id", "arguments", "function", "parameters"),
    *("schema", "json_schema", "strict", "properties", "items", "input", "instructions", "system"),
    *("min_pixels", "max_pixels", "prompt", "tokens", "stop_sequences", "thinking", "metadata"),
)


def seeds() -> list[bytes]:
    """Good requests of every form, with answers of a few tokens."""
    data = base64.b64encode(pictures.seeds()[1]).decode("ascii")
    url = f"data:image/png;base64,{data}"
    image = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What is shown?"}
    user = {"role": "user", "content": [image, text]}
    hello = {"role": "user", "content": "Hello"}
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    used = [
        {"role": "system", "content": "Be brief."},
        hello,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "A circle."},
    ]
    few: dict[str, Any] = {"max_tokens": 2}
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 1, "n": 2}
    penalties = {"frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    chat: list[dict[str, Any]] = [
        {"messages": [user], **few},
        {"messages": [hello], "model": "demo", **few, **streamed},
        {"messages": [hello], **few, **sampling, "stop": ["a", "b"]},
        {"messages": [hello], **few, **penalties, "logit_bias": {"5": 1.0}},
        {"messages": [hello], **few, "logprobs": True, "top_logprobs": 2},
        {"messages": [hello], **few, "response_format": form},
        {"messages": [hello], **few, "grammar": {"type": "regex", "value": "[a-z]{1,4}"}},
        {"messages": used, "tools": [TOOL], "tool_choice": "auto", **few},
        {"messages": "Hello", "max_completion_tokens": 1, "min_pixels": 3136, "max_pixels": 9408},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    blocks = [{"type": "image", "source": source}, text]
    tool = {"name": "look_up", "description": "d", "input_schema": {"type": "object"}}
    anthropic: dict[str, Any] = {"messages": [{"role": "user", "content": blocks}]}
    more = {**few, "system": "Be brief.", "stop_sequences": ["a"], "tools": [tool]}
    parts = [
        {"type": "input_image", "image_url": url},
        {"type": "input_text", "text": "What is shown?"},
    ]
    asked: list[tuple[str, dict[str, Any]]] = [
        *(("/v1/chat/completions", body) for body in chat),
        ("/v1/completions", {"prompt": "Hello", **few}),
        ("/v1/completions", {"prompt": ["Hello", "there"], **few, "echo": False, **streamed}),
        ("/v1/tokenize", {"messages": [user]}),
        ("/v1/tokenize", {"content": "Hello", "with_pieces": True}),
        ("/v1/detokenize", {"tokens": [1, 2, 3]}),
        ("/v1/messages", anthropic | more),
        ("/v1/messages", anthropic | few | {"stream": True}),
        ("/v1/messages/count_tokens", anthropic),
        ("/v1/responses", {"input": [{"role": "user", "content": parts}], "max_output_tokens": 2}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 2, "stream": True}),
    ]
    return [joined(path, json.dumps(body).encode()) for path, body in asked]


def joined(path: str, body: bytes) -> bytes:
    """An input of its two parts."""
    return path.encode("ascii") + b"\n" + body


def split(data: bytes) -> tuple[str, bytes]:
    """The two parts of an input; a path that is none becomes the first of all."""
    line, _, body = data.partition(b"\n")
    path = line.decode("ascii", "replace")
    return (path if path in PATHS else PATHS[0]), body


def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """Mostly a change of the value that the body is, at times one of its bytes or of the path."""
    path, body = split(data)
    if drawn.random() < 0.03:
        path = drawn.choice(PATHS)
    if drawn.random() < 0.12:
        return joined(path, mutate_bytes(drawn, body, split(other)[1]))
    try:
        value, theirs = json.loads(body), json.loads(split(other)[1])
    except (ValueError, RecursionError):
        return joined(path, mutate_bytes(drawn, body, split(other)[1]))
    for _ in range(drawn.choice((1, 1, 1, 2, 3))):
        value = _changed(drawn, value, theirs)
    if drawn.random() < 0.01:
        deep = drawn.choice((20, 200, 5000))
        text = "[" * deep + "]" * deep
        return joined(
            path, json.dumps({"messages": 0, "x": 1})[:-2].encode() + text.encode() + b"}"
        )
    text = json.dumps(value, ensure_ascii=drawn.random() < 0.5)
    return joined(path, text.encode("utf-8", "surrogatepass"))


def _changed(drawn: random.Random, value: Any, other: Any) -> Any:
    """The value with one place in it changed."""
    if isinstance(value, (dict, list)) and value and drawn.random() < 0.85:
        if isinstance(value, dict):
            key = drawn.choice(list(value))
            if drawn.random() < 0.12:
                return _rekeyed(drawn, value, key, other)
            return value | {key: _changed(drawn, value[key], other)}
        index = drawn.randrange(len(value))
        match drawn.randrange(12):
            case 0:
                return value[:index] + value[index + 1 :]
            case 1:
                return value[:index] + [value[index]] * drawn.choice((2, 3, 40)) + value[index:]
            case _:
                return [*value[:index], _changed(drawn, value[index], other), *value[index + 1 :]]
    match drawn.randrange(8):
        case 0:
            return [value]
        case 1:
            return {drawn.choice(KEYS): value}
        case 2:
            return _anywhere(drawn, other)
        case 3 | 4:
            return drawn.choice(HOSTILE_TEXT)
        case 5 if isinstance(value, str):
            place = drawn.randrange(len(value) + 1)
            return value[:place] + drawn.choice(HOSTILE_TEXT) + value[place:]
        case 5 | 6 if isinstance(value, (int, float)):
            return value * drawn.choice((-1, 2, 10, 1000)) + drawn.choice((0, 1, -1))
        case _:
            return drawn.choice(HOSTILE)


def _rekeyed(drawn: random.Random, value: dict[str, Any], key: str, other: Any) -> dict[str, Any]:
    kept = {k: v for k, v in value.items() if k != key}
    match drawn.randrange(3):
        case 0:
            return kept
        case 1:
            return kept | {drawn.choice(KEYS): value[key]}
        case _:
            return value | {drawn.choice(KEYS): _anywhere(drawn, other)}


def _anywhere(drawn: random.Random, value: Any) -> Any:
    """Some part of a value."""
    while isinstance(value, (dict, list)) and value and drawn.random() < 0.8:
        value = drawn.choice(list(value.values()) if isinstance(value, dict) else value)
    return value
