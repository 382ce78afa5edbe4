"""Thoughts before an answer, in the form that each API has for them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from mlx_qwenvl.engine.reply import Chunk, FinishReason, TokenLogprob
from mlx_qwenvl.errors import MediaError
from server.ticket import Heard
from tests.server.conftest import Script, ends, says
from tests.server.test_messages import MESSAGES
from tests.server.test_messages import body as message_body
from tests.server.test_messages import events as message_events
from tests.server.test_responses import RESPONSES
from tests.server.test_responses import body as response_body
from tests.server.test_responses import events as response_events
from tests.server.test_tools import SAID


def thinks(text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Heard:
    return Heard(0, Chunk("", (7,), logprobs, thinking=text, said=text))


def done(reason: FinishReason = "stop") -> Heard:
    last = ends(reason).chunk
    assert last.usage is not None
    return Heard(0, replace(last, usage=replace(last.usage, thinking_tokens=3)))


CLOSED = Heard(0, Chunk("", (8,), said="</think>"))
THOUGHT = (thinks("Let me"), thinks(" see."), CLOSED, says("Re"), says("d"), done())
CUT = (thinks("Let me"), thinks(" see."), done("length"))
SIGNED = base64.b64encode(hashlib.sha256(b"Let me see.").digest()).decode()
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}


# --- OpenAI's Responses -------------------------------------------------------------------------


def test_a_response_thinks_in_an_item_of_its_own(script: Script) -> None:
    client, _ = script(*THOUGHT)
    reply = client.post(RESPONSES, json=response_body()).json()
    thought, message = reply["output"]
    assert thought.pop("id").startswith("rs_") and thought == {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Let me see."}],
        "status": "completed",
    }
    assert message["type"] == "message" and message["content"][0]["text"] == "Red"
    assert reply["usage"]["output_tokens"] == 5
    assert reply["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


def test_a_response_streams_its_thoughts_before_the_answer(script: Script) -> None:
    client, _ = script(*THOUGHT)
    told = list(response_events(client.post(RESPONSES, json=response_body(stream=True)).text))
    kinds = [
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
    ]
    within = told[2:-1]
    assert [(e["type"].removeprefix("response."), e["output_index"]) for e in within] == kinds
    added, part, *deltas, text, whole, item = within[:7]
    assert (added["item"]["content"], added["item"]["status"]) == ([], "in_progress")
    assert part["part"] == {"type": "reasoning_text", "text": ""}
    place = {"item_id": added["item"]["id"], "output_index": 0, "content_index": 0}
    assert all(place.items() <= each.items() for each in (part, *deltas, text, whole))
    assert [each["delta"] for each in deltas] == ["Let me", " see."]
    assert text["text"] == whole["part"]["text"] == "Let me see."
    assert item["item"]["status"] == "completed"
    assert told[-1]["response"]["output"] == [item["item"], within[-1]["item"]]


def test_a_response_that_ends_within_a_thought_is_incomplete(script: Script) -> None:
    client, _ = script(*CUT)
    reply = client.post(RESPONSES, json=response_body()).json()
    (thought,) = reply["output"]
    assert reply["status"] == thought["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    told = list(response_events(client.post(RESPONSES, json=response_body(stream=True)).text))
    assert [each["type"] for each in told[-4:]] == [
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]


def test_a_response_that_fails_within_a_thought_tells_it(script: Script) -> None:
    client, _ = script(thinks("Let me"), MediaError("the picture is broken"))
    *_, last = response_events(client.post(RESPONSES, json=response_body(stream=True)).text)
    assert last["type"] == "response.failed"
    assert last["response"]["output"][0]["content"][0]["text"] == "Let me"


def test_probabilities_are_told_of_the_answers_tokens_alone(script: Script) -> None:
    entries = [TokenLogprob(token, -float(token), ()) for token in range(5)]
    client, _ = script(
        thinks("Hm", (entries[0],)),
        Heard(0, Chunk("", (1,), (entries[1],), said="</think>")),
        Heard(0, Chunk("", (2,), (entries[2],))),  # half of a letter
        says("é", logprobs=(entries[3],)),
        says("!", logprobs=(entries[4],)),
        done(),
    )
    asked = response_body(include=["message.output_text.logprobs"])
    thought, message = client.post(RESPONSES, json=asked).json()["output"]
    assert [each["logprob"] for each in message["content"][0]["logprobs"]] == [-2.0, -3.0, -4.0]
    assert set(thought["content"][0]) == {"type", "text"}


def test_a_response_may_be_sent_back_with_its_thoughts(script: Script) -> None:
    client, engine = script(*THOUGHT)
    asked = [{"role": "user", "content": "Q"}]
    output = client.post(RESPONSES, json=response_body(asked)).json()["output"]
    again = [*asked, *output, {"role": "user", "content": "And?"}]
    assert client.post(RESPONSES, json=response_body(again)).status_code == 200
    assert [message.role for message in engine.calls[1].messages] == ["user", "assistant", "user"]
    assert "Let me see" not in str(engine.calls[1].messages)


# --- Anthropic's Messages -----------------------------------------------------------------------


def test_a_message_thinks_in_a_block_of_its_own(script: Script) -> None:
    client, _ = script(*THOUGHT)
    reply = client.post(MESSAGES, json=message_body()).json()
    assert reply["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": SIGNED},
        {"type": "text", "text": "Red"},
    ]
    assert reply["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert reply["stop_reason"] == "end_turn"


def test_a_message_streams_its_thoughts_before_the_answer(script: Script) -> None:
    client, _ = script(*THOUGHT)
    told = list(message_events(client.post(MESSAGES, json=message_body(stream=True)).text))
    deltas = [
        {"type": "thinking_delta", "thinking": "Let me"},
        {"type": "thinking_delta", "thinking": " see."},
        {"type": "signature_delta", "signature": SIGNED},
    ]
    begun = {"type": "thinking", "thinking": "", "signature": ""}
    assert told[1:6] == [
        {"type": "content_block_start", "index": 0, "content_block": begun},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
    ]
    assert told[6]["index"] == 1 and told[6]["content_block"]["type"] == "text"
    assert told[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 3}


def test_a_message_that_ends_within_a_thought_closes_it(script: Script) -> None:
    client, _ = script(*CUT)
    reply = client.post(MESSAGES, json=message_body()).json()
    assert reply["stop_reason"] == "max_tokens"
    assert reply["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": SIGNED}
    ]
    told = list(message_events(client.post(MESSAGES, json=message_body(stream=True)).text))
    assert told[-4]["delta"] == {"type": "signature_delta", "signature": SIGNED}
    assert [each["type"] for each in told[-3:]] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


ASKED: list[tuple[dict[str, Any] | None, list[str]]] = [
    (None, ["Let me see."]),
    ({"type": "enabled", "budget_tokens": 1024}, ["Let me see."]),
    ({"type": "adaptive", "display": "summarized"}, ["Let me see."]),
    ({"type": "between_tools"}, ["Let me see."]),
    ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, [""]),
    ({"type": "disabled"}, []),
]


@pytest.mark.parametrize(("thinking", "shown"), ASKED, ids=str)
def test_what_is_told_of_thoughts_is_the_clients_choice(
    script: Script, thinking: dict[str, Any] | None, shown: list[str]
) -> None:
    client, _ = script(*THOUGHT)
    asked = message_body(thinking=thinking)
    reply = client.post(MESSAGES, json=asked).json()
    *thoughts, text = reply["content"]
    assert text == {"type": "text", "text": "Red"}
    assert thoughts == [
        {"type": "thinking", "thinking": each, "signature": SIGNED} for each in shown
    ]
    told = list(message_events(client.post(MESSAGES, json={**asked, "stream": True}).text))
    pieces = [e["delta"].get("thinking", "") for e in told if e["type"] == "content_block_delta"]
    assert "".join(pieces) == "".join(shown)
    starts = [e["index"] for e in told if e["type"] == "content_block_start"]
    assert starts == list(range(len(shown) + 1))
    assert reply["usage"]["output_tokens_details"] == {"thinking_tokens": 3}, "they are no less"


def test_thoughts_are_told_in_one_of_two_ways(script: Script) -> None:
    client, engine = script(*THOUGHT)
    for display in ("loud", ["omitted"]):
        thinking = {"type": "enabled", "budget_tokens": 1024, "display": display}
        response = client.post(MESSAGES, json=message_body(thinking=thinking))
        assert response.status_code == 400
        assert "thinking.display is not one of" in response.json()["error"]["message"]
    assert not engine.calls


def test_a_message_may_be_sent_back_with_its_thoughts(script: Script) -> None:
    client, engine = script(thinks("Let me"), thinks(" see."), CLOSED, *SAID)
    content = client.post(MESSAGES, json=message_body(tools=[WEATHER])).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "noon"}
        for block in content[2:]
    ]
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": results},
    ]
    assert client.post(MESSAGES, json=message_body(messages=turns)).status_code == 200
    roles = [message.role for message in engine.calls[1].messages]
    assert roles == ["user", "assistant", "tool", "tool"]
    assert SIGNED not in str(engine.calls[1].messages)


# --- OpenAI's chat completions ------------------------------------------------------------------


def test_a_chat_counts_its_thoughts(script: Script) -> None:
    client, _ = script(*THOUGHT)
    asked = {"messages": [{"role": "user", "content": "Q"}]}
    reply = client.post("/v1/chat/completions", json=asked).json()
    assert reply["choices"][0]["message"]["reasoning_content"] == "Let me see."
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
    text = client.post("/v1/chat/completions", json=streamed).text
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
