"""Every event of every stream, and whole answers, held against the types of the SDKs.

Those types are made of the specifications.

The lines are read here and not by an SDK: an SDK passes over what it does not expect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, TypeAdapter

from server.settings import Settings
from tests.clients.asking import QUESTION, data_url, foreign, said, seen
from tests.live import Live, serve

foreign("openai")
foreign("anthropic")

TOOL = {
    "type": "object",
    "properties": {"side": {"enum": ["left", "right"]}},
    "required": ["side"],
    "additionalProperties": False,  # or the embedded model adds some without end
}
CHAT_TOOL = {"type": "function", "function": {"name": "look", "parameters": TOOL}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "side", "schema": TOOL}}
# What stands beside the specification's own fields, by the type that it stands in.
OURS = {
    "ChatCompletionChunk": {"timings"},
    "Completion": {"timings"},
    "ChatCompletion": {"timings"},
    "PromptTokensDetails": {"video_tokens"},
    "Response": {"store"},  # in OpenAI's replies too, though the type does not know it
    "Model": {"created_at", "display_name", "max_model_len", "type"},
    "CompletionUsage": {
        *("avg_tok_per_sec", "avg_prompt_tok_per_sec", "avg_compl_tok_per_sec"),
        *("total_time_sec", "total_prompt_time_sec", "total_completion_time_sec"),
    },
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    # Sent as often as can be, so that a sign of life is among what is read.
    with serve(Settings(keepalive_s=0.001)) as server:
        yield server


def events(live: Live, path: str, body: dict[str, Any]) -> list[tuple[str | None, str]]:
    """Names and data of a stream's events, by the rules of WHATWG and nothing looser."""
    found: list[tuple[str | None, str]] = []
    name: str | None = None
    data: list[str] = []
    with httpx2.stream("POST", live.url + path, json=body, timeout=60, trust_env=False) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        whole = response.read().decode("utf-8")
    assert whole.endswith("\n\n")
    for line in whole.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        if line == "":
            if data:
                found.append((name, "\n".join(data)))
            name, data = None, []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            assert field in ("event", "data", "id", "retry"), line
            if field == "event":
                name = value.removeprefix(" ")
            elif field == "data":
                data.append(value.removeprefix(" "))
    return found


def held(kind: Any, data: str) -> Any:
    """The event as the SDK's type, every field of its right type and none that is unheard of."""
    event = TypeAdapter(kind).validate_python(json.loads(data), strict=True)
    _only_known(event)
    return event


def _only_known(value: Any) -> None:
    if isinstance(value, BaseModel):
        kind = type(value).__name__
        assert set(value.model_extra or {}) <= OURS.get(kind, set()), (kind, value.model_extra)
        for name in value.model_fields_set:
            _only_known(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _only_known(item)


def whole(live: Live, path: str, body: dict[str, Any]) -> str:
    response = httpx2.post(live.url + path, json=body, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].split(";")[0] == "application/json"
    return response.text


CHAT_FIELDS: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2, "temperature": 1, "seed": 3},
    {"max_tokens": 1},
    {"stop": "red"},
    {"response_format": SCHEMA},
    {"tools": [CHAT_TOOL], "tool_choice": "required"},
]


