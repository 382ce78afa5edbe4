"""A member that thinks, as the SDKs of both APIs hear it, and each of its events by their types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.settings import Settings
from tests.clients.asking import foreign, said
from tests.live import Live, serve
from tests.server.test_stream_events import events, held, whole
from tests.thinking import CLOSE_ID, write_thinking

openai = foreign("openai")
anthropic = foreign("anthropic")

# With these it thinks six tokens, closes its thoughts and says something: its weights are random.
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 3, "logit_bias": {str(CLOSE_ID): 6.0}}
QUESTION = "Why?"
SHORT, LONG = 3, 24  # tokens that end within the thoughts, and behind them


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serve(Settings(), str(write_thinking(tmp_path_factory.mktemp("thinking")))) as server:
        yield server


@pytest.fixture
def open_client(thinking: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=thinking.v1, api_key="none") as connected:
        yield connected


@pytest.fixture
def anthropic_client(thinking: Live) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=thinking.url, api_key="none") as connected:
        yield connected


@pytest.fixture(scope="module")
def expected(thinking: Live) -> tuple[str, str]:
    """What it thinks, and what it says then."""
    with openai.OpenAI(base_url=thinking.v1, api_key="none") as client:
        reply = client.chat.completions.create(
            model="x", messages=said(QUESTION), max_tokens=LONG, extra_body=DRAWN
        )
    message = reply.choices[0].message
    assert message.reasoning_content and message.content
    details = reply.usage.completion_tokens_details
    assert 1 < details.reasoning_tokens < reply.usage.completion_tokens == LONG
    return message.reasoning_content, message.content


def test_a_response_has_its_thoughts_first(open_client: Any, expected: tuple[str, str]) -> None:
    asked = {"model": "x", "input": QUESTION, "max_output_tokens": LONG, "extra_body": DRAWN}
    reply = open_client.responses.create(**asked)
    thought, message = reply.output
    assert (thought.type, thought.summary, thought.status) == ("reasoning", [], "completed")
    assert [part.text for part in thought.content] == [expected[0]]
    assert message.type == "message" and reply.output_text == expected[1]
    assert 1 < reply.usage.output_tokens_details.reasoning_tokens < LONG
    with open_client.responses.stream(**asked) as stream:
        told = list(stream)
    deltas = [event.delta for event in told if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == expected[0] and len(deltas) > 1
    assert told[-1].type == "response.incomplete"  # it babbles to the end
    again = [{"role": "user", "content": QUESTION}, *reply.output, {"role": "user", "content": "?"}]
    more = open_client.responses.create(**(asked | {"input": again}))
    assert more.output[0].type == "reasoning" and more.usage.input_tokens > LONG


def test_a_message_has_its_thoughts_first(anthropic_client: Any, expected: tuple[str, str]) -> None:
    asked: dict[str, Any] = {"model": "x", "max_tokens": LONG, "extra_body": DRAWN}
    enabled = {"type": "enabled", "budget_tokens": 1024}
    asked |= {"messages": said(QUESTION), "thinking": enabled}
    reply = anthropic_client.messages.create(**asked)
    thought, text = reply.content
    assert (thought.type, thought.thinking) == ("thinking", expected[0]) and thought.signature
    assert (text.type, text.text) == ("text", expected[1])
    assert 1 < reply.usage.output_tokens_details.thinking_tokens < LONG
    with anthropic_client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [b.to_dict() for b in reply.content]
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")
    again = [*said(QUESTION), {"role": "assistant", "content": reply.content}, *said("And?")]
    assert anthropic_client.messages.create(**(asked | {"messages": again})).usage.input_tokens
    quiet = anthropic_client.messages.create(**(asked | {"thinking": {"type": "disabled"}}))
    assert [block.type for block in quiet.content] == ["text"]


@pytest.mark.parametrize("most", [SHORT, LONG])
def test_every_event_and_answer_is_of_its_type(thinking: Live, most: int) -> None:
    from anthropic.types import Message, RawMessageStreamEvent
    from openai.types.responses import Response, ResponseStreamEvent

    asked = {"model": "x", "input": QUESTION, "max_output_tokens": most, **DRAWN}
    held(Response, whole(thinking, "/v1/responses", asked))
    told = events(thinking, "/v1/responses", asked | {"stream": True})
    for number, (name, data) in enumerate(told):
        event = held(ResponseStreamEvent, data)
        assert event.type == name and event.sequence_number == number
    assert name == "response.incomplete"
    assert [item.type for item in event.response.output] == (
        ["reasoning"] if most == SHORT else ["reasoning", "message"]
    )
    asked = {"model": "x", "messages": said(QUESTION), "max_tokens": most, **DRAWN}
    held(Message, whole(thinking, "/v1/messages", asked))
    for name, data in events(thinking, "/v1/messages", asked | {"stream": True}):
        if name != "ping":
            assert held(RawMessageStreamEvent, data).type == name
    assert name == "message_stop"


def test_a_form_of_the_answer_leaves_the_thoughts_alone(open_client: Any) -> None:
    grammar = {"type": "regex", "value": "[ab]{3}"}
    reply = open_client.chat.completions.create(
        model="x",
        messages=said(QUESTION),
        max_tokens=LONG,
        extra_body=DRAWN | {"grammar": grammar},
    )
    message = reply.choices[0].message
    assert message.reasoning_content and message.reasoning_content[-1] not in "ab"
    assert len(message.content) == 3 and set(message.content) <= {"a", "b"}
