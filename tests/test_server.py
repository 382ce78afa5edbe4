"""The local server: OpenAI's wire form, and nothing opened on a request's behalf."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL, load
from server.__main__ import main
from server.app import create_app
from server.engine import Engine
from server.settings import Settings
from tests.golden.tiny import picture

PICTURE = picture(41, 84, 84)


@pytest.fixture(scope="module")
def engine() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def served(engine: ThreadPoolExecutor, tiny_folder: Any) -> QwenVL:
    return engine.submit(load, tiny_folder, dtype="float32").result()


@pytest.fixture
def client(served: QwenVL, engine: ThreadPoolExecutor) -> Iterator[TestClient]:
    settings = Settings()
    with TestClient(create_app(Engine(served, engine, settings), settings)) as connected:
        yield connected


def data_url() -> str:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def body(url: str | None = None, **fields: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    question = {"role": "user", "content": content}
    return {"messages": [question], "max_tokens": 8, "temperature": 0} | fields


def test_a_completion_equals_the_python_answer(
    client: TestClient, served: QwenVL, engine: ThreadPoolExecutor
) -> None:
    reply = client.post("/v1/chat/completions", json=body(data_url())).json()

    def ask() -> Any:
        return served.generate("What is this?", images=[PICTURE], max_tokens=8, temperature=0)

    expected = engine.submit(ask).result()
    assert reply["object"] == "chat.completion"
    message = {"role": "assistant", "content": expected.text, "refusal": None}
    assert reply["choices"][0]["message"] == message
    assert reply["choices"][0]["finish_reason"] == expected.finish_reason
    assert reply["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_a_stream_says_the_same_in_pieces(client: TestClient) -> None:
    whole = client.post("/v1/chat/completions", json=body()).json()
    response = client.post("/v1/chat/completions", json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/etc/passwd", "--image-root"),
        ("file:///etc/passwd", "--image-root"),
        ("x.png", "--image-root"),
        ("http://127.0.0.1/x", "not on the public internet"),
    ],
)
def test_a_request_opens_no_files_and_no_addresses_of_ours(
    client: TestClient, url: str, says: str
) -> None:
    response = client.post("/v1/chat/completions", json=body(url))
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 0, "max_completion_tokens": 0}, ""),
        ({"tools": [{}]}, "tools is not supported"),
        ({"n": 129}, "n is 129"),
        ({"messages": []}, "messages is empty"),
        ({"messages": 3}, "messages is a int"),
        ({"messages": [{"role": "user", "content": None}]}, "NoneType as content"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/png;base64,AAAA"},
                            }
                        ],
                    }
                ]
            },
            "data: URL",
        ),
    ],
)
def test_a_bad_request_is_a_400_in_openais_form(
    client: TestClient, fields: dict[str, Any], message: str
) -> None:
    for stream in (False, True):
        response = client.post("/v1/chat/completions", json=body(**fields, stream=stream))
        assert response.status_code == 400
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert message in error["message"] and "\n" not in error["message"]


def test_another_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/health").json() == {"status": "ok"}


def test_the_model_is_listed(client: TestClient, served: QwenVL) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == Path(served.name).name and model["object"] == "model"


def test_only_loopback_addresses_are_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