@pytest.mark.parametrize(
    "fields",
    CHAT_FIELDS,
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_chunks_of_a_chat_are_chat_completion_chunks(live: Live, fields: dict[str, Any]) -> None:
    from openai.types.chat import ChatCompletionChunk

    asked = {"model": "x", "messages": seen(data_url("shapes.png")), "stream": True}
    heard = events(
        live, "/v1/chat/completions", asked | {"temperature": 0, "max_tokens": 60} | fields
    )
    assert [name for name, _ in heard] == [None] * len(heard)
    assert heard.pop()[1] == "[DONE]"
    chunks = [held(ChatCompletionChunk, data) for _, data in heard]
    if "stream_options" in fields:
        assert chunks[-1].usage is not None and chunks.pop().choices == []
        assert all("usage" in json.loads(data) for _, data in heard)
    for index in range(fields.get("n", 1)):
        own = [choice for c in chunks for choice in c.choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        reasons = [choice.finish_reason for choice in own]
        assert reasons[-1] and not any(reasons[:-1])
        if "tools" not in fields:
            assert all(isinstance(choice.delta.content, str) for choice in own)


def test_chunks_of_a_completion_are_completions(live: Live) -> None:
    from openai.types import Completion

    asked = {"model": "x", "prompt": "The image", "max_tokens": 8, "temperature": 0, "stream": True}
    heard = events(live, "/v1/completions", asked)
    assert heard.pop()[1] == "[DONE]"
    reasons = []
    for _, data in heard:
        (choice,) = json.loads(data)["choices"]
        reasons.append(choice["finish_reason"])
        # The type knows whole answers alone; before the end OpenAI's own server sends null.
        held(Completion, data.replace('"finish_reason":null', '"finish_reason":"stop"'))
    assert reasons[-1] in ("stop", "length") and not any(reasons[:-1])


@pytest.mark.parametrize("tools", [False, True])
def test_events_of_a_response_are_response_stream_events(live: Live, tools: bool) -> None:
    from openai.types.responses import ResponseStreamEvent

    content = [
        {"type": "input_image", "image_url": data_url("shapes.png")},
        {"type": "input_text", "text": QUESTION},
    ]
    asked: dict[str, Any] = {"model": "x", "input": [{"role": "user", "content": content}]}
    asked |= {"stream": True, "temperature": 0, "max_output_tokens": 80}
    if tools:
        tool = {"type": "function", "name": "look", "parameters": TOOL, "strict": True}
        # One call ends the answer; several may go on to its longest.
        asked |= {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    for number, (name, data) in enumerate(events(live, "/v1/responses", asked)):
        event = held(ResponseStreamEvent, data)
        assert event.type == name and event.sequence_number == number
    assert name == "response.completed"


@pytest.mark.parametrize("tools", [False, True])
def test_events_of_a_message_are_message_stream_events(live: Live, tools: bool) -> None:
    from anthropic.types import RawMessageStreamEvent

    asked: dict[str, Any] = {"model": "x", "messages": said("Look!"), "max_tokens": 60}
    asked |= {"stream": True, "temperature": 0}
    if tools:
        tool = {"name": "look", "input_schema": TOOL}
        asked |= {"tools": [tool], "tool_choice": {"type": "any"}}
    heard = [(name, data) for name, data in events(live, "/v1/messages", asked) if name != "ping"]
    kinds = []
    for name, data in heard:
        event = held(RawMessageStreamEvent, data)
        assert event.type == name
        kinds.append(name)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    "fields",
    [fields for fields in CHAT_FIELDS if "stream_options" not in fields],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_a_whole_chat_answer_is_a_chat_completion(live: Live, fields: dict[str, Any]) -> None:
    from openai.types.chat import ChatCompletion

    asked = {"model": "x", "messages": seen(data_url("shapes.png")), "temperature": 0}
    body = asked | {"max_tokens": 60} | fields
    completion = held(ChatCompletion, whole(live, "/v1/chat/completions", body))
    assert [choice.index for choice in completion.choices] == list(range(fields.get("n", 1)))


def test_other_whole_answers_are_of_their_types(live: Live) -> None:
    from anthropic.types import Message, MessageTokensCount
    from openai.types import Completion, Model
    from openai.types.responses import Response

    common = {"model": "x", "temperature": 0}
    told = {"messages": said("Look!"), "max_tokens": 8}
    held(
        Completion,
        whole(live, "/v1/completions", common | {"prompt": "The image", "max_tokens": 8}),
    )
    held(Response, whole(live, "/v1/responses", common | {"input": "Look!"}))
    held(Message, whole(live, "/v1/messages", common | told))
    held(MessageTokensCount, whole(live, "/v1/messages/count_tokens", {"model": "x"} | told))
    (model,) = httpx2.get(f"{live.v1}/models", trust_env=False).json()["data"]
    held(Model, json.dumps(model))
