"""The `openai` Python SDK: chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.clients.asking import (
    GREETED,
    GREETING,
    QUESTION,
    SHOWN,
    bare_jpeg,
    data_url,
    foreign,
    said,
    seen,
)
from tests.live import Live

openai = foreign("openai")

SHAPES = SHOWN["shapes.png"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=live.v1, api_key="EMPTY") as connected:
        yield connected


def chat(client: Any, messages: list[dict[str, Any]], **fields: Any) -> Any:
    asked = {"model": "gpt-4o-mini", "temperature": 0, "messages": messages} | fields
    return client.chat.completions.create(**asked)


def test_text_is_answered_and_counted(client: Any, live: Live) -> None:
    reply = chat(client, said(GREETING))
    assert reply.object == "chat.completion" and reply.model == live.engine.name
    (choice,) = reply.choices
    assert choice.message.role == "assistant" and choice.message.content == GREETED
    assert choice.finish_reason == "stop" and choice.index == 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens > 1


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_a_picture_is_seen(client: Any, detail: str) -> None:
    messages = seen(data_url("shapes.png"))
    messages[0]["content"][0]["image_url"]["detail"] = detail
    reply = chat(client, messages)
    assert "red circle" in reply.choices[0].message.content


def test_two_pictures_are_told_apart(client: Any) -> None:
    heart, star = (seen(data_url(name))[0]["content"][0] for name in ("heart.png", "star.png"))
    question = {"type": "text", "text": "How many images are there?"}
    reply = chat(client, [{"role": "user", "content": [heart, star, question]}])
    assert "two" in reply.choices[0].message.content


@pytest.mark.parametrize("detail", [None, "low"])
def test_bare_base64_that_begins_like_a_path_is_a_picture(client: Any, detail: str | None) -> None:
    source = bare_jpeg("shapes.png")
    assert source.startswith("/9j/4A")
    reply = chat(client, seen(source))
    assert reply.choices[0].message.content == SHAPES


def test_a_conversation_is_continued(client: Any) -> None:
    first = seen(data_url("shapes.png"))
    then = {"role": "user", "content": "What color is the circle?"}
    turns = [*first, {"role": "assistant", "content": SHAPES}, then]
    assert "red" in chat(client, turns).choices[0].message.content


def test_a_stream_says_the_same_and_ends_with_usage(client: Any) -> None:
    whole = chat(client, seen(data_url("shapes.png")))
    options = {"include_usage": True}
    chunks = list(chat(client, seen(data_url("shapes.png")), stream=True, stream_options=options))
    *spoken, last = chunks
    assert last.choices == [] and last.usage.to_dict() | _told(last) == whole.usage.to_dict() | (
        _told(last)
    )
    assert all(chunk.usage is None for chunk in spoken)
    assert spoken[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in spoken) == SHAPES
    assert [chunk.choices[0].finish_reason for chunk in spoken][-1] == "stop"
    assert {chunk.choices[0].finish_reason for chunk in spoken[:-1]} == {None}
    assert len(spoken) > 5, "a stream that comes in one piece is none"
    assert len({chunk.id for chunk in chunks}) == 1


def _told(chunk: Any) -> dict[str, Any]:
    """What may differ between two answers to the same question: rates and what was cached."""
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {key: value for key, value in chunk.usage.to_dict().items() if key not in counted}


def test_a_stream_can_be_left(client: Any) -> None:
    with chat(client, said(GREETING), stream=True) as stream:
        next(iter(stream))
    assert chat(client, said(GREETING)).choices[0].message.content == GREETED


def test_every_token_comes_with_its_logprobs(client: Any) -> None:
    reply = chat(client, said(GREETING), logprobs=True, top_logprobs=3)
    tokens = reply.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().startswith(GREETED)
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert token.top_logprobs[0].logprob == max(t.logprob for t in token.top_logprobs)
        assert token.token == token.top_logprobs[0].token, "the likeliest is taken at 0"
    streamed = [
        token
        for chunk in chat(client, said(GREETING), logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


@pytest.mark.parametrize("stop", [" red", ["zzz", " red circle"], ["d circle and"]])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop(client: Any, stop: Any, stream: bool) -> None:
    reply = chat(client, seen(data_url("shapes.png")), stop=stop, stream=stream)
    if stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    ends = [SHAPES.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in SHAPES]
    assert (text, reason) == (SHAPES[: min(ends)], "stop")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_holds_under_both_names(client: Any, field: str) -> None:
    reply = chat(client, said(GREETING), **{field: 2})
    assert reply.usage.completion_tokens == 2
    assert reply.choices[0].finish_reason == "length"


def test_a_seed_repeats_an_answer_and_another_does_not(client: Any) -> None:
    def drawn(seed: int) -> str:
        reply = chat(client, seen(data_url("three.png")), temperature=2, seed=seed, max_tokens=12)
        return str(reply.choices[0].message.content)

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_one_question(client: Any, stream: bool) -> None:
    reply = chat(
        client,
        # Words that the embedded model was not taught, so that it hesitates.
        seen(data_url("shapes.png"), "Look!"),
        n=3,
        temperature=2,
        seed=1,
        max_tokens=12,
        stream=stream,
    )
    if not stream:
        texts = {choice.index: choice.message.content for choice in reply.choices}
    else:
        texts = dict.fromkeys(range(3), "")
        for chunk in reply:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content
    assert sorted(texts) == [0, 1, 2] and all(texts.values())
    assert len(set(texts.values())) > 1, "they are drawn apart"


def test_a_bias_forbids_a_token(client: Any, live: Live) -> None:
    first = chat(client, said(GREETING), logprobs=True).choices[0].logprobs.content[0]
    (token_id,) = live.engine.tokenizer.encode(first.token)
    biased = chat(client, said(GREETING), logit_bias={str(token_id): -100}, max_tokens=4)
    assert not biased.choices[0].message.content.startswith(first.token)


class Seen(BaseModel):
    shape: Literal["circle", "square", "triangle"]
    count: int
    sure: bool


def test_a_schema_is_kept_to_and_parsed(client: Any) -> None:
    reply = client.chat.completions.parse(
        model="demo",
        messages=seen(data_url("shapes.png")),
        response_format=Seen,
        temperature=0,
        max_tokens=200,
    )
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Seen) and parsed.shape in ("circle", "square", "triangle")


def test_an_object_is_one_even_if_nothing_is_said_of_its_form(client: Any) -> None:
    reply = chat(
        client, said(GREETING), response_format={"type": "json_object"}, max_tokens=200
    ).choices[0]
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.message.content), dict)
    else:
        assert reply.finish_reason == "length" and reply.message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_required_tool_is_called_with_arguments_of_its_schema(client: Any, choice: Any) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 200}
    whole = chat(client, said("What is the weather in Paris?"), **fields).choices[0]
    assert whole.finish_reason == "tool_calls" and not whole.message.content
    (call,) = whole.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather" and call.id
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "Rome") and arguments["days"] in (1, 2, 3)

    with client.chat.completions.stream(
        model="demo", temperature=0, messages=said("What is the weather in Paris?"), **fields
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert json.loads(final.message.tool_calls[0].function.arguments) == arguments
    pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert pieces and pieces[0].name == "get_weather"


def test_what_a_tool_said_is_taken_into_account_without_harm(client: Any) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'},
    }
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    reply = chat(client, turns, tools=[WEATHER], tool_choice="none", max_tokens=20)
    assert isinstance(reply.choices[0].message.content, str)
    assert not reply.choices[0].message.tool_calls
    without = chat(client, turns[:1], max_tokens=20)
    assert reply.usage.prompt_tokens > without.usage.prompt_tokens + 20, "tools are in the prompt"


def test_roles_and_forms_that_apps_send_are_taken(client: Any) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "You are short."}]},
        {"role": "system", "content": "You are polite."},
        {
            "role": "user",
            "content": [{"type": "text", "text": ""}, {"type": "text", "text": GREETING}],
        },
    ]
    assert chat(client, turns, max_tokens=None, n=None, stop=None).choices[0].message.content


def test_many_at_once_hear_what_each_hears_alone(live: Live) -> None:
    asked = [GREETING, "Who are you?", *[seen(data_url(name)) for name in SHOWN]]

    async def ask(client: Any, question: Any) -> str:
        messages = said(question) if isinstance(question, str) else question
        reply = await client.chat.completions.create(model="demo", messages=messages, temperature=0)
        return str(reply.choices[0].message.content)

    async def run() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=live.v1, api_key="EMPTY") as client:
            alone = [await ask(client, question) for question in asked]
            crowd = await asyncio.gather(*(ask(client, question) for question in asked * 2))
        return alone, crowd

    alone, crowd = asyncio.run(run())
    assert crowd == alone * 2 and alone[2:] == list(SHOWN.values())


@pytest.mark.parametrize("mark", ["<|image_1|>\n", "<|image|>", "<|image_pad|>", "<image>"])
def test_marks_of_other_templates_do_no_harm(client: Any, mark: str) -> None:
    reply = chat(client, seen(data_url("shapes.png"), mark + QUESTION))
    assert "red circle" in reply.choices[0].message.content
