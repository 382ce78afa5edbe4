"""145 bad inputs by number: refused in words or harmless, in time, and nobody else notices."""

from __future__ import annotations

import ast
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.settings import Settings
from tests.live import Live, serve
from tests.server.bad_inputs import BAD_INPUTS, NUMBERS, TABLES
from tests.server.cases import CHAT, Case, Elsewhere, NotHere

ROOT = Path(__file__).parent.parent.parent
# A long answer that the embedded model is sure of, so that company changes no token of it.
LISTENER = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "temperature": 0,
    "stream": True,
}
STALL_S = 5.0  # longest silence that somebody else's request may cause, in seconds
INTERNALS = re.compile(r"0x[0-9a-f]{4,}|Traceback|site-packages|\.py\b|line \d+, in ")
FOLDERS = [str(ROOT), *(str(home) for home in [Path.home()] if len(home.parts) > 1)]

CASES = [
    pytest.param(case, id=f"{number}-{case.name}")
    for number, row in sorted(BAD_INPUTS.items())
    for case in row
    if isinstance(case, Case)
]
ELSEWHERE = [
    pytest.param(case.test, id=f"{number}-{case.test}")
    for number, row in sorted(BAD_INPUTS.items())
    for case in row
    if isinstance(case, Elsewhere)
]


class Listener:
    """Somebody who hears one answer after another, and each time the same."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._heard: list[str] = []
        self._thread = threading.Thread(target=self._listen)
        self.expected = self._hear()

    def _hear(self) -> str:
        text = ""
        last = time.monotonic()
        with self._client.stream("POST", CHAT, json=LISTENER) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                now = time.monotonic()
                assert now - last < STALL_S, f"nothing came for {now - last:.1f} s"
                last = now
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    for choice in event.get("choices", [{"delta": {"content": line}}]):
                        text += choice["delta"].get("content") or ""
        return text

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                text = self._hear()
            except Exception as error:
                text = repr(error)
            with self._changed:
                self._heard.append(text)
                self._changed.notify_all()

    def start(self) -> int:
        """Begin if nobody listens yet; give how many answers were heard so far."""
        if not self._thread.is_alive():
            self._thread.start()
        with self._changed:
            return len(self._heard)

    def settle(self, count: int) -> list[str]:
        """Answers that were running at or begun after `count`, once there is one."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._heard) > count, timeout=30)
            return self._heard[count:]

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(30)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serve(Settings(image_root=tmp_path_factory.mktemp("pictures"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live.url, timeout=60, trust_env=False) as connected:
        yield connected


@pytest.fixture(scope="module")
def listener(live: Live) -> Iterator[Listener]:
    with (
        httpx2.Client(base_url=live.url, timeout=60, trust_env=False) as connected,
        Listener(connected) as beside,
    ):
        yield beside


def test_every_number_has_its_row() -> None:
    assert sorted(BAD_INPUTS) == list(NUMBERS)
    assert sum(len(table) for table in TABLES) == len(NUMBERS), "a number stands in two tables"
    assert all(row for row in BAD_INPUTS.values())


def test_what_does_not_apply_has_a_reason() -> None:
    absent = [entry for row in BAD_INPUTS.values() for entry in row if isinstance(entry, NotHere)]
    assert all(len(entry.reason.split()) > 3 for entry in absent)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_test_that_stands_elsewhere_is_there(name: str) -> None:
    file, function = name.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert function in [node.name for node in tree.body if isinstance(node, functions)]


@pytest.mark.parametrize("case", CASES)
def test_it_is_answered_in_words_and_in_time_and_disturbs_nobody(
    case: Case, client: httpx2.Client, listener: Listener
) -> None:
    count = listener.start()
    begin = time.monotonic()
    response = case.send(client)
    took = time.monotonic() - begin
    assert response.status_code in case.status, response.text[:1000]
    assert took < case.deadline_s
    if response.status_code >= 400:
        message = _message(response)
        assert case.says in message
        assert not INTERNALS.search(response.text), response.text[:1000]
        assert not any(folder in response.text for folder in FOLDERS)
    assert set(listener.settle(count)) == {listener.expected}


def _message(response: httpx2.Response) -> str:
    """An error's text, in OpenAI's form or in Anthropic's."""
    if not response.headers["content-type"].startswith("application/json"):
        assert response.status_code in (400, 404, 405, 431), response.text[:1000]
        return response.text
    error: dict[str, Any] = response.json()["error"]
    message = error["message"]
    assert isinstance(message, str) and message and "\n" not in message and len(message) < 2000
    return message
