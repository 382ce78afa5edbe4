"""Plain completions: bare text, several prompts, the older shapes."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.reply import TokenLogprob
from server.schemas.completions import REFUSED
from tests.server.conftest import Script, ends, events, says

PATH = "/v1/completions"
HELLO = (says(" wor"), says("ld"), ends())


def test_a_completion_has_openais_shape(script: Script) -> None:
    client, engine = script(*HELLO)
    reply = client.post(PATH, json={"prompt": "Hello"}).json()
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-")
    assert reply["choices"] == [
        {"index": 0, "text": " world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert reply["usage"]["total_tokens"] == 17
    (call,) = engine.calls
    assert call.text == "Hello" and call.options["max_tokens"] == 16 and not call.messages


def test_a_stream_says_the_same_in_pieces(script: Script) -> None:
    client, _ = script(*HELLO)
    asked = {"prompt": "Hello", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(client.post(PATH, json=asked).text)
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["total_tokens"] == 17
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == [" wor", "ld", ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]


def test_several_prompts_and_answers_are_counted_through(script: Script) -> None:
    client, engine = script(says("a", 0), ends(index=0), says("b", 1), ends(index=1))
    asked: dict[str, Any] = {"prompt": ["P", "Q"], "n": 2, "echo": True}
    reply = client.post(PATH, json=asked).json()
    assert [c["text"] for c in reply["choices"]] == ["Pa", "Pb", "Qa", "Qb"]
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"]["prompt_tokens"] == 24 and reply["usage"]["completion_tokens"] == 20
    *chunks, _ = events(client.post(PATH, json={**asked, "stream": True}).text)
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["Pa", "Pb", "Qa", "Qb"]
    assert [call.text for call in engine.calls[:2]] == ["P", "Q"]


def test_one_prompt_too_many_for_the_queue_withdraws_the_others(script: Script) -> None:
    client, engine = script(*HELLO)
    accept = engine.submit

    async def full_after_one(call: Any) -> Any:
        from server.ticket import Overloaded

        if engine.calls:
            raise Overloaded("full")
        return await accept(call)

    engine.submit = full_after_one  # type: ignore[method-assign]
    assert client.post(PATH, json={"prompt": ["P", "Q"]}).status_code == 429
    assert engine.tickets[0].cancelled


def test_tokens_are_a_prompt_too(client: TestClient, served: QwenVL) -> None:
    text = "What is this?"
    ids = served.tokenizer.encode(text)
    asked = {"max_tokens": 6, "temperature": 0}
    plain = client.post(PATH, json={"prompt": text, **asked}).json()
    as_ids = client.post(PATH, json={"prompt": ids, **asked}).json()
    assert plain["choices"] == as_ids["choices"]
    assert plain["usage"]["prompt_tokens"] == len(ids)
    several = client.post(PATH, json={"prompt": [ids, ids], **asked}).json()
    assert [c["text"] for c in several["choices"]] == [plain["choices"][0]["text"]] * 2


def test_special_tokens_in_a_text_are_text(client: TestClient, served: QwenVL) -> None:
    text = "<|im_end|><|image_pad|>"
    reply = client.post(PATH, json={"prompt": text, "max_tokens": 1, "temperature": 0}).json()
    assert reply["usage"]["prompt_tokens"] == len(served.tokenizer.encode(text)) > 2


def test_logprobs_have_the_older_shape(script: Script, served: QwenVL) -> None:
    word, other = (served.tokenizer.encode(text)[0] for text in (" the", "a"))
    entry = TokenLogprob(word, -0.5, ((word, -0.5), (other, -1.5)))
    text = served.tokenizer.decode([word])
    client, engine = script(says(text, logprobs=(entry,)), says(text, logprobs=(entry,)), ends())
    asked = {"prompt": "x", "logprobs": 2}
    told = client.post(PATH, json=asked).json()["choices"][0]["logprobs"]
    assert told == {
        "tokens": [text] * 2,
        "token_logprobs": [-0.5] * 2,
        "top_logprobs": [{text: -0.5, served.tokenizer.decode([other]): -1.5}] * 2,
        "text_offset": [0, len(text)],
    }
    assert engine.calls[0].options["top_logprobs"] == 2
    chunks = events(client.post(PATH, json={**asked, "stream": True}).text)[:2]
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert offsets == [[0], [len(text)]]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt is missing"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": []}, "the prompt is empty"),
    ({"prompt": ["a", ""]}, "the prompt is empty"),
    ({"prompt": [[]]}, "the prompt is empty"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**30]}, "stands for no text"),
    ({"prompt": ["a"] * 129}, "129 prompts"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo with logprobs"),
    ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ({"prompt": "a", "logprobs": 21}, "logprobs is 21"),
]


@pytest.mark.parametrize(("asked", "message"), BAD, ids=[str(a)[:50] for a, _ in BAD])
def test_a_bad_request_is_a_400(client: TestClient, asked: dict[str, Any], message: str) -> None:
    for stream in (False, True):
        response = client.post(PATH, json={**asked, "stream": stream})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert message in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_a_picture_token_among_the_ids_is_refused(client: TestClient, served: QwenVL) -> None:
    ids = [served.tokenizer.token_id("<|image_pad|>")]
    response = client.post(PATH, json={"prompt": ids})
    assert response.status_code == 400 and "stands for no text" in response.text


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_is_not_supported_is_refused_by_name(script: Script, name: str) -> None:
    client, _ = script(*HELLO)
    response = client.post(PATH, json={"prompt": "a", name: ["something"]})
    assert response.status_code == 400 and response.json()["error"]["param"] == name
