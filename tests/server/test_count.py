"""Counting tokens, pictures included."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL
from tests.server.conftest import body, data_url


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
def test_a_conversation_is_counted_with_its_pictures(client: TestClient, path: str) -> None:
    asked = body(data_url())
    counted = client.post(path, json={"messages": asked["messages"]}).json()
    usage = client.post("/v1/chat/completions", json=asked).json()["usage"]
    assert counted["count"] == usage["prompt_tokens"] == len(counted["tokens"])
    assert counted["image_tokens"] == usage["prompt_tokens_details"]["image_tokens"] == 9
    assert counted["max_model_len"] > counted["count"]


def test_fewer_pixels_are_fewer_tokens(client: TestClient) -> None:
    messages = body(data_url())["messages"]
    asked = {"messages": messages, "max_pixels": 28 * 28 * 4}
    assert client.post("/v1/tokenize", json=asked).json()["image_tokens"] == 4


@pytest.mark.parametrize("name", ["prompt", "content", "text"])
def test_text_becomes_tokens_and_text_again(client: TestClient, served: QwenVL, name: str) -> None:
    text = "What is <|im_end|> é?"
    told = client.post("/v1/tokenize", json={name: text}).json()
    assert told["tokens"] == served.tokenizer.encode(text) and told["image_tokens"] == 0
    back = client.post("/v1/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": text, "content": text}


def test_pieces_come_as_vllm_and_as_llama_cpp_give_them(client: TestClient) -> None:
    told = client.post("/tokenize", json={"prompt": "an ox", "return_token_strs": True}).json()
    assert "".join(told["token_strs"]) == "an ox"
    pieces = client.post("/tokenize", json={"content": "an ox", "with_pieces": True}).json()
    assert [piece["id"] for piece in pieces["tokens"]] == told["tokens"]
    assert "".join(piece["piece"] for piece in pieces["tokens"]) == "an ox"


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("tokenize", {}, "expected one of messages, prompt"),
    ("tokenize", {"prompt": "a", "content": "b"}, "expected one of messages, prompt"),
    ("tokenize", {"prompt": "a", "messages": "b"}, "expected one of messages, prompt"),
    ("tokenize", {"messages": []}, "messages is empty"),
    ("tokenize", {"prompt": "a", "parse_special": True}, "parse_special is not supported"),
    ("detokenize", {}, "tokens is missing"),
    ("detokenize", {"tokens": [-1]}, "tokens.0 is -1"),
    ("detokenize", {"tokens": "a"}, "tokens is 'a'"),
]


@pytest.mark.parametrize(("path", "asked", "message"), BAD, ids=[str(a) for _, a, _ in BAD])
def test_a_bad_request_is_a_400(
    client: TestClient, path: str, asked: dict[str, Any], message: str
) -> None:
    response = client.post(f"/v1/{path}", json=asked)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_nothing_has_no_tokens(client: TestClient) -> None:
    assert client.post("/v1/tokenize", json={"prompt": ""}).json()["count"] == 0
    assert client.post("/v1/detokenize", json={"tokens": []}).json()["prompt"] == ""
