"""Errors: one table of status codes, one shape, nothing of the inside."""

from __future__ import annotations

import logging

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl.errors import (
    ContextError,
    FetchError,
    MediaError,
    MemoryExceeded,
    OptionError,
    PromptError,
    QwenVLError,
    RanksLost,
)
from server.errors import (
    RequestError,
    UnknownModel,
    fault_of,
    form_for,
)
from server.ticket import Overloaded, Unavailable
from tests.server.conftest import Script, body

CHAT = "/v1/chat/completions"

STATUS: list[tuple[QwenVLError, int, str | None]] = [
    (OptionError("x", "top_p"), 400, None),
    (PromptError("x"), 400, None),
    (MediaError("x"), 400, None),
    (FetchError("x"), 400, None),
    (RequestError("x"), 400, None),
    (ContextError("x"), 400, "context_length_exceeded"),
    (MemoryExceeded("x"), 400, "memory_exceeded"),
    (UnknownModel("x"), 404, "model_not_found"),
    (Overloaded("x"), 429, "overloaded"),
    (Unavailable("x"), 503, "unavailable"),
    (RanksLost("x"), 503, "unavailable"),
]


@pytest.mark.parametrize(
    ("error", "status", "code"), STATUS, ids=[type(e).__name__ for e, *_ in STATUS]
)
def test_an_error_has_its_status_in_every_form_of_answer(
    script: Script, error: QwenVLError, status: int, code: str | None
) -> None:
    client, engine = script()

    async def refuse(_: object) -> None:
        raise error

    engine.submit = refuse  # type: ignore[method-assign, assignment]
    for stream in (False, True):
        response = client.post(CHAT, json=body(stream=stream))
        assert response.status_code == status
        told = response.json()["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert (told["message"], told["code"], told["param"]) == ("x", code, error.param)
        if status in (429, 503):
            assert int(response.headers["retry-after"]) >= 1
            assert response.headers["x-should-retry"] == "true"
    assert form_for("/v1/messages", fault_of(error))["error"]["message"] == "x"


def test_memory_that_runs_out_while_pictures_are_opened_is_told_as_such(script: Script) -> None:
    client, engine = script()

    async def run_out(_: object) -> None:
        raise MemoryError

    engine.submit = run_out  # type: ignore[method-assign, assignment]
    response = client.post(CHAT, json=body())
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "memory_exceeded"


def test_what_can_never_fit_is_not_to_be_tried_again() -> None:
    assert fault_of(MemoryExceeded("x")).headers["x-should-retry"] == "false"


def test_what_nobody_foresaw_is_logged_once_and_not_told(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    client, engine = script()

    async def fail(_: object) -> None:
        raise RuntimeError("in /home/someone at 0x7f00")

    engine.submit = fail  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.ERROR):
        response = client.post(CHAT, json=body())
    assert response.status_code == 500
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["type"] == "server_error"
    assert "home" not in response.text and "0x" not in response.text
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/nowhere", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("BREW", CHAT, 405),
    ],
)
def test_an_address_that_is_not_there_is_told_in_the_same_shape(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_never_comes_back_in_an_error(client: TestClient) -> None:
    secret = "c2VjcmV0" * 100
    for fields in ({"temperature": secret}, {"stop": [1, secret]}, {"tools": secret}):
        response = client.post(CHAT, json=body(**fields))
        assert response.status_code == 400 and "c2VjcmV0" not in response.text
