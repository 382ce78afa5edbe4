"""The `anthropic` SDK: messages, streams, tools and counting."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.asking import GREETED, GREETING, KEY, PICTURES, QUESTION, SHOWN, foreign, said
from tests.live import Live

anthropic = foreign("anthropic")

LOOK = {
    "name": "look",
    "description": "Look at a side",
    "input_schema": {
        "type": "object",
        "properties": {"where": {"enum": ["left", "right"]}},
        "required": ["where"],
        "additionalProperties": False,
    },
}
# The SDK has no argument for a temperature any more.
ASKED = {"model": "claude-opus-4", "max_tokens": 64, "extra_body": {"temperature": 0}}


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=live.url, api_key="none") as connected:
        yield connected


def about(name: str) -> list[dict[str, Any]]:
    data = base64.b64encode((PICTURES / name).read_bytes()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def ask(client: Any, messages: list[dict[str, Any]], **fields: Any) -> Any:
    return client.messages.create(**(ASKED | {"messages": messages} | fields))


def test_a_message_is_answered(client: Any, live: Live) -> None:
    reply = ask(
        client, said(GREETING), system=[{"type": "text", "text": "You are a helpful assistant."}]
    )
    assert reply.type == "message" and reply.role == "assistant" and reply.model == live.engine.name
    (block,) = reply.content
    assert (block.type, block.text) == ("text", GREETED)
    assert reply.stop_reason == "end_turn" and reply.usage.output_tokens > 1


def test_a_picture_is_seen(client: Any) -> None:
    assert ask(client, about("shapes.png")).content[0].text == SHOWN["shapes.png"]


def test_a_stream_is_put_together_by_the_sdk(client: Any) -> None:
    with client.messages.stream(**ASKED, messages=about("shapes.png")) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == final.content[0].text == SHOWN["shapes.png"]
    assert len(pieces) > 3 and final.stop_reason == "end_turn"
    assert final.usage.output_tokens == ask(client, about("shapes.png")).usage.output_tokens


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"max_tokens": 2}, "max_tokens"), ({"stop_sequences": [" How"]}, "stop_sequence")],
)
def test_the_reason_of_the_end_is_told(client: Any, fields: dict[str, Any], reason: str) -> None:
    reply = ask(client, said(GREETING), **fields)
    assert reply.stop_reason == reason
    if reason == "stop_sequence":
        assert reply.stop_sequence == " How" and reply.content[0].text == "Hello!"


def test_what_is_counted_is_what_is_then_used(client: Any) -> None:
    for messages in (said(GREETING), about("shapes.png")):
        counted = client.messages.count_tokens(model="x", messages=messages)
        usage = ask(client, messages).usage
        cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        assert counted.input_tokens == usage.input_tokens + cached
    bare = client.messages.count_tokens(model="x", messages=said(GREETING)).input_tokens
    more = client.messages.count_tokens(
        model="x", messages=said(GREETING), tools=[LOOK], system="You are very short."
    )
    assert more.input_tokens > bare + 20, "tools and system count"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_tool_is_called_and_its_result_taken(client: Any, choice: dict[str, Any]) -> None:
    choice = choice | {"disable_parallel_tool_use": True}
    asked = said("Look!")
    reply = ask(client, asked, tools=[LOOK], tool_choice=choice, max_tokens=200)
    assert reply.stop_reason == "tool_use"
    (call,) = [block for block in reply.content if block.type == "tool_use"]
    assert call.name == "look" and call.input["where"] in ("left", "right")
    with client.messages.stream(
        **(ASKED | {"max_tokens": 200}), messages=asked, tools=[LOOK], tool_choice=choice
    ) as stream:
        assert stream.get_final_message().content[-1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "A red circle."}
    turns = [
        *asked,
        {"role": "assistant", "content": [block.to_dict() for block in reply.content]},
        {"role": "user", "content": [result]},
    ]
    assert ask(client, turns, tools=[LOOK], max_tokens=8).usage.output_tokens > 0


def test_errors_are_those_of_the_sdk(client: Any, locked: Live) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, said(GREETING), extra_body={"temperature": 900})
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with anthropic.Anthropic(base_url=locked.url, api_key="wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            ask(stranger, said(GREETING))
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model="demo", messages=said(GREETING))
    with anthropic.Anthropic(base_url=locked.url, api_key=KEY) as known:
        assert ask(known, said(GREETING), model=locked.engine.name).content[0].text == GREETED
        with pytest.raises(anthropic.NotFoundError):
            ask(known, said(GREETING), model="claude-opus-4")
