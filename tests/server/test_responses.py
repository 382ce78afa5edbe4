"""OpenAI's Responses: fields, items, events and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.reply import TokenLogprob
from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, ToolCall
from server.schemas.responses import REFUSED, ResponsesRequest
from server.settings import Settings
from server.ticket import Overloaded
from tests.clients.asking import foreign
from tests.server.conftest import PICTURE, Script, data_url, ends, says
from tests.server.test_tools import SAID

RESPONSES = "/v1/responses"
HELLO = (says("Hel"), says("lo"), ends())
SEEN = {"type": "input_image", "image_url": data_url(), "detail": "auto"}
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
CLOCK: dict[str, Any] = {"type": "function", "name": "clock", "parameters": {}, "strict": None}


def body(asked: Any = "What is this?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "input": asked, "max_output_tokens": 8, **fields}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def events(text: str) -> Iterator[dict[str, Any]]:
    """Data of a stream's events, each held to carry its own name and the next number."""
    for number, part in enumerate(text.split("\n\n")[:-1]):
        name, _, data = part.partition("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}" and told.pop("sequence_number") == number
        yield told


def test_a_response_equals_the_python_answer(
    client: TestClient, served: QwenVL, thread: ThreadPoolExecutor
) -> None:
    asked = [user(SEEN, {"type": "input_text", "text": "What is this?"})]
    reply = client.post(RESPONSES, json=body(asked, temperature=0)).json()

    def ask() -> Any:
        return served.generate("What is this?", images=[PICTURE], max_tokens=8, temperature=0)

    expected = thread.submit(ask).result()
    assert reply["output"][0]["content"][0]["text"] == expected.text
    assert reply["usage"]["input_tokens"] == expected.usage.prompt_tokens
    assert reply["status"] == ("completed" if expected.finish_reason == "stop" else "incomplete")


def test_a_response_repeats_what_was_asked_for(script: Script) -> None:
    client, _ = script(*HELLO)
    asked: dict[str, Any] = {
        "instructions": "Be kind.",
        "metadata": {"who": "me"},
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [WEATHER],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "store": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
    }
    reply = client.post(RESPONSES, json=body(**asked)).json()
    assert reply.pop("id").startswith("resp_") and reply.pop("model")
    (item,) = reply.pop("output")
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert item == {
        "type": "message",
        "role": "assistant",
        "content": [part],
        "status": "completed",
    }
    assert isinstance(reply.pop("created_at"), int) and isinstance(reply.pop("completed_at"), int)
    assert reply == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be kind.",
        "max_output_tokens": 8,
        "metadata": {"who": "me"},
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [{**WEATHER, "description": None}],
        "top_logprobs": 0,
        "top_p": 0.9,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 17,
        },
    }


