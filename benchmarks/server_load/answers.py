"""Answers of all wire forms, whole or in pieces, in one form that can be compared.

Left out is what differs from one time to the next by its nature: ids, times, and which tokens of a
prompt were found in a cache.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]


class Broken(Exception):
    """A stream that is no whole answer."""


def whole(path: str, body: dict[str, Any]) -> str:
    """An answer that came at once, as canonical JSON."""
    if body.get("error"):
        return _canonical({"error": body["error"].get("message")})
    if path.endswith("/messages"):
        return _canonical(_message(body))
    if path.endswith("/responses"):
        return _canonical(_response(body))
    if path.endswith("/tokenize"):
        return _canonical({"count": body["count"], "image_tokens": body.get("image_tokens")})
    choices = [_choice(choice) for choice in sorted(body["choices"], key=lambda c: c["index"])]
    return _canonical({"choices": choices, "usage": _usage(body["usage"])})


def in_pieces(path: str, events: Sequence[Event]) -> str:
    """An answer that came as the events of a stream, as canonical JSON.

    Raises:
        Broken: It is an error, or has no end.
    """
    failed = [event for event in events if event.get("error")]
    if failed:
        raise Broken(f"error in the stream: {failed[0]['error']}")
    if path.endswith("/messages"):
        return _canonical(_message(_joined_message(events)))
    if path.endswith("/responses"):
        ends = ("response.completed", "response.incomplete")
        found = [event["response"] for event in events if event["type"] in ends]
        if len(found) != 1:
            raise Broken("the stream has no end")
        said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        answer = _response(found[0])
        if said != "".join(item.get("text", "") for item in answer["output"]):
            raise Broken("the pieces are not the whole")
        return _canonical(answer)
    return _canonical(_joined_choices(events))


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message") or {"content": choice.get("text")}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    logprobs = (choice.get("logprobs") or {}).get("content")
    return {
        "text": message.get("content") or "",
        "calls": [{"name": call["name"], "arguments": call["arguments"]} for call in calls],
        "finish": choice["finish_reason"],
        "tokens": [entry["token"] for entry in logprobs or ()],
    }


def _joined_choices(events: Sequence[Event]) -> dict[str, Any]:
    joined: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"text": "", "calls": [], "finish": None, "tokens": []}
    )
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for piece in event["choices"]:
            choice = joined[piece["index"]]
            delta = piece.get("delta") or {"content": piece.get("text")}
            choice["text"] += delta.get("content") or ""
            choice["finish"] = piece.get("finish_reason") or choice["finish"]
            logprobs = (piece.get("logprobs") or {}).get("content")
            choice["tokens"] += [entry["token"] for entry in logprobs or ()]
            for part in delta.get("tool_calls") or ():
                if part["index"] == len(choice["calls"]):
                    choice["calls"].append({"name": "", "arguments": ""})
                for name, text in part["function"].items():
                    choice["calls"][part["index"]][name] += text or ""
    if not joined or usage is None or any(c["finish"] is None for c in joined.values()):
        raise Broken("the stream has no end")
    return {"choices": [joined[index] for index in sorted(joined)], "usage": _usage(usage)}


def _usage(usage: dict[str, Any]) -> list[int]:
    return [usage["prompt_tokens"], usage["completion_tokens"]]


def _message(body: dict[str, Any]) -> dict[str, Any]:
    blocks = [
        {key: block[key] for key in ("type", "text", "name", "input") if key in block}
        for block in body["content"]
    ]
    usage = body["usage"]
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    read = sum(usage.get(name) or 0 for name in names)
    return {
        "content": blocks,
        "stop": [body["stop_reason"], body.get("stop_sequence")],
        "usage": [read, usage["output_tokens"]],
    }


def _joined_message(events: Sequence[Event]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    arguments: dict[int, str] = defaultdict(str)
    for event in events:
        if event["type"] == "message_start":
            message = event["message"] | {"content": []}
        elif event["type"] == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                arguments[event["index"]] += delta["partial_json"]
        elif event["type"] == "message_delta":
            message |= event["delta"]
            given = {k: v for k, v in event["usage"].items() if v is not None}
            message["usage"] = message["usage"] | given
    if not events or events[-1]["type"] != "message_stop":
        raise Broken("the stream has no end")
    for index, text in arguments.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def _response(body: dict[str, Any]) -> dict[str, Any]:
    output = []
    for item in body["output"]:
        if item["type"] == "message":
            output.append({"text": "".join(part["text"] for part in item["content"])})
        else:
            output.append({key: item[key] for key in ("type", "name", "arguments")})
    usage = body["usage"]
    return {
        "output": output,
        "status": body["status"],
        "usage": [usage["input_tokens"], usage["output_tokens"]],
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
