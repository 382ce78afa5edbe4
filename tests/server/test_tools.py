"""Functions that the model may call, in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_qwenvl.inputs.messages import Message, TextPart, ToolCall
from server.settings import Settings
from tests.server.conftest import Script, body, ends, events, says

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALLS = (
    "Let me see.\n<tool_call>\n",
    '{"name": "weather", "argu',
    'ments": {"place": "Ålesund',
    '"}}\n</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
)
SAID = (*(says(text) for text in CALLS), ends())


def test_calls_of_tools_are_parts_of_the_message(script: Script) -> None:
    client, engine = script(*SAID)
    reply = client.post(CHAT, json=body(tools=[WEATHER, CLOCK])).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "Let me see."
    first, second = message["tool_calls"]
    assert set(first) == {"id", "type", "function"} and first["type"] == "function"
    assert first["function"] == {"name": "weather", "arguments": '{"place": "Ålesund"}'}
    assert second["function"] == {"name": "clock", "arguments": "{}"}
    assert first["id"] != second["id"] and first["id"].startswith("call_")
    grammar = engine.calls[0].grammar
    assert grammar is not None and grammar.kind == "tools"


def test_a_message_that_only_calls_has_null_as_content(script: Script) -> None:
    client, _ = script(*(says(text) for text in ("<tool_call>\n", *CALLS[1:])), ends())
    message = client.post(CHAT, json=body(tools=[WEATHER])).json()["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 2


def test_calls_of_tools_are_streamed_as_openai_does(script: Script) -> None:
    client, _ = script(*SAID)
    response = client.post(CHAT, json=body(tools=[WEATHER, CLOCK], stream=True))
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert "".join(choice["delta"]["content"] for choice in choices) == "Let me see."
    pieces = [piece for c in choices for piece in c["delta"].get("tool_calls", [])]
    begun = [piece for piece in pieces if "id" in piece]
    assert [(p["index"], p["type"], p["function"]) for p in begun] == [
        (0, "function", {"name": "weather", "arguments": ""}),
        (1, "function", {"name": "clock", "arguments": ""}),
    ]
    arguments = {0: "", 1: ""}
    for piece in pieces:
        arguments[piece["index"]] += piece["function"]["arguments"]
    assert arguments == {0: '{"place": "Ålesund"}', 1: "{}"}
    assert sum("name" not in piece["function"] for piece in pieces) >= 3  # in fragments
    assert pieces.index(begun[1]) > 2  # the first call is whole before the second begins


def test_half_a_call_at_the_longest_answer_ends_for_its_length(script: Script) -> None:
    client, _ = script(*(says(text) for text in CALLS[:3]), ends("length"))
    (choice,) = client.post(CHAT, json=body(tools=[WEATHER])).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"place": "Ålesund'


def test_an_answer_without_a_call_is_text(script: Script) -> None:
    client, _ = script(says("It is "), says("a <tool"), ends())
    for stream in (False, True):
        response = client.post(CHAT, json=body(tools=[WEATHER], stream=stream))
        if stream:
            choices = [chunk["choices"][0] for chunk in events(response.text)[:-1]]
            text = "".join(choice["delta"]["content"] for choice in choices)
        else:
            choices = response.json()["choices"]
            text = choices[0]["message"]["content"]
            assert "tool_calls" not in choices[0]["message"]
        assert text == "It is a <tool" and choices[-1]["finish_reason"] == "stop"


def test_a_model_without_tools_may_write_about_their_marks(script: Script) -> None:
    client, engine = script(*SAID)
    without: list[dict[str, Any]] = [
        {},
        {"tools": []},
        {"tools": [WEATHER], "tool_choice": "none"},
    ]
    for fields in without:
        message = client.post(CHAT, json=body(**fields)).json()["choices"][0]["message"]
        assert message["content"] == "".join(CALLS) and "tool_calls" not in message
        assert engine.calls[-1].grammar is None
        assert engine.calls[-1].messages[0].role == "user"


def test_the_model_is_told_of_the_tools_that_it_may_call(script: Script) -> None:
    client, engine = script(*SAID)
    named = {"type": "function", "function": {"name": "clock"}}
    for choice, told in (("auto", 2), ("required", 2), (named, 1)):
        fields: dict[str, Any] = {"tools": [WEATHER, CLOCK], "tool_choice": choice}
        client.post(CHAT, json=body(**fields))
        system = engine.calls[-1].messages[0]
        text = "".join(part.text for part in system.parts if isinstance(part, TextPart))
        assert system.role == "system" and '"clock"' in text
        assert text.count('"type": "function"') == told


def test_one_call_is_all_where_parallel_calls_are_not_wanted(script: Script) -> None:
    client, engine = script(*SAID)
    sources = []
    for parallel in (True, False):
        client.post(CHAT, json=body(tools=[CLOCK], parallel_tool_calls=parallel))
        grammar = engine.calls[-1].grammar
        assert grammar is not None
        sources.append(grammar.source)
    assert "*" in sources[0].splitlines()[1] and "*" not in sources[1].splitlines()[1]


def test_results_of_tools_go_back_to_the_model(script: Script) -> None:
    client, engine = script(says("Rain."), ends())
    calls = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"p": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "wet"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
    ]
    assert client.post(CHAT, json=body(messages=messages)).status_code == 200
    assert engine.calls[0].messages == (
        Message("user", (TextPart("Q"),)),
        Message("assistant", (), (ToolCall("weather", '{"p": 1}'), ToolCall("clock", "{}"))),
        Message("tool", (TextPart("wet"),)),
        Message("tool", (TextPart("noon"),)),
    )


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": {}}, "tools is a dict", "tools"),
    ({"tools": ["x"]}, "tools.0 is 'x'", "tools.0"),
    ({"tools": [{"type": "web_search"}]}, "web_search", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "'a b'", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 10**6}}]}, "name", "tools"),
    ({"tools": [CLOCK, CLOCK]}, "which another has too", "tools"),
    ({"tools": [CLOCK], "tool_choice": "maybe"}, "tool_choice is 'maybe'", "tool_choice"),
    (
        {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "none of the tools",
        "tool_choice",
    ),
    ({"tool_choice": "required"}, "without tools", "tool_choice"),
    (
        {"tools": [CLOCK], "response_format": {"type": "json_object"}},
        "cannot be had together",
        "response_format",
    ),
    (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [{}]}]},
        "names no function",
        "messages[1].tool_calls[0]",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), BAD, ids=[str(f)[:60] for f, *_ in BAD])
def test_bad_tools_are_refused_by_name(
    script: Script, fields: dict[str, Any], message: str, param: str
) -> None:
    client, engine = script(*SAID)
    for stream in (False, True):
        response = client.post(CHAT, json=body(**{"stream": stream, **fields}))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert message in error["message"] and error["param"] == param
        assert len(error["message"]) < 300 and not engine.calls


def test_tools_larger_than_the_operator_allows_are_refused(script: Script) -> None:
    client, _ = script(*SAID, settings=Settings(max_schema_bytes=100))
    response = client.post(CHAT, json=body(tools=[WEATHER]))
    assert response.status_code == 400 and "more than 100 bytes" in response.text


def test_tools_are_counted(script: Script) -> None:
    client, _ = script()
    plain, told = (
        client.post("/v1/tokenize", json={"messages": "Q", **fields}).json()["count"]
        for fields in ({}, {"tools": [WEATHER]})
    )
    assert told > plain + len(json.dumps(WEATHER)) // 10
