"""Anthropic's Messages: fields, blocks, events and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from mlx_qwenvl import QwenVL
from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, ToolCall
from server.schemas.messages import REFUSED, MessagesRequest
from server.settings import Settings
from server.ticket import Heard
from tests.clients.asking import foreign
from tests.server.conftest import PICTURE, Script, data_url, ends, says
from tests.server.test_tools import SAID

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HELLO = (says("Hel"), says("lo"), ends())
DATA = data_url().partition(",")[2]
SEEN = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
WEATHER = {
    "name": "weather",
    "description": "Weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}
CLOCK = {"type": "custom", "name": "clock", "input_schema": {"type": "object"}}
USAGE = {
    "input_tokens": 6,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 6,
    "output_tokens": 5,
}


def body(content: Any = "What is this?", **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    return {"model": "claude", **asked, **fields}


def events(text: str) -> Iterator[dict[str, Any]]:
    """Data of a stream's events, each held to carry its own name."""
    for part in text.split("\n\n")[:-1]:
        name, _, data = part.partition("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        yield told


def texts(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def test_a_message_equals_the_python_answer(
    client: TestClient, served: QwenVL, thread: ThreadPoolExecutor
) -> None:
    asked = body([SEEN, {"type": "text", "text": "What is this?"}], temperature=0)
    reply = client.post(MESSAGES, json=asked).json()

    def ask() -> Any:
        return served.generate("What is this?", images=[PICTURE], max_tokens=8, temperature=0)

    expected = thread.submit(ask).result()
    assert reply["content"] == [{"type": "text", "text": expected.text}]
    usage = reply["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert prompt == expected.usage.prompt_tokens
    counted = client.post(COUNT, json={key: asked[key] for key in ("model", "messages")})
    assert counted.json() == {"input_tokens": prompt}


def test_a_message_has_anthropics_keys(script: Script) -> None:
    client, _ = script(*HELLO)
    response = client.post(f"{MESSAGES}?beta=true", json=body(), headers={"anthropic-beta": "x-1"})
    reply = response.json()
    assert reply.pop("id").startswith("msg_") and reply.pop("model")
    assert reply == {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }
    assert response.headers["request-id"]


def test_a_stream_is_a_start_then_blocks_then_a_delta_then_a_stop(script: Script) -> None:
    client, _ = script(*HELLO)
    response = client.post(MESSAGES, json=body(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    start, *middle = events(response.text)
    message = start.pop("message")
    assert start == {"type": "message_start"}
    assert message["content"] == [] and message["stop_reason"] is None
    assert set(message["usage"]) == set(USAGE)
    assert middle == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "Hel"},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": USAGE,
        },
        {"type": "message_stop"},
    ]


def test_a_silent_stream_begins_its_message_and_then_pings(script: Script) -> None:
    client, engine = script(0.2, says("Hi"), 0.1, ends(), settings=Settings(keepalive_s=0.03))
    kinds = [each["type"] for each in events(client.post(MESSAGES, json=body(stream=True)).text)]
    assert kinds[:3] == ["message_start", "ping", "ping"] and kinds.count("message_start") == 1
    assert "ping" in kinds[kinds.index("content_block_start") :]
    assert kinds[-1] == "message_stop" and engine.tickets[0].cancelled


def test_an_empty_answer_has_no_blocks(script: Script) -> None:
    client, _ = script(ends())
    assert client.post(MESSAGES, json=body()).json()["content"] == []
    kinds = [each["type"] for each in events(client.post(MESSAGES, json=body(stream=True)).text)]
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_calls_of_tools_are_blocks_of_the_message(script: Script) -> None:
    client, engine = script(*SAID)
    reply = client.post(MESSAGES, json=body(tools=[WEATHER, CLOCK])).json()
    assert reply["stop_reason"] == "tool_use"
    text, first, second = reply["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert first.pop("id") != second.pop("id")
    assert first == {"type": "tool_use", "name": "weather", "input": {"place": "Ålesund"}}
    assert second == {"type": "tool_use", "name": "clock", "input": {}}
    grammar = engine.calls[0].grammar
    assert grammar is not None and grammar.kind == "tools"


def test_calls_of_tools_are_streamed_as_pieces_of_json(script: Script) -> None:
    client, _ = script(*SAID)
    told = list(events(client.post(MESSAGES, json=body(tools=[WEATHER, CLOCK], stream=True)).text))
    begun = [each["content_block"] for each in told if each["type"] == "content_block_start"]
    assert [block["type"] for block in begun] == ["text", "tool_use", "tool_use"]
    assert begun[1]["id"].startswith("toolu_") and begun[1]["input"] == {}
    pieces = ["", "", ""]
    for each in told:
        if each["type"] == "content_block_delta":
            pieces[each["index"]] += each["delta"].get("partial_json", "")
    assert pieces == ["", '{"place": "Ålesund"}', "{}"]
    places = [(each["type"], each["index"]) for each in told if "index" in each]
    bounds = [place for place in places if place[0] != "content_block_delta"]
    expected = [(f"content_block_{at}", i) for i in range(3) for at in ("start", "stop")]
    assert bounds == expected
    assert told[-2]["delta"]["stop_reason"] == "tool_use"


def test_half_a_call_at_the_longest_answer_has_no_arguments(script: Script) -> None:
    client, _ = script(*SAID[:3], ends("length"))
    reply = client.post(MESSAGES, json=body(tools=[WEATHER])).json()
    assert reply["stop_reason"] == "max_tokens" and reply["content"][1]["input"] == {}
    told = list(events(client.post(MESSAGES, json=body(tools=[WEATHER], stream=True)).text))
    assert [each["type"] for each in told[-3:]] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_stop_sequence_that_ended_the_answer_is_told(script: Script) -> None:
    last = replace(ends().chunk, stop_text="END")
    client, engine = script(says("Hi"), Heard(0, last))
    reply = client.post(MESSAGES, json=body(stop_sequences=["X", "END"])).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "END")
    assert engine.calls[0].options["stop"] == ["X", "END"]


def test_a_stop_sequence_is_found_by_the_engine(client: TestClient) -> None:
    whole = client.post(MESSAGES, json=body("Hello", temperature=0)).json()
    stop = whole["content"][0]["text"][3:5]
    asked = body("Hello", temperature=0, stop_sequences=["never so", stop])
    reply = client.post(MESSAGES, json=asked).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)
    assert stop not in "".join(block["text"] for block in reply["content"])


CALLS = [
    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "a", "name": "weather", "input": {"p": 1}},
    {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
]
RESULTS = [
    {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
    {"type": "tool_result", "tool_use_id": "a", "content": [SEEN], "is_error": True},
    {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
]


def test_a_conversation_becomes_the_engines_messages(script: Script) -> None:
    client, engine = script(*HELLO)
    turns = [
        {"role": "user", "content": [SEEN, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": CALLS},
        {"role": "user", "content": RESULTS},
        {"role": "assistant", "content": "It is"},
    ]
    system = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert client.post(MESSAGES, json=body(messages=turns, system=system)).status_code == 200
    (call,) = engine.calls
    url = f"data:;base64,{DATA}"
    assert call.continues and call.messages == (
        Message("system", (TextPart("A"), TextPart("\n\n"), TextPart("B"))),
        Message("user", (ImagePart(url), TextPart("Q"))),
        Message(
            "assistant",
            (TextPart("Let me see."),),
            (ToolCall("weather", '{"p": 1}'), ToolCall("clock", "{}")),
        ),
        Message("tool", (TextPart("Error: "), ImagePart(url))),
        Message("tool", (TextPart("noon"),)),
        Message("user", (TextPart("And?"),)),
        Message("assistant", (TextPart("It is"),)),
    )


def test_a_picture_may_be_named_by_a_url(script: Script) -> None:
    client, engine = script(*HELLO)
    url = "https://example.com/a.png"
    client.post(MESSAGES, json=body([{"type": "image", "source": {"type": "url", "url": url}}]))
    assert engine.calls[0].messages[0].parts == (ImagePart(url),)


@pytest.mark.parametrize("as_list", [False, True])
def test_the_line_that_differs_from_request_to_request_is_left_out(
    script: Script, as_list: bool
) -> None:
    client, engine = script(*HELLO)
    line = "x-anthropic-billing-header: cc_version=2.1.88.a3f; cc_entrypoint=cli; cch={};"
    for number in ("71fea", "ead88"):
        said = [line.format(number), "You are Claude Code."]
        system: Any = [{"type": "text", "text": text} for text in said]
        asked = body(system=system if as_list else "\n".join(said))
        assert client.post(MESSAGES, json=asked).status_code == 200
        assert texts(engine.calls[-1].messages[0]) == "You are Claude Code."
    # Anywhere else it is what somebody wrote.
    client.post(MESSAGES, json=body(line, system="Be kind."))
    assert texts(engine.calls[-1].messages[1]) == line


def test_what_follows_that_line_is_found_again(client: TestClient) -> None:
    usages = []
    for number in ("71fea", "ead88"):
        line = f"x-anthropic-billing-header: cc_version=2.1.88.a3f; cch={number};\n"
        asked = body("Hello", system=line + "You are Claude Code. " * 8)
        usages.append(client.post(MESSAGES, json=asked).json()["usage"])
    first, second = usages
    whole = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in usages]
    assert whole[0] == whole[1] and second["input_tokens"] < first["input_tokens"] // 4


def test_options_are_taken_over(script: Script) -> None:
    client, engine = script(*HELLO)
    asked = body(temperature=0.5, top_p=0.9, top_k=40, seed=3, metadata={"user_id": "me"})
    assert client.post(MESSAGES, json=asked).status_code == 200
    options = engine.calls[0].options
    assert (options["max_tokens"], options["temperature"], options["top_p"]) == (8, 0.5, 0.9)
    assert (options["top_k"], options["seed"], options["stop"]) == (40, 3, None)


HARMLESS: list[dict[str, Any]] = [
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
    {"thinking": {"type": "disabled"}, "service_tier": "auto", "speed": "standard"},
    {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    {"cache_control": {"type": "ephemeral"}, "inference_geo": "us", "diagnostics": {}},
    {"tools": [], "tool_choice": {"type": "auto"}, "mcp_servers": []},
    {"tool_choice": {"type": "none"}, "tools": [WEATHER], "something_new": 1},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=[",".join(fields) for fields in HARMLESS])
def test_what_changes_no_answer_is_taken(script: Script, fields: dict[str, Any]) -> None:
    client, engine = script(*HELLO)
    assert client.post(MESSAGES, json=body(**fields)).status_code == 200
    (call,) = engine.calls
    assert call.grammar is None and [message.role for message in call.messages] == ["user"]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    ("choice", "told"), [({"type": "any"}, 2), ({"type": "tool", "name": "clock"}, 1)]
)
def test_tools_may_have_to_be_called(
    script: Script, choice: dict[str, Any], told: int, parallel: bool
) -> None:
    client, engine = script(*SAID)
    asked = {**choice, "disable_parallel_tool_use": not parallel}
    client.post(MESSAGES, json=body(tools=[WEATHER, CLOCK], tool_choice=asked))
    (call,) = engine.calls
    assert texts(call.messages[0]).count('"type": "function"') == told
    assert call.grammar is not None
    # Whether calls may repeat; who names a tool wants it once.
    assert ("*" in call.grammar.source.splitlines()[1]) == (parallel and told == 2)


@pytest.mark.parametrize("wrap", [lambda form: {"output_config": {"format": form}},
                                  lambda form: {"output_format": form}])  # fmt: skip
def test_an_answer_may_have_to_keep_to_a_schema(script: Script, wrap: Any) -> None:
    client, engine = script(*HELLO)
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert client.post(MESSAGES, json=body(**wrap(form))).status_code == 200
    grammar = engine.calls[0].grammar
    assert grammar is not None and (grammar.kind, grammar.source) == (
        "json_schema",
        '{"type": "object"}',
    )


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def turns(*messages: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q"}, *messages]}


def answer(*blocks: Any) -> dict[str, Any]:
    return turns({"role": "assistant", "content": list(blocks)})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"messages": None}, "messages is a NoneType"),
    ({"messages": []}, "messages is empty"),
    ({"messages": "Q"}, "messages is a str"),
    ({"messages": ["Q"]}, "messages[0] is a str"),
    ({"messages": [{"content": "Q"}]}, "messages[0] has role None"),
    ({"messages": [{"role": "tool", "content": "Q"}]}, "messages[0] has role 'tool'"),
    ({"messages": [{"role": "user"}]}, "messages[0] has no content"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content is a dict"),
    (user("Q"), "messages[0].content[0] is a str"),
    (user({"type": "text"}), "NoneType"),
    (user({"type": "document", "source": {}}), "type 'document'"),
    (user({"type": "search_result"}), "type 'search_result'"),
    (user({"type": "image"}), "source has type None"),
    (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "type 'file'"),
    (user({"type": "image", "source": {"type": "base64"}}), "source has no data"),
    (user({"type": "image", "source": {"type": ["url"], "url": "x"}}), "source has type"),
    (user({"type": "tool_use", "id": "a", "name": "x", "input": {}}), "type 'tool_use'"),
    (user({"type": "tool_result", "tool_use_id": "a"}), "a call that was not made"),
    (user({"type": "tool_result"}), "has no tool_use_id"),
    (answer({"type": "tool_use", "name": "x", "input": {}}), "has no id or no name"),
    (answer({"type": "tool_use", "id": "a", "name": "x"}), "input is no object"),
    (answer({"type": "server_tool_use"}), "type 'server_tool_use'"),
    (answer(SEEN), "only user messages can hold images"),
    (
        turns(
            {"role": "assistant", "content": CALLS},
            {"role": "user", "content": [RESULTS[0], RESULTS[0]]},
        ),
        "has its result already",
    ),
    ({"system": 3}, "system is a int"),
    ({"system": [SEEN]}, "system[0] has type 'image'"),
    ({"system": [{"type": "text"}]}, "NoneType"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"thinking": {"type": "loud"}}, "thinking.type"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ({"tools": [{"name": "x"}]}, "tools[0] has no input_schema"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "'a b'"),
    ({"tools": [WEATHER, WEATHER]}, "which another has too"),
    ({"tools": [WEATHER], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": ["any"]}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "none of the tools"),
    ({"tool_choice": {"type": "any"}}, "without tools"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": "json"}}, "output_config.format is no object"),
    (
        {"tools": [WEATHER], "output_format": {"type": "json_schema", "schema": {}}},
        "cannot be had together",
    ),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "never cut"),
    ({"context_management": {"edits": ["x"]}}, "never cut"),
]


@pytest.mark.parametrize(("fields", "says_what"), BAD, ids=[str(fields)[:60] for fields, _ in BAD])
def test_bad_requests_are_refused_in_anthropics_form(
    script: Script, fields: dict[str, Any], says_what: str
) -> None:
    client, engine = script(*HELLO)
    for stream in (False, True):
        response = client.post(MESSAGES, json=body(**{"stream": stream, **fields}))
        assert response.status_code == 400, response.text
        told = response.json()
        assert set(told) == {"type", "error", "request_id"} and told["type"] == "error"
        assert told["request_id"] == response.headers["request-id"]
        assert told["error"]["type"] == "invalid_request_error"
        assert says_what in told["error"]["message"] and len(told["error"]["message"]) < 500
        assert not engine.calls


@pytest.mark.parametrize("name", ["max_tokens", "messages"])
def test_what_has_to_be_there_is_named(script: Script, name: str) -> None:
    client, _ = script()
    asked = body()
    del asked[name]
    response = client.post(MESSAGES, json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"{name} is missing"


def test_no_field_is_both_honoured_and_refused() -> None:
    assert not set(MessagesRequest.model_fields) & set(REFUSED)


def test_an_error_within_a_stream_is_an_event_of_its_own(script: Script) -> None:
    client, _ = script(says("Hi"), MediaError("the picture is broken"), says("never"))
    *_, last = events(client.post(MESSAGES, json=body(stream=True)).text)
    assert last["type"] == "error" and last["request_id"]
    assert last["error"] == {"type": "invalid_request_error", "message": "the picture is broken"}


def test_tools_and_system_are_counted(script: Script) -> None:
    client, _ = script()
    counts = [
        client.post(COUNT, json={"messages": body()["messages"], **fields}).json()["input_tokens"]
        for fields in ({}, {"system": "Be kind."}, {"tools": [WEATHER]})
    ]
    assert counts[1] != counts[0] and counts[2] > counts[0] + len(json.dumps(WEATHER)) // 10


def test_events_are_those_of_the_sdk(script: Script) -> None:
    foreign("anthropic")
    from anthropic.types import Message as Whole
    from anthropic.types import RawMessageStreamEvent

    client, _ = script(*SAID)
    asked = body(tools=[WEATHER, CLOCK])
    held: Any = TypeAdapter(RawMessageStreamEvent)
    told = list(events(client.post(MESSAGES, json={**asked, "stream": True}).text))
    assert [held.validate_python(each, strict=True).type for each in told]
    Whole.model_validate(client.post(MESSAGES, json=asked).json(), strict=True)
