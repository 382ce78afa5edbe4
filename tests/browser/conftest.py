"""A browser on this machine, a server it talks to, and answers that a test writes itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Route,
    sync_playwright,
)

from server.settings import Settings
from tests.live import Live, serve

NAMES = ("chromium", "google-chrome", "chrome", "chromium-browser")
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE_MS = 20_000  # milliseconds; a browser on a busy machine
CHAT = "**/v1/chat/completions"

Answers = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="package")
def live() -> Iterator[Live]:
    """A server of the demo model."""
    with serve(Settings()) as server:
        yield server


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium; .ci/run installs one on Linux")
    # Root, as in containers, has no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1100, "height": 800})
    made.set_default_timeout(PATIENCE_MS)
    yield made
    made.close()


class Watched:
    """What went on in a page: requests, errors, and breaches of its policy."""

    def __init__(self, page: Page) -> None:
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._hear(message))
        page.on("dialog", lambda dialog: self._refuse(dialog))

    def _hear(self, message: ConsoleMessage) -> None:
        # Chromium itself reports answers of HTTP that are errors, which tests ask for.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _refuse(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def foreign(self, origin: str) -> list[str]:
        """Addresses asked for that are not this server's."""
        own = (origin, "data:", f"blob:{origin}")
        return [r.url for r in self.requests if not r.url.startswith(own)]


@pytest.fixture
def page(context: BrowserContext, live: Live) -> Iterator[Page]:
    """The page once its model is ready; at the end nothing must have gone wrong in it."""
    made = context.new_page()
    watched = Watched(made)
    made.goto(live.url)
    made.locator("#state.ready").wait_for()
    yield made
    assert watched.errors == [] and watched.dialogs == []
    assert watched.foreign(live.url) == []


@pytest.fixture
def answers(page: Page) -> Answers:
    """Has the next questions answered by texts, in pieces; gives what was asked."""

    def say(*texts: str, size: int = 7) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        left = list(texts)

        def fulfill(route: Route) -> None:
            asked.append(dict(route.request.post_data_json or {}))
            body = stream(left.pop(0), size)
            route.fulfill(status=200, content_type="text/event-stream", body=body)

        page.unroute(CHAT)
        page.route(CHAT, fulfill)
        return asked

    return say


def stream(text: str, size: int = 7) -> str:
    """A chat completion as server-sent events."""
    pieces: Sequence[str] = [text[i : i + size] for i in range(0, len(text), size)]
    deltas: list[dict[str, Any]] = [
        {"delta": {"content": piece}, "finish_reason": None} for piece in pieces
    ]
    deltas.append({"delta": {"content": ""}, "finish_reason": "stop"})
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": len(pieces),
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    chunks = [{"choices": [{"index": 0, **delta}]} for delta in deltas]
    lines = [*map(json.dumps, [*chunks, {"choices": [], "usage": usage}]), "[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines)


def ask(page: Page, text: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Question", exact=True).fill(text)
    page.keyboard.press("Enter")


def heard(page: Page, count: int = 1) -> str:
    """The text of the last answer, once there are as many as that."""
    page.locator(".message.assistant .figures:not(:empty)").nth(count - 1).wait_for()
    return page.locator(".message.assistant").nth(count - 1).locator(".body").inner_text()
