"""The `openai` Python SDK: completions and responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.clients.asking import GREETED, GREETING, QUESTION, SHOWN, data_url, foreign
from tests.live import Live

openai = foreign("openai")

PROMPT = f"<|im_start|>user\n{GREETING}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=live.v1, api_key="EMPTY") as connected:
        yield connected


def test_text_is_gone_on_with(client: Any, live: Live) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": "The image shows", "temperature": 0}
    whole = client.completions.create(**asked, max_tokens=8)
    assert whole.object == "text_completion" and whole.model == live.engine.name
    assert whole.choices[0].text and whole.usage.completion_tokens <= 8
    chunks = list(client.completions.create(**asked, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_prompts_have_several_answers(client: Any) -> None:
    reply = client.completions.create(
        model="demo", prompt=["The image", "The word"], temperature=0, max_tokens=4
    )
    assert [choice.index for choice in reply.choices] == [0, 1]


def test_a_response_is_an_answer(client: Any, live: Live) -> None:
    reply = client.responses.create(model="demo", input=GREETING, temperature=0)
    assert reply.object == "response" and reply.status == "completed"
    assert reply.output_text == GREETED and reply.model == live.engine.name
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def _about(name: str) -> list[dict[str, Any]]:
    picture = {"type": "input_image", "image_url": data_url(name), "detail": "auto"}
    return [{"role": "user", "content": [picture, {"type": "input_text", "text": QUESTION}]}]


def test_a_response_sees_pictures(client: Any) -> None:
    reply = client.responses.create(
        model="demo",
        input=_about("shapes.png"),
        instructions="You are a helpful assistant.",
        temperature=0,
    )
    assert reply.output_text == SHOWN["shapes.png"]


def test_the_events_of_a_response_are_those_of_the_sdk(client: Any) -> None:
    with client.responses.stream(model="demo", input=_about("shapes.png"), temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == final.output_text == SHOWN["shapes.png"]
    assert kinds.count("response.output_text.delta") > 3
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_a_response_cut_short_says_so(client: Any) -> None:
    reply = client.responses.create(
        model="demo", input=_about("shapes.png"), temperature=0, max_output_tokens=3
    )
    assert reply.status == "incomplete" and reply.usage.output_tokens == 3
    assert reply.incomplete_details.reason == "max_output_tokens"


class Seen(BaseModel):
    shape: Literal["circle", "square"]
    count: Literal[1, 2, 3]


def test_a_response_keeps_to_a_schema(client: Any) -> None:
    reply = client.responses.parse(
        model="demo",
        input=_about("shapes.png"),
        text_format=Seen,
        temperature=0,
        max_output_tokens=200,
    )
    assert reply.output_parsed.shape in ("circle", "square")


def test_a_response_calls_a_tool(client: Any) -> None:
    tool = {
        "type": "function",
        "name": "look",
        "description": "Look",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["left", "right"]}},
            "required": ["where"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    reply = client.responses.create(
        model="demo",
        input="Look!",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert call.name == "look" and json.loads(call.arguments)["where"] in ("left", "right")


def test_a_response_that_was_not_kept_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="demo", input=GREETING, previous_response_id="resp_1")
