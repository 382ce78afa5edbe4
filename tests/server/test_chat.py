"""Chat completions: fields, forms of messages and the shapes of answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.reply import TokenLogprob
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart
from server.schemas.chat import REFUSED, ChatRequest
from server.settings import Settings
from tests.server.conftest import PICTURE, Script, body, data_url, ends, events, says

CHAT = "/v1/chat/completions"
HELLO = (says("Hel"), says("lo"), ends())


def test_a_completion_equals_the_python_answer(
    client: TestClient, served: QwenVL, thread: ThreadPoolExecutor
) -> None:
    reply = client.post(CHAT, json=body(data_url())).json()

    def ask() -> Any:
        return served.generate("What is this?", images=[PICTURE], max_tokens=8, temperature=0)

    expected = thread.submit(ask).result()
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert reply["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 9


def test_a_completion_has_openais_keys_and_no_others_but_timings(script: Script) -> None:
    client, _ = script(*HELLO)
    reply = client.post(CHAT, json=body()).json()
    keys = {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert set(reply) == keys | {"timings"}
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-")
    assert isinstance(reply["created"], int)
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def test_a_message_that_points_has_its_boxes_in_pixels_of_the_picture(
    script: Script, served: QwenVL
) -> None:
    seen = served.open(ImagePart(PICTURE), Options())
    text = "<|object_ref_start|>it<|object_ref_end|><|box_start|>(250,0),(1000,500)<|box_end|>"
    client, _ = script(says(text[:40]), says(text[40:]), ends(pictures=(seen,)))
    whole = client.post(CHAT, json=body(data_url())).json()["choices"][0]["message"]
    assert whole["content"] == text
    assert whole["boxes"] == [
        {
            "label": "it",
            "kind": "box",
            "image": 0,
            "xyxy": [21.0, 0.0, 84.0, 42.0],
            "points": [[21.0, 0.0], [84.0, 42.0]],
            "points_1000": [[250.0, 0.0], [1000.0, 500.0]],
        }
    ]
    *_, last, done = events(client.post(CHAT, json=body(data_url(), stream=True)).text)
    assert done == "[DONE]"
    assert last["choices"][0]["delta"] == {"content": "", "boxes": whole["boxes"]}


def test_usage_and_timings_count_as_openai_mistral_rs_and_llama_cpp_do(script: Script) -> None:
    client, _ = script(*HELLO)
    reply = client.post(CHAT, json=body()).json()
    usage, timings = reply["usage"], reply["timings"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        12,
        5,
        17,
    )
    details = {"cached_tokens": 6, "image_tokens": 4, "video_tokens": 0, "audio_tokens": 0}
    assert usage["prompt_tokens_details"] == details
    # 0.25 s of vision and 0.75 s of prefill for 12 tokens, then 2 s for 5.
    assert usage["total_prompt_time_sec"] == 1.0 and usage["total_completion_time_sec"] == 2.0
    assert usage["total_time_sec"] == 3.0
    assert usage["avg_prompt_tok_per_sec"] == 12.0 and usage["avg_compl_tok_per_sec"] == 2.5
    assert usage["avg_tok_per_sec"] == pytest.approx(17 / 3)
    assert timings == {
        "cache_n": 6,
        "prompt_n": 6,
        "prompt_ms": 1000.0,
        "prompt_per_token_ms": pytest.approx(1000 / 6),
        "prompt_per_second": 6.0,
        "predicted_n": 5,
        "predicted_ms": 2000.0,
        "predicted_per_token_ms": 400.0,
        "predicted_per_second": 2.5,
    }


def test_a_stream_is_a_role_then_text_then_a_finish_then_done(script: Script) -> None:
    client, _ = script(*HELLO)
    response = client.post(CHAT, json=body(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {"content": ""},
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, None, "stop"]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert ["timings" in chunk for chunk in chunks] == [False, False, False, True]


def test_usage_comes_in_a_chunk_of_its_own_where_asked_for(script: Script) -> None:
    client, _ = script(*HELLO)
    asked = body(stream=True, stream_options={"include_usage": True})
    *chunks, last, _ = events(client.post(CHAT, json=asked).text)
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 17


def test_usage_comes_in_every_chunk_where_asked_for(script: Script) -> None:
    client, _engine = script(*HELLO)
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = body(stream=True, stream_options=options)
    *chunks, last, _ = events(client.post(CHAT, json=asked).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 2]
    assert last["usage"]["completion_tokens"] == 5


def test_several_answers_keep_their_places(script: Script) -> None:
    pieces = (says("a", 1), says("b", 0), ends(index=1), says("c", 0), ends("length", index=0))
    client, engine = script(*pieces)
    reply = client.post(CHAT, json=body(n=2)).json()
    told = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in reply["choices"]]
    assert told == [(0, "bc", "length"), (1, "a", "stop")]
    assert reply["usage"]["prompt_tokens"] == 12 and reply["usage"]["completion_tokens"] == 10
    assert engine.calls[0].n == 2
    *chunks, _ = events(client.post(CHAT, json=body(n=2, stream=True)).text)
    for index, text in ((0, "bc"), (1, "a")):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["finish_reason"]
        assert "".join(choice["delta"]["content"] for choice in mine) == text


def test_drawn_answers_to_one_question_differ_and_repeat_with_their_seed(
    client: TestClient,
) -> None:
    asked = body(n=3, temperature=1, seed=5)
    first, again = (client.post(CHAT, json=asked).json()["choices"] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again]
    alone = client.post(CHAT, json=body(temperature=1, seed=5)).json()
    assert alone["choices"][0]["message"]["content"] == texts[0]


def test_logprobs_have_openais_shape(script: Script, served: QwenVL) -> None:
    word = served.tokenizer.encode(" the")[0]
    half = served.tokenizer.encode("é")[0]  # a byte of two, unless the vocabulary joins them
    entries = (TokenLogprob(word, -0.5, ((word, -0.5), (half, float("-inf")))),)
    client, engine = script(says(" the", logprobs=entries), ends())
    asked = body(logprobs=True, top_logprobs=2)
    (choice,) = client.post(CHAT, json=asked).json()["choices"]
    text, data = served.tokenizer.decode([word]), served.tokenizer.token_bytes(word)
    strongest = {"token": text, "logprob": -0.5, "bytes": list(data)}
    other = {
        "token": served.tokenizer.decode([half]),
        "logprob": -9999.0,
        "bytes": list(served.tokenizer.token_bytes(half)),
    }
    whole = {"content": [{**strongest, "top_logprobs": [strongest, other]}], "refusal": None}
    assert choice["logprobs"] == whole
    chunks = events(client.post(CHAT, json={**asked, "stream": True}).text)[:-1]
    assert chunks[1]["choices"][0]["logprobs"] == whole
    assert engine.calls[0].options["top_logprobs"] == 2


def test_logprobs_of_the_model_are_those_of_its_tokens(client: TestClient) -> None:
    (choice,) = client.post(CHAT, json=body(logprobs=True, top_logprobs=3)).json()["choices"]
    entries = choice["logprobs"]["content"]
    said = b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace")
    assert said == choice["message"]["content"] and len(entries) == 8
    for entry in entries:
        assert entry["top_logprobs"][0]["token"] == entry["token"]  # temperature 0
        assert len(entry["top_logprobs"]) == 3 and entry["logprob"] < 0


HONOURED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"max_tokens": None}, {"max_tokens": None}),
    ({"max_tokens": None, "max_completion_tokens": 7}, {"max_tokens": 7}),
    ({"max_tokens": 9, "max_completion_tokens": 7}, {"max_tokens": 7}),
    ({"max_tokens": 6, "max_completion_tokens": 7}, {"max_tokens": 6}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 2.0}, {"temperature": 2.0}),
    ({"temperature": None}, {"temperature": None}),
    ({"top_p": 0.1}, {"top_p": 0.1}),
    ({"top_k": 40}, {"top_k": 40}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"min_p": 0.05}, {"min_p": 0.05}),
    ({"frequency_penalty": -2}, {"frequency_penalty": -2}),
    ({"presence_penalty": 1.0}, {"presence_penalty": 1.0}),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"logit_bias": {"15": -100, "7": 5}}, {"logit_bias": {15: -100, 7: 5}}),
    ({"seed": -1}, {"seed": -1}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"stop": "END"}, {"stop": "END"}),
    ({"stop": ["a"] * 16}, {"stop": ["a"] * 16}),
    ({"stop": []}, {"stop": []}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
    ({"min_pixels": 3136, "max_pixels": 50176}, {"min_pixels": 3136, "max_pixels": 50176}),
    ({"cache_prompt": False}, {"cache": False}),
]


@pytest.mark.parametrize(("fields", "options"), HONOURED, ids=[str(f) for f, _ in HONOURED])
def test_a_field_reaches_the_engine(
    script: Script, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    client, engine = script(*HELLO)
    assert client.post(CHAT, json=body(**fields)).status_code == 200
    told = dict(engine.calls[0].options)
    assert {name: told[name] for name in options} == options


def test_the_operators_longest_answer_bounds_every_other(script: Script) -> None:
    client, engine = script(*HELLO, settings=Settings(max_tokens=6))
    for asked, given in ((None, 6), (100, 6), (5, 5)):
        client.post(CHAT, json=body(max_tokens=asked))
        assert engine.calls[-1].options["max_tokens"] == given


FORMS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"response_format": {"type": "json_object"}}, ("json_object", "")),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}},
            }
        },
        ("json_schema", '{"type": "object"}'),
    ),
    (
        {"response_format": {"type": "json_object", "schema": {"type": "array"}}},
        ("json_schema", '{"type": "array"}'),
    ),
    ({"grammar": {"type": "regex", "value": "[0-9]+"}}, ("regex", "[0-9]+")),
    ({"grammar": {"type": "lark", "value": 'start: "a"'}}, ("lark", 'start: "a"')),
    (
        {"grammar": {"type": "json_schema", "value": {"type": "null"}}},
        ("json_schema", '{"type": "null"}'),
    ),
    (
        {"grammar": {"type": "llguidance", "value": {"grammars": []}}},
        ("llguidance", '{"grammars": []}'),
    ),
]


@pytest.mark.parametrize(
    ("fields", "form"), FORMS, ids=[f[0] + str(i) for i, (_, f) in enumerate(FORMS)]
)
def test_a_form_of_the_answer_reaches_the_engine(
    script: Script, fields: dict[str, Any], form: tuple[str, str]
) -> None:
    client, engine = script(*HELLO)
    assert client.post(CHAT, json=body(**fields)).status_code == 200
    grammar = engine.calls[0].grammar
    assert grammar is not None and (grammar.kind, grammar.source) == form


IGNORED = [
    {"response_format": {"type": "text"}},
    {"n": None, "stop": None, "logit_bias": None, "stream": None, "stream_options": None},
    {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "flex"},
    {"safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h"},
    {"modalities": ["text"], "reasoning_effort": "none", "verbosity": "medium"},
    {"audio": None, "functions": [], "function_call": "none", "prediction": None},
    {"chat_template_kwargs": {}, "ignore_eos": False, "min_tokens": 0, "length_penalty": 1.0},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    {"no_such_field": {"a": [1]}, "x-y": None},
]


@pytest.mark.parametrize("fields", IGNORED, ids=str)
def test_a_field_that_changes_nothing_is_ignored(client: TestClient, fields: Any) -> None:
    plain = client.post(CHAT, json=body()).json()["choices"]
    response = client.post(CHAT, json=body(**fields))
    assert response.status_code == 200 and response.json()["choices"] == plain


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_is_known_and_not_supported_is_refused_by_name(
    script: Script, name: str
) -> None:
    client, engine = script(*HELLO)
    for stream in (False, True):
        response = client.post(CHAT, json={**body(stream=stream), name: ["something"]})
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"] == name
        assert error["message"].startswith(name) and error["type"] == "invalid_request_error"
    assert not engine.calls


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"temperature": -1}, "temperature is -1", "temperature"),
    ({"temperature": True}, "temperature is True", "temperature"),
    ({"temperature": "hot"}, "temperature is 'hot'", "temperature"),
    ({"temperature": 1e308}, "temperature", "temperature"),
    ({"top_p": 1.5}, "top_p is 1.5", "top_p"),
    ({"top_k": -2}, "top_k is -2", "top_k"),
    ({"frequency_penalty": 101}, "frequency_penalty", "frequency_penalty"),
    ({"max_tokens": 0}, "max_tokens is 0", "max_tokens"),
    ({"max_tokens": -1}, "max_tokens is -1", "max_tokens"),
    ({"max_tokens": True}, "max_tokens is True", "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens is 1.5", "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens", "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens", "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens is 0", "max_completion_tokens"),
    ({"seed": 2**63}, "seed", "seed"),
    ({"seed": 1.5}, "seed is 1.5", "seed"),
    ({"n": 0}, "n is 0", "n"),
    ({"n": 129}, "n is 129", "n"),
    ({"stop": ""}, "stop", "stop"),
    ({"stop": ["a", ""]}, "stop", "stop"),
    ({"stop": ["a"] * 17}, "stop", "stop"),
    ({"stop": [5]}, "stop", "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias has a key that is no token id", "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias has a key", "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias has a key", "logit_bias"),
    ({"logit_bias": {"1": 1e9}}, "logit_bias", "logit_bias"),
    ({"logit_bias": {"999999999": 1}}, "beyond the vocabulary of 512", "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21", "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs", "top_logprobs"),
    ({"stream": False, "stream_options": {}}, "stream_options needs stream", "stream_options"),
    ({"stream": "yes"}, "stream is 'yes'", "stream"),
    ({"model": 5}, "model is 5", "model"),
    ({"messages": []}, "messages is empty", "messages"),
    ({"messages": None}, "messages is a NoneType", "messages"),
    ({"messages": {}}, "messages is a dict", "messages"),
    ({"messages": "  "}, "the prompt is empty", "messages"),
    ({"messages": [{"role": "user", "content": None}]}, "NoneType", "messages[0].content"),
    ({"messages": [{"role": "user", "content": {}}]}, "dict as content", "messages[0].content"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "role 'boss'", "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "no tool was called", "messages[0]"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing was asked", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "type 'input_audio'",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
        "names no video",
        "messages[0].content[0]",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
        "type 'file'",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x"}] * 2049}, "2049 messages", "messages"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "response_format.type"),
    (
        {"response_format": {"type": "json_schema"}},
        "no schema",
        "response_format.json_schema",
    ),
    ({"grammar": {"type": "bnf", "value": "x"}}, "grammar.type", "grammar.type"),
    ({"grammar": {"type": "regex", "value": 5}}, "grammar.value", "grammar.value"),
    (
        {
            "grammar": {"type": "regex", "value": "x"},
            "response_format": {"type": "json_object"},
        },
        "not both",
        "grammar",
    ),
    ({"grammar": {"type": "regex", "value": "x" * 300_000}}, "at most", "grammar"),
    ({"min_pixels": 0}, "min_pixels is 0", "min_pixels"),
]


@pytest.mark.parametrize(("fields", "message", "param"), BAD, ids=[str(f)[:60] for f, *_ in BAD])
def test_a_bad_request_is_a_400_that_names_its_field(
    client: TestClient, fields: dict[str, Any], message: str, param: str | None
) -> None:
    for stream in (False, True):
        response = client.post(CHAT, json=body(**{"stream": stream, **fields}))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert message in error["message"] and "\n" not in error["message"]
        assert len(error["message"]) < 600
        assert param is None or error["param"].startswith(param)


RAW = [
    b"",
    b"{",
    b"[]",
    b'"x"',
    b"\xff\xfe\x00",
    b'{"messages": "Hi", "temperature": NaN}',
    b'{"messages": "Hi", "temperature": Infinity}',
    b'{"messages": "Hi", "temperature": 1e999}',
    b'{"messages": "Hi", "seed": ' + b"1" * 5000 + b"}",
    b'{"messages": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("raw", RAW, ids=[str(raw)[:40] for raw in RAW])
def test_a_body_that_is_no_request_is_a_400(client: TestClient, raw: bytes) -> None:
    response = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


HARMLESS = [
    b'{"messages": "a", "messages": "Hi", "max_tokens": 4}',
    '\ufeff{"messages": "Hi", "max_tokens": 4}'.encode(),
    rb'{"messages": "\ud800 and \u0000", "max_tokens": 4}',
]


@pytest.mark.parametrize("raw", HARMLESS, ids=["duplicate keys", "BOM", "surrogate and NUL"])
def test_odd_json_does_no_harm(client: TestClient, raw: bytes) -> None:
    response = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400) and response.json()


def test_a_lone_surrogate_in_a_name_comes_back_printable(client: TestClient) -> None:
    raw = rb'{"messages": [{"role": "\ud800", "content": "x"}]}'
    response = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.text.encode()


def test_a_prompt_beyond_the_context_is_told_with_both_numbers(client: TestClient) -> None:
    response = client.post(CHAT, json=body(messages="word " * 3000))
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "2048" in error["message"] or "512" in error["message"]


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": "Q"}
ASKED = Message("user", (TextPart("Q"),))
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

CONVERSATIONS: list[tuple[Any, tuple[Message, ...]]] = [
    ("Q", (ASKED,)),
    ([user(TEXT)], (ASKED,)),
    ([{"role": "user", "content": "Q", "name": "Ann"}], (ASKED,)),
    (
        [{"role": "system", "content": [TEXT]}, user(TEXT)],
        (Message("system", (TextPart("Q"),)), ASKED),
    ),
    (
        [{"role": "developer", "content": "A"}, user(TEXT)],
        (Message("system", (TextPart("A"),)), ASKED),
    ),
    (
        [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}, user(TEXT)],
        (Message("system", (TextPart("A"), TextPart("\n\n"), TextPart("B"))), ASKED),
    ),
    (
        [user(TEXT), {"role": "system", "content": "A"}],
        (ASKED, Message("system", (TextPart("A"),))),
    ),
    ([user({"type": "text", "text": ""}, TEXT)], (Message("user", (TextPart(""), TextPart("Q"))),)),
    (
        [user(TEXT), {"role": "assistant", "content": "It"}],
        (ASKED, Message("assistant", (TextPart("It"),))),
    ),
    ([user("Q")], (ASKED,)),
]


@pytest.mark.parametrize(("raw", "messages"), CONVERSATIONS, ids=[str(r) for r, _ in CONVERSATIONS])
def test_messages_come_in_many_forms(
    script: Script, raw: Any, messages: tuple[Message, ...]
) -> None:
    client, engine = script(*HELLO)
    assert client.post(CHAT, json=body(messages=raw)).status_code == 200
    assert engine.calls[0].messages == messages
    assert engine.calls[0].continues == (messages[-1].role == "assistant")


PICTURES = [
    {"type": "image_url", "image_url": {"url": data_url(), "detail": "low"}},
    {"type": "image_url", "image_url": data_url()},
    {"type": "input_image", "image_url": data_url(), "detail": "high"},
    {"type": "image", "image": data_url()},
]


@pytest.mark.parametrize("part", PICTURES, ids=["object", "string", "input_image", "image"])
def test_a_picture_without_text_is_a_question(client: TestClient, part: Any) -> None:
    reply = client.post(CHAT, json=body(messages=[user(part)]))
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0


MARKS = [
    "<|image|>",
    "<|image_1|>\n",
    "<|image_1|>\n<|image_2|>\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|image_pad|>",
]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_for_a_picture_does_not_change_the_answer(client: TestClient, mark: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url()}}
    plain, marked = (
        client.post(CHAT, json=body(messages=[user(picture, {"type": "text", "text": text})]))
        for text in ("Q?", mark + "Q?")
    )
    assert marked.status_code == 200
    for key in ("choices",):
        assert marked.json()[key] == plain.json()[key]
    assert marked.json()["usage"]["prompt_tokens"] == plain.json()["usage"]["prompt_tokens"]


def test_a_mark_elsewhere_is_text_and_opens_no_place_for_a_picture(client: TestClient) -> None:
    for text in ("Q <|image_pad|>", "<|image|>Q"):
        reply = client.post(CHAT, json=body(messages=[user({"type": "text", "text": text})]))
        usage = reply.json()["usage"]
        assert usage["prompt_tokens_details"]["image_tokens"] == 0
    picture = {"type": "image_url", "image_url": {"url": data_url()}}
    messages = [user(picture, {"type": "text", "text": "Q <|image_pad|>"})]
    assert client.post(CHAT, json=body(messages=messages)).status_code == 200


def test_pictures_beyond_the_operators_number_are_refused(script: Script) -> None:
    client, _engine = script(*HELLO, settings=Settings(max_images=2))
    picture = {"type": "image_url", "image_url": {"url": data_url()}}
    response = client.post(CHAT, json=body(messages=[user(*[picture] * 3)]))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("3 pictures came, at most 2")


def test_details_and_pixels_of_a_part_reach_the_engine(script: Script) -> None:
    client, engine = script(*HELLO)
    url = data_url()
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "max_pixels": 3136}
    client.post(CHAT, json=body(messages=[user(part)]))
    assert engine.calls[0].messages[0].parts == (ImagePart(url, None, 3136, "low"),)


def test_an_answer_that_was_begun_goes_on(client: TestClient) -> None:
    question = {"role": "user", "content": "What is this?"}
    whole = client.post(CHAT, json=body(messages=[question], logprobs=True)).json()["choices"][0]
    tokens = whole["logprobs"]["content"]
    begun_text = tokens[0]["token"]
    assert begun_text.encode() == bytes(tokens[0]["bytes"]) and begun_text.isprintable()
    messages = [question, {"role": "assistant", "content": begun_text}]
    rest = client.post(CHAT, json=body(messages=messages, max_tokens=7)).json()["choices"][0]
    assert begun_text + rest["message"]["content"] == whole["message"]["content"]


def test_any_model_name_is_taken_and_the_reply_names_the_one_that_answered(
    script: Script, served: QwenVL
) -> None:
    client, engine = script(*HELLO)
    for name in ("gpt-3.5-turbo", "../../etc", "", None, "https://example.com/a"):
        reply = client.post(CHAT, json=body(model=name))
        assert reply.status_code == 200 and reply.json()["model"] == engine.name
    assert "/" not in engine.name  # the folder's last part, not where it is


def test_an_unknown_model_is_a_404_where_names_are_strict(script: Script) -> None:
    client, engine = script(*HELLO, settings=Settings(strict_model=True))
    response = client.post(CHAT, json=body(model="gpt-4o"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"
    for name in (engine.name, "default", None):
        assert client.post(CHAT, json=body(model=name)).status_code == 200


def test_every_field_that_is_known_is_in_the_documentation() -> None:
    told = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    assert not [name for name in (*REFUSED, *ChatRequest.model_fields) if f"`{name}`" not in told]
