"""`/` and `/health`: what they say, to people and to programs, and that they load nothing."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL, __version__
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.inputs.pyav import MISSING, find_pyav
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


def test_all_that_the_page_loads_and_links_to_is_here(client: TestClient) -> None:
    response = client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    # Written out, so that nothing more is let in without a change here.
    assert response.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    page = Page(response.text)
    assert "page/main.js" in page.loads and "page/style.css" in page.links
    for name in [*page.loads, *page.links]:
        if not name.startswith("#"):
            assert client.get(f"/{name}").status_code == 200, name


def test_every_module_that_a_script_imports_is_served(client: TestClient) -> None:
    waiting, seen = ["main.js"], set[str]()
    while waiting:
        name = waiting.pop()
        answer = client.get(f"/page/{name}")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        seen.add(name)
        imported = re.findall(r'from "\./([\w.]+)"', answer.text)
        waiting += [other for other in imported if other not in seen]
    assert {"api.js", "boxes.js", "markdown.js"} <= seen


def test_the_page_needs_no_key_and_tells_nothing_without_one(served: QwenVL) -> None:
    settings = Settings(api_keys=frozenset({"sesame"}))
    with connected_to(Engine(lambda: served, settings, "secret name")) as client:
        page = client.get("/")
        assert page.status_code == 200 and "secret name" not in page.text
        assert client.get("/page/main.js").status_code == 200
        for path in ("/page/other.js", "/page/../settings.py", "/docs", "/v1/models"):
            assert client.get(path).status_code in (401, 404), path
        asked = {"accept": "application/json"}
        assert client.get("/", headers=asked).status_code == 401
        asked["authorization"] = "Bearer sesame"
        assert client.get("/", headers=asked).json()["model"] == "secret name"
        assert client.post("/", json={}).status_code in (401, 405)


def test_programs_are_told_in_json(client: TestClient) -> None:
    told = client.get("/", headers={"accept": "application/json"})
    assert told.headers["content-type"].startswith("application/json")
    facts = told.json()
    limits = facts.pop("limits")
    assert facts == {"model": "tiny", "version": __version__, "state": "ready"}
    settings = Settings()
    assert limits == {
        "max_body_bytes": settings.max_body_bytes,
        "max_videos": settings.max_videos,
        "max_video_bytes": settings.max_video_bytes,
        "video_fault": find_pyav().fault or None,
    }


def test_the_page_is_told_what_the_operator_allows_and_that_pyav_is_lacking(
    served: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(max_videos=0, max_video_bytes=5, max_body_bytes=7)
    monkeypatch.setitem(sys.modules, "av", None)
    with connected_to(Engine(lambda: served, settings, "tiny")) as client:
        limits = client.get("/", headers={"accept": "application/json"}).json()["limits"]
    assert [limits[f"max_{name}"] for name in ("videos", "video_bytes", "body_bytes")] == [0, 5, 7]
    assert limits["video_fault"] == MISSING


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
