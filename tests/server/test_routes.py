"""Every route that the application has is behind the door."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL
from server.engine import Engine
from server.routes.page import read_assets
from server.settings import Settings
from tests.server.conftest import connected_to

KEY = "a-key-of-the-operator"


@pytest.fixture(scope="module")
def client(tiny: QwenVL) -> Iterator[TestClient]:
    settings = Settings(api_keys=frozenset({KEY}))
    with connected_to(Engine(lambda: tiny, settings, "tiny")) as connected:
        yield connected


def paths(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included and mounted routers too."""
    for route in routes:
        included = getattr(route, "original_router", route)  # FastAPI 0.16x includes by reference
        for method, below in paths(getattr(included, "routes", None) or ()):
            yield method, below
            yield method, f"/v1{below}"
        if (path := getattr(route, "path", None)) is not None:
            for method in getattr(route, "methods", None) or {"GET"}:
                yield method, re.sub(r"\{[^}]*\}", "x", path)


# The chat page asks for the key itself, and shows nothing before.
IS_OPEN = {(method, path) for method in ("GET", "HEAD") for path in read_assets()}


def table(client: TestClient) -> set[tuple[str, str]]:
    app = client.app
    assert isinstance(app, FastAPI)
    listed = set(paths(app.routes))
    for path, methods in app.openapi()["paths"].items():
        listed |= {(method.upper(), re.sub(r"\{[^}]*\}", "x", path)) for method in methods}
    return listed


def test_no_route_answers_without_a_key_or_with_a_wrong_one(client: TestClient) -> None:
    listed = table(client)
    assert {("POST", "/v1/chat/completions"), ("POST", "/chat/completions")} <= listed
    assert {("GET", "/v1/models"), ("GET", "/health"), ("GET", "/openapi.json")} <= listed
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": "wrong"},
    ]
    for method, path in sorted(listed | {("GET", "/nothing"), ("GET", "/docs")}):
        for headers in wrong:
            response: httpx2.Response = client.request(method, path, headers=headers)
            expected = 200 if (method, path) in IS_OPEN else 401
            assert response.status_code == expected, (method, path, headers)
        for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            response = client.request(method, path, headers=headers)
            assert response.status_code != 401, (method, path)


def test_no_route_answers_to_another_host_or_origin(client: TestClient) -> None:
    key = {"authorization": f"Bearer {KEY}"}
    for method, path in table(client):
        response = client.request(method, path, headers=key | {"host": "evil.example"})
        assert response.status_code == 421, (method, path)
        for origin in ("https://evil.example", "null"):
            response = client.request(method, path, headers=key | {"origin": origin})
            assert response.status_code == 403, (method, path)


def test_a_health_page_of_an_app_is_read_with_the_key_alone(client: TestClient) -> None:
    headers = {"origin": "app://obsidian.md", "access-control-request-method": "GET"}
    assert client.options("/health", headers=headers).status_code == 200
    assert client.get("/health", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "https://hub.example/owner/model", "owner/other-model",
     "file:///etc/passwd", "demo\0", "a" * 100_000, "{{ 7 * 7 }}", "..%2f..%2fetc%2fpasswd"],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_no_model_name_leads_to_a_file_or_a_download(
    client: TestClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    headers = {"authorization": f"Bearer {KEY}"}
    monkeypatch.setattr("mlx_qwenvl.weights.resolve.resolve_model", never)
    monkeypatch.setattr("socket.getaddrinfo", never)
    monkeypatch.setattr("builtins.open", never)
    ask = {"model": name, "messages": "Hello", "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=ask, headers=headers)
    assert answer.status_code in (200, 404)
    if name.isprintable() and len(name) < 1000:
        path = "/v1/models/" + urllib.parse.quote(name, safe="")
        response = client.get(path, headers=headers)
        assert response.status_code == 404
        assert "root:" not in response.text
