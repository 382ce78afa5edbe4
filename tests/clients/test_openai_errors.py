"""The `openai` Python SDK: what goes wrong is the right exception, and is asked again or not."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest

from tests.clients.asking import GREETED, GREETING, KEY, foreign, said, seen
from tests.live import Live

openai = foreign("openai")


def connect(live: Live, sent: list[Any] | None = None, key: str = "EMPTY", **fields: Any) -> Any:
    """A client that notes every request in `sent`."""
    hooks = {"request": [(sent if sent is not None else []).append]}
    http = openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False)
    return openai.OpenAI(base_url=live.v1, api_key=key, http_client=http, **fields)


def chat(client: Any, **fields: Any) -> Any:
    asked = {"model": "demo", "messages": said(GREETING), "temperature": 0} | fields
    return client.chat.completions.create(**asked)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 300}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"stop": [7]}, "stop"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(
    live: Live, fields: dict[str, Any], param: str
) -> None:
    sent: list[Any] = []
    with connect(live, sent) as client, pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert len(sent) == 1, "what is wrong stays wrong"
    assert caught.value.status_code == 400 and caught.value.type == "invalid_request_error"
    assert param in str(caught.value.param) and param in caught.value.message
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_a_bad_picture_is_a_bad_request(live: Live) -> None:
    with connect(live) as client, pytest.raises(openai.BadRequestError):
        chat(client, messages=seen("data:image/png;base64,AAAA"))


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found_where_names_are_strict(locked: Live, stream: bool) -> None:
    with connect(locked, key=KEY) as client, pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-4o", stream=stream)
    assert caught.value.code == "model_not_found"
    assert locked.engine.name in caught.value.message, "it says what there is"
    with connect(locked, key=KEY) as client:
        assert chat(client, model=locked.engine.name).choices[0].message.content == GREETED


@pytest.mark.parametrize("key", ["EMPTY", KEY[:-1], KEY + "0"])
def test_a_wrong_key_is_an_authentication_error(locked: Live, key: str) -> None:
    sent: list[Any] = []
    with connect(locked, sent, key=key) as client, pytest.raises(openai.AuthenticationError) as e:
        chat(client)
    assert len(sent) == 1 and e.value.status_code == 401 and key not in e.value.message
    with connect(locked, key=key) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_models_are_listed_and_described(live: Live) -> None:
    with connect(live) as client:
        (model,) = client.models.list().data
        assert model.id == live.engine.name and model.object == "model" and model.owned_by
        assert client.models.retrieve(model.id) == model
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-4o")
    assert live.engine.name in caught.value.message


def test_an_address_that_is_not_there_is_not_found(live: Live) -> None:
    with connect(live) as client, pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="demo", input="x")


def test_a_caller_that_has_no_patience_leaves_nothing_behind(live: Live) -> None:
    with connect(live, max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            chat(client, timeout=0.001)
        begin = time.monotonic()
        assert chat(client).choices[0].message.content == GREETED
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("header", "requests"), [("true", 3), ("false", 1)])
def test_the_sdk_asks_again_only_where_the_server_says_so(header: str, requests: int) -> None:
    """What our header means to the SDK; that we send it is a test of the full queue."""
    sent: list[httpx2.Request] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        error = {"message": "full", "type": "overloaded_error", "param": None, "code": None}
        headers = {"x-should-retry": header, "retry-after-ms": "1"}
        return httpx2.Response(429, json={"error": error}, headers=headers)

    http = httpx2.Client(transport=httpx2.MockTransport(refuse))
    with (
        openai.OpenAI(base_url="http://local/v1", api_key="x", http_client=http) as client,
        pytest.raises(openai.RateLimitError),
    ):
        chat(client)
    assert len(sent) == requests
