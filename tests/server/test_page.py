"""`/` and `/health`: what they say, to people and to programs, and that they load nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL, __version__
from mlx_qwenvl.errors import QwenVLError
from server.app import create_app
from server.engine import Engine
from server.settings import Settings
from tests.server.conftest import HERE, body, connected_to

CHAT = "/v1/chat/completions"


class Page(HTMLParser):
    """What a page links to, has loaded and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.shown: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.loads += [value or "" for name, value in attrs if name in ("src", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def test_the_page_says_what_runs_here_and_its_links_answer(client: TestClient) -> None:
    response = client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    shown = "".join(page.shown)
    assert "tiny" in shown and __version__ in shown and f"{HERE}/v1" in shown
    assert page.links == ["/docs", "/health", "/metrics"]
    assert all(client.get(link).status_code == 200 for link in page.links)


def test_the_page_runs_no_script_and_loads_nothing(client: TestClient) -> None:
    response = client.get("/")
    page = Page(response.text)
    assert page.loads == [] and "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"url\(|@import|\son\w+=", response.text)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "script-src" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_models_name_is_text_on_the_page(served: QwenVL) -> None:
    name = '<script>alert(1)</script> & "$base" ${version}'
    with connected_to(Engine(lambda: served, Settings(), name)) as client:
        page = Page(client.get("/").text)
        assert "script" not in page.tags
        assert name in "".join(page.shown)


def test_programs_are_told_in_json(client: TestClient) -> None:
    told = client.get("/", headers={"accept": "application/json"})
    assert told.headers["content-type"].startswith("application/json")
    assert told.json() == {"model": "tiny", "version": __version__, "state": "ready"}


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health", "/metrics"])
def test_head_answers_as_get_without_the_content(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b"" != get.content
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.fixture
def loading(served: QwenVL) -> Iterator[tuple[TestClient, threading.Event]]:
    """A server whose model is loaded once the event is set."""
    event = threading.Event()

    def load() -> QwenVL:
        assert event.wait(30)
        return served

    engine = Engine(load, Settings(), "tiny")
    with TestClient(create_app(engine, engine.settings), HERE) as client:
        try:
            yield client, event
        finally:
            event.set()


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_says_to_come_again_until_the_model_is_loaded(
    loading: tuple[TestClient, threading.Event], path: str
) -> None:
    client, event = loading
    told = client.get(path)
    assert told.status_code == 503 and told.json()["status"] == "loading"
    assert told.headers["retry-after"] == "1"
    answer = client.post(CHAT, json=body())
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
    assert answer.headers["retry-after"] == "1" and answer.headers["x-should-retry"] == "true"
    assert client.get("/").status_code == client.get("/metrics").status_code == 200
    event.set()
    while (told := client.get(path)).status_code == 503:
        assert told.json()["status"] == "loading"
    assert told.status_code == 200 and told.json()["status"] == "ok"
    assert client.post(CHAT, json=body(max_tokens=1)).status_code == 200


def test_health_of_a_model_that_cannot_be_loaded_is_dead_and_names_no_place(
    served: QwenVL,
) -> None:
    def load() -> QwenVL:
        raise QwenVLError("/home/somebody/models/secret is no model")

    engine = Engine(load, Settings(), "/home/somebody/models/secret")
    with TestClient(create_app(engine, engine.settings), HERE) as client:
        while (told := client.get("/health")).json()["state"] == "loading":
            pass
        assert told.status_code == 503 and told.json()["state"] == "dead"
        answer = client.post(CHAT, json=body())
        assert answer.status_code == 503
        for response in (told, answer, client.get("/"), client.get("/metrics")):
            assert "somebody" not in response.text