def test_a_stream_has_the_events_of_openai_in_their_order(script: Script) -> None:
    client, _ = script(*HELLO)
    response = client.post(RESPONSES, json=body(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = list(events(response.text))
    assert [each["type"] for each in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told[0]["response"]["status"] == "in_progress" and told[0]["response"]["output"] == []
    assert told[0]["response"]["usage"] is None
    added, part = told[2]["item"], told[3]["part"]
    assert (added["status"], added["content"], part["text"]) == ("in_progress", [], "")
    place = {"item_id": added["id"], "output_index": 0, "content_index": 0}
    assert all(place.items() <= each.items() for each in told[3:8])
    assert [each["delta"] for each in told[4:6]] == ["Hel", "lo"]
    assert told[6]["text"] == told[7]["part"]["text"] == "Hello"
    final = told[-1]["response"]
    assert final["output"] == [told[8]["item"]] and final["output"][0]["status"] == "completed"
    assert final["usage"]["total_tokens"] == 17 and final["id"] == told[0]["response"]["id"]


def test_an_answer_at_its_longest_is_incomplete(script: Script) -> None:
    client, _ = script(says("Hi"), ends("length"))
    reply = client.post(RESPONSES, json=body()).json()
    assert reply["status"] == reply["output"][0]["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["completed_at"] is None and reply["error"] is None
    *_, last = events(client.post(RESPONSES, json=body(stream=True)).text)
    assert last["type"] == "response.incomplete" and last["response"]["status"] == "incomplete"


def test_an_empty_answer_has_no_items(script: Script) -> None:
    client, _ = script(ends())
    reply = client.post(RESPONSES, json=body()).json()
    assert reply["output"] == [] and reply["status"] == "completed"


def test_calls_of_tools_are_items(script: Script) -> None:
    client, engine = script(*SAID)
    output = client.post(RESPONSES, json=body(tools=[WEATHER, CLOCK])).json()["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output[0]["content"][0]["text"] == "Let me see."
    first, second = output[1:]
    assert first["id"].startswith("fc_") and first["call_id"].startswith("call_")
    assert first["call_id"] != second["call_id"]
    told = [(item["name"], item["arguments"], item["status"]) for item in (first, second)]
    assert told == [("weather", '{"place": "Ålesund"}', "completed"), ("clock", "{}", "completed")]
    grammar = engine.calls[0].grammar
    assert grammar is not None and grammar.kind == "tools"


def test_calls_of_tools_are_streamed_item_by_item(script: Script) -> None:
    client, _ = script(*SAID)
    told = list(events(client.post(RESPONSES, json=body(tools=[WEATHER], stream=True)).text))
    bounds = [(e["type"], e["output_index"]) for e in told if "output_item" in e["type"]]
    expected = [(f"response.output_item.{at}", i) for i in range(3) for at in ("added", "done")]
    assert bounds == expected
    pieces = ["", "", ""]
    for each in told:
        if each["type"] == "response.function_call_arguments.delta":
            pieces[each["output_index"]] += each["delta"]
    whole = {e["output_index"]: e["arguments"] for e in told if "arguments" in e}
    assert whole == {1: '{"place": "Ålesund"}', 2: "{}"} and pieces[1:] == list(whole.values())
    done = [each["item"] for each in told if each["type"] == "response.output_item.done"]
    assert told[-1]["type"] == "response.completed" and told[-1]["response"]["output"] == done


def test_half_a_call_is_incomplete(script: Script) -> None:
    client, _ = script(*SAID[:3], ends("length"))
    reply = client.post(RESPONSES, json=body(tools=[WEATHER])).json()
    assert reply["status"] == "incomplete"
    assert [item["status"] for item in reply["output"]] == ["completed", "incomplete"]
    assert reply["output"][1]["arguments"] == '{"place": "Ålesund'


def test_a_conversation_becomes_the_engines_messages(script: Script) -> None:
    client, engine = script(*HELLO)
    items = [
        {"type": "message", "role": "developer", "content": "B"},
        user(SEEN, {"type": "input_text", "text": "Q"}),
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"p": 1}'},
        {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "noon"},
        {"type": "function_call_output", "call_id": "a", "output": [{**SEEN, "detail": "low"}]},
        {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "one"},
        {"role": "user", "content": "And?"},
    ]
    response = client.post(RESPONSES, json=body(items, instructions="A"))
    assert response.status_code == 200, response.text
    (call,) = engine.calls
    assert not call.continues and call.messages == (
        Message("system", (TextPart("A"), TextPart("\n\n"), TextPart("B"))),
        Message("user", (ImagePart(data_url()), TextPart("Q"))),
        Message(
            "assistant",
            (TextPart("Let me see."),),
            (ToolCall("weather", '{"p": 1}'), ToolCall("clock", "{}")),
        ),
        Message("tool", (ImagePart(data_url(), detail="low"),)),
        Message("tool", (TextPart("noon"),)),
        Message("assistant", (), (ToolCall("clock", "{}"),)),
        Message("tool", (TextPart("one"),)),
        Message("user", (TextPart("And?"),)),
    )


def test_a_picture_may_be_asked_for_as_it_is(script: Script) -> None:
    client, engine = script(*HELLO)
    client.post(RESPONSES, json=body([user({**SEEN, "detail": "original"})]))
    assert engine.calls[0].messages[0].parts == (ImagePart(data_url(), detail="high"),)


def test_the_answer_may_have_been_begun(script: Script) -> None:
    client, engine = script(*HELLO)
    client.post(RESPONSES, json=body([user(), {"role": "assistant", "content": "It is"}]))
    assert engine.calls[0].continues


FORMS = [
    ({"type": "json_object"}, "json_object", ""),
    ({"type": "json_schema", "name": "x", "schema": {}}, "json_schema", "{}"),
]


@pytest.mark.parametrize(("form", "kind", "source"), FORMS)
def test_an_answer_may_have_to_keep_to_a_form(
    script: Script, form: dict[str, Any], kind: str, source: str
) -> None:
    client, engine = script(*HELLO)
    reply = client.post(RESPONSES, json=body(text={"format": form})).json()
    assert reply["text"] == {"format": form}
    grammar = engine.calls[0].grammar
    assert grammar is not None and (grammar.kind, grammar.source) == (kind, source)


def test_probabilities_of_tokens_are_told_where_asked_for(script: Script) -> None:
    entry = TokenLogprob(7, -0.5, ((7, -0.5), (8, -2.0)))
    client, engine = script(says("Hi", logprobs=(entry,)), ends())
    asked = body(include=["message.output_text.logprobs"], top_logprobs=2)
    part = client.post(RESPONSES, json=asked).json()["output"][0]["content"][0]
    (told,) = part["logprobs"]
    assert told["logprob"] == -0.5 and told["bytes"] and len(told["top_logprobs"]) == 2
    assert engine.calls[0].options["logprobs"] and engine.calls[0].options["top_logprobs"] == 2
    streamed = list(events(client.post(RESPONSES, json={**asked, "stream": True}).text))
    keys = {"token", "logprob", "top_logprobs"}
    deltas = [e["logprobs"] for e in streamed if e["type"] == "response.output_text.delta"]
    assert [set(each) for each in deltas[0]] == [keys]
    (done,) = [e["logprobs"] for e in streamed if e["type"] == "response.output_text.done"]
    assert done == deltas[0]


# What the Codex command line sends beside the conversation, its hosted tools switched off.
CODEX: dict[str, Any] = {
    "stream": True,
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "medium", "summary": "auto"},
    "prompt_cache_key": "0199",
    "client_metadata": {"x": "y"},
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "tools": [{**WEATHER, "strict": False}],
}


def test_a_command_line_agent_is_understood(script: Script) -> None:
    client, _ = script(*SAID)
    asked = [{"type": "message", **user({"type": "input_text", "text": "Q"})}]
    *_, last = events(client.post(RESPONSES, json=body(asked, **CODEX)).text)
    assert last["type"] == "response.completed"


HARMLESS: list[dict[str, Any]] = [
    {"previous_response_id": None, "conversation": None, "background": False},
    {"truncation": "disabled", "service_tier": "auto", "user": "me", "safety_identifier": "x"},
    {"stream_options": {"include_obfuscation": False}, "max_tool_calls": 3, "something_new": 1},
    {"tools": [], "tool_choice": "auto", "metadata": None, "include": None, "store": None},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=[",".join(fields) for fields in HARMLESS])
def test_what_changes_no_answer_is_taken(script: Script, fields: dict[str, Any]) -> None:
    client, engine = script(*HELLO)
    assert client.post(RESPONSES, json=body(**fields)).status_code == 200
    assert len(engine.calls[0].messages) == 1 and engine.calls[0].grammar is None


def items(*each: Any) -> dict[str, Any]:
    return {"input": [user(), *each]}


CALL = {"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "a", "output": "1"}
BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": None}, "input is a NoneType", "input"),
    ({"input": []}, "input is empty", "input"),
    ({"input": {}}, "input is a dict", "input"),
    ({"input": ["Q"]}, "input[0] is a str", "input[0]"),
    ({"input": [{"type": "reasoning"}]}, "input holds no messages", "input"),
    ({"input": [{"role": "tool", "content": "Q"}]}, "role 'tool'", "input[0].role"),
    ({"input": [{"content": "Q"}]}, "role None", "input[0].role"),
    ({"input": [{"role": ["user"], "content": "Q"}]}, "has role", "input[0].role"),
    ({"input": [{"role": "user"}]}, "NoneType as content", "input[0].content"),
    ({"input": [user("Q", 3)]}, "is a int", "input[0].content[1]"),
    ({"input": [user({"type": "input_file"})]}, "'input_file'", "input[0].content[0].type"),
    ({"input": [user({"type": "input_audio"})]}, "'input_audio'", "input[0].content[0].type"),
    ({"input": [user({"type": "input_image", "file_id": "f"})]}, "file_id", "input[0].content[0]"),
    ({"input": [user({"type": "input_image"})]}, "names no image", "input[0].content[0]"),
    (items({"role": "assistant", "content": [SEEN]}), "only user", "input[1].content"),
    (items({"type": "item_reference", "id": "x"}), "'item_reference'", "input[1].type"),
    (items({"type": "web_search_call"}), "'web_search_call'", "input[1].type"),
    (items({"type": ["message"]}), "has type", "input[1].type"),
    (items({**CALL, "name": ""}), "no call_id or no name", "input[1]"),
    (items({**CALL, "arguments": {}}), "no JSON text", "input[1].arguments"),
    (items(RESULT), "a call that was not made", "input[1]"),
    (items(CALL, RESULT, RESULT), "has its result already", "input[3]"),
    (items(CALL, {**RESULT, "call_id": None}), "no call_id", "input[2].call_id"),
    (items(CALL, {**RESULT, "output": None}), "NoneType", "input[2].content"),
    ({"instructions": 3}, "instructions", "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
    ({"temperature": -1}, "temperature", "temperature"),
    ({"top_p": 2}, "top_p", "top_p"),
    ({"top_logprobs": 21}, "top_logprobs", "top_logprobs"),
    ({"include": ["everything"]}, "'everything'", "include"),
    ({"metadata": {"a": 1}}, "metadata", "metadata.a"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "text.format.type"),
    ({"text": {"format": {"type": "json_schema"}}}, "no schema", "text.format.json_schema"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "text.verbosity"),
    ({"tools": [{"type": "web_search"}]}, "'web_search'", "tools"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "'custom'", "tools"),
    ({"tools": [CLOCK, CLOCK]}, "which another has too", "tools"),
    ({"tools": [CLOCK], "tool_choice": {"type": "mcp"}}, "tool_choice", "tool_choice"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "x"}}, "none", "tool_choice"),
    ({"tool_choice": "required"}, "without tools", "tool_choice"),
    (
        {"tools": [CLOCK], "text": {"format": {"type": "json_object"}}},
        "cannot be had together",
        "text.format",
    ),
    ({"previous_response_id": "resp_1"}, "nothing is kept", "previous_response_id"),
    ({"conversation": "conv_1"}, "nothing is kept", "conversation"),
    ({"background": True}, "nothing is kept", "background"),
    ({"prompt": {"id": "p"}}, "prompt", "prompt"),
    ({"truncation": "auto"}, "never cut", "truncation"),
    ({"messages": []}, "expected input", "messages"),
    ({"max_tokens": 3}, "expected max_output_tokens", "max_tokens"),
]


@pytest.mark.parametrize(("fields", "message", "param"), BAD, ids=[str(f)[:60] for f, *_ in BAD])
def test_bad_requests_are_refused_by_name(
    script: Script, fields: dict[str, Any], message: str, param: str | None
) -> None:
    client, engine = script(*HELLO)
    for stream in (False, True):
        response = client.post(RESPONSES, json=body(**{"stream": stream, **fields}))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert message in error["message"] and error["param"] == param
        assert len(error["message"]) < 500 and not engine.calls


def test_tools_larger_than_the_operator_allows_are_refused(script: Script) -> None:
    client, _ = script(*SAID, settings=Settings(max_schema_bytes=50))
    response = client.post(RESPONSES, json=body(tools=[WEATHER]))
    assert response.status_code == 400 and "more than 50 bytes" in response.text


def test_no_field_is_both_honoured_and_refused() -> None:
    assert not set(ResponsesRequest.model_fields) & set(REFUSED)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MediaError("x"), "invalid_prompt"),
        (Overloaded("x"), "rate_limit_exceeded"),
        (ZeroDivisionError(), "server_error"),
    ],
)
def test_a_stream_that_fails_says_so_and_how_far_it_came(
    script: Script, error: Exception, code: str
) -> None:
    client, _ = script(says("Hi"), error, says("never"))
    *_, told, last = events(client.post(RESPONSES, json=body(stream=True)).text)
    assert told["type"] == "error" and set(told) == {"type", "code", "message", "param"}
    assert last["type"] == "response.failed"
    response = last["response"]
    assert response["status"] == "failed" and response["error"]["code"] == code
    assert response["error"]["message"] == told["message"]
    assert response["output"][0]["content"][0]["text"] == "Hi"


def test_events_are_those_of_the_sdk(script: Script) -> None:
    foreign("openai")
    from openai.types.responses import Response, ResponseStreamEvent

    for last in (ends(), ends("length"), MediaError("x")):
        client, _ = script(*SAID[:-1], last)
        asked = body(tools=[WEATHER, CLOCK], metadata={"a": "b"})
        held: Any = TypeAdapter(ResponseStreamEvent)
        streamed = client.post(RESPONSES, json={**asked, "stream": True}).text
        for part in streamed.split("\n\n")[:-1]:
            held.validate_json(part.partition("data: ")[2], strict=True)
        if not isinstance(last, Exception):
            whole = client.post(RESPONSES, json=asked).text
            Response.model_validate_json(whole, strict=True)
