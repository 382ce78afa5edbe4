"""A server that is left running: full queues, models that come and go, crashes, and many askers."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.models.text import DecoderLayer
from server.preparing import PREPARING_THREADS
from server.settings import Settings
from tests.clients.asking import GREETED, GREETING, SHOWN, data_url, said, seen
from tests.live import Live, serve
from tests.server.cases import CHAT, ask

PATIENCE_S = 30.0  # seconds
ROUNDS = 60  # requests of the short soak; `benchmarks.server_load` sends a thousand
LONG = {"messages": said("What can you see?"), "temperature": 0, "max_tokens": 600, "stream": True}
LONG |= {"logit_bias": {"900": -100, "902": -100}}  # it does not end by itself


@contextmanager
def connected(live: Live) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live.url, timeout=60, trust_env=False) as client:
        yield client


def until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, f"{what} does not come"
        time.sleep(0.01)


def answer(client: httpx2.Client, messages: Any) -> str:
    response = client.post(CHAT, json={"messages": messages, "temperature": 0})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_full_queue_is_said_with_a_time_to_come_back() -> None:
    with serve(Settings(max_concurrency=1, max_queue=1)) as live, connected(live) as client:
        with client.stream("POST", CHAT, json=LONG), client.stream("POST", CHAT, json=LONG):
            until(lambda: live.engine.open_calls == 2, "the second call")
            refused = client.post(CHAT, json=ask())
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.headers["x-should-retry"] == "true"
        assert refused.json()["error"]["code"] == "overloaded"
        until(lambda: live.engine.open_calls == 0, "the end of those who left")
        assert answer(client, said(GREETING)) == GREETED


def test_requests_that_come_while_the_model_was_let_go_load_it_once() -> None:
    with serve(Settings(idle_unload_s=0.2)) as live, connected(live) as client:
        for _ in range(3):
            until(lambda: live.engine.state == "unloaded", "the unloading")
            assert client.get("/health").status_code == 200
            loads = live.engine.load_count
            with ThreadPoolExecutor(8) as pool:
                pictures = [seen(data_url(name)) for name in SHOWN] * 3
                told = list(pool.map(lambda messages: answer(client, messages), pictures))
            assert told == list(SHOWN.values()) * 3
            assert live.engine.load_count == loads + 1


def test_requests_that_come_while_the_model_goes_are_answered_all_the_same() -> None:
    with serve(Settings(idle_unload_s=0.05)) as live, connected(live) as client:
        for round_ in range(20):
            time.sleep(0.04 + 0.002 * round_)
            assert answer(client, said(GREETING)) == GREETED


def test_a_server_that_loads_says_so_and_answers_once_it_has() -> None:
    go_on = threading.Event()

    def slowly(*arguments: Any, **options: Any) -> QwenVL:
        assert go_on.wait(PATIENCE_S)
        return load(*arguments, **options)

    found: list[httpx2.Response] = []

    def look(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            found.append(client.get("/health"))
            found.append(client.post(CHAT, json=ask()))
        go_on.set()

    with serve(Settings(), load=slowly, started=look) as live, connected(live) as client:
        health, refused = found
        assert (health.status_code, refused.status_code) == (503, 503)
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        assert answer(client, said(GREETING)) == GREETED


def test_an_engine_that_breaks_is_seen_and_goes_on() -> None:
    with serve(Settings()) as live, connected(live) as client:
        with pytest.MonkeyPatch.context() as patch:

            def breaks(scheduler: Scheduler) -> Any:
                patch.undo()
                raise IndexError("a fault at 0x7f00deadbeef")

            patch.setattr(Scheduler, "step", breaks)
            broken = client.post(CHAT, json=ask())
        assert broken.status_code >= 500 and "0x" not in broken.text
        until(lambda: client.get("/health").status_code == 200, "the engine")
        assert client.get("/health").json()["crashes"] == 1
        assert answer(client, said(GREETING)) == GREETED


def test_a_step_that_hangs_is_seen_from_outside() -> None:
    """Work on the device cannot be broken off; whoever watches the server is told."""
    go_on = threading.Event()
    sound = DecoderLayer.__call__

    def hangs(layer: DecoderLayer, *arguments: Any, **named: Any) -> Any:
        assert go_on.wait(PATIENCE_S)
        return sound(layer, *arguments, **named)

    with (
        serve(Settings()) as live,
        connected(live) as client,
        ThreadPoolExecutor(1) as pool,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(DecoderLayer, "__call__", hangs)
        waiting = pool.submit(answer, client, said(GREETING))
        until(lambda: client.get("/health").json()["step_s"] > 0.2, "the step")
        assert client.get("/v1/models").status_code == 200
        go_on.set()
        assert waiting.result() == GREETED


def _held() -> tuple[int, int]:
    """Threads and open files of this process; those that prepare are made as they are needed."""
    gc.collect()
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("prepare") for name in names) <= PREPARING_THREADS
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")
    return sum(not name.startswith("prepare") for name in names), len(os.listdir(folder))


def test_many_requests_with_faults_and_leavers_leave_nothing_behind(tmp_path: Path) -> None:
    def one(number: int) -> str:
        kind = number % 5
        if kind == 0:
            return answer(client, said(GREETING))
        if kind == 1:
            return answer(client, seen(data_url("shapes.png")))
        if kind == 2:
            with client.stream("POST", CHAT, json=LONG) as stream:
                return next(stream.iter_lines())[:5]
        if kind == 3:
            bad = client.post(CHAT, json={"messages": seen("data:image/png;base64,AAAA")})
            return str(bad.status_code)
        return str(client.post(CHAT, json=ask(temperature=-1)).status_code)

    expected = [GREETED, SHOWN["shapes.png"], "data:", "400", "400"]
    with (
        pytest.MonkeyPatch.context() as patch,
        serve(Settings()) as live,
        connected(live) as client,
    ):
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(40))) == expected * 8  # threads are made once
            until(lambda: live.engine.open_calls == 0, "the end of those who left")
            before = _held()
            assert list(pool.map(one, range(ROUNDS))) == expected * (ROUNDS // 5)
            until(lambda: live.engine.open_calls == 0, "the end of those who left")
            after = _held()
        assert after[0] <= before[0] + 1
        assert after[1] <= before[1] + 8, "no more than the connections of eight askers"
        assert not list(tmp_path.iterdir())
