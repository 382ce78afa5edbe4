"""What breaks below a request: that request is told, and the next one and the others are answered.

The faults are put where MLX computes. What is raised is what MLX raises where memory is full.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import mlx.core as mx
import pytest

from mlx_qwenvl.models.text import DecoderLayer
from mlx_qwenvl.models.vision import VisionBlock
from server.settings import Settings
from tests.clients.asking import SHOWN, data_url, seen
from tests.live import Live, serve
from tests.server.cases import CHAT, ask
from tests.server.test_bad_inputs import INTERNALS, Listener

FULL = (
    "[metal::malloc] Attempting to allocate 137438953472 bytes which is greater than the maximum "
    "allowed buffer size of 77309411328 bytes."
)
PREFILL = 24  # rows of a step that no decoding has, speculation included
JUMP_S = 10.0**8  # of a clock, in seconds


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serve(Settings()) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live.url, timeout=60, trust_env=False) as connected:
        yield connected


class Once:
    """Makes one call fail, the first that it is asked about and that fits.

    Args:
        what: A class whose `__call__` computes.
        fits: Whether a call is the one, by its first argument.
        error: What it raises.
    """

    def __init__(self, what: Any, fits: Callable[[mx.array], bool], error: Exception) -> None:
        self.what, self.fits, self.error, self.raised = what, fits, error, 0

    def put(self, patch: pytest.MonkeyPatch) -> None:
        sound = self.what.__call__

        def call(module: Any, first: mx.array, *others: Any, **named: Any) -> Any:
            if not self.raised and self.fits(first):
                self.raised += 1
                raise self.error
            return sound(module, first, *others, **named)

        patch.setattr(self.what, "__call__", call)


def any_call(_: mx.array) -> bool:
    return True


def of_a_prompt(embeddings: mx.array) -> bool:
    return max(embeddings.shape[:-1]) >= PREFILL


def of_one_token(embeddings: mx.array) -> bool:
    return max(embeddings.shape[:-1]) < PREFILL


def _objects(told: httpx2.Response) -> list[str]:
    """The JSON of a body or of a stream."""
    lines = (line.removeprefix("data: ") for line in told.text.splitlines())
    return [line for line in lines if line.startswith("{")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [RuntimeError(FULL), MemoryError()], ids=["MLX", "Python"])
@pytest.mark.parametrize(
    ("what", "fits"),
    [(VisionBlock, any_call), (DecoderLayer, of_a_prompt)],
    ids=["the tower", "the prompt"],
)
def test_memory_that_runs_out_fails_its_request_and_no_other(
    client: httpx2.Client, what: Any, fits: Any, error: Exception, stream: bool
) -> None:
    fault = Once(what, fits, error)
    with Listener(client) as beside, pytest.MonkeyPatch.context() as patch:
        count = beside.start()
        fault.put(patch)
        # Asked with words of its own, so that nothing of it is in a store.
        picture = seen(data_url("three.png"), f"{time.monotonic_ns()} What can you see here?")
        body = {"messages": picture, "temperature": 0, "stream": stream, "cache": False}
        told = client.post(CHAT, json=body)
        assert fault.raised == 1, told.text
        assert set(beside.settle(count)) == {beside.expected}
    assert told.status_code == 400 or stream, told.text
    (error_,) = [json.loads(line)["error"] for line in _objects(told) if '"error"' in line]
    assert error_["code"] == "memory_exceeded" and "memory" in error_["message"]
    assert not INTERNALS.search(told.text)
    again = client.post(CHAT, json={"messages": seen(data_url("shapes.png")), "temperature": 0})
    assert again.json()["choices"][0]["message"]["content"] == SHOWN["shapes.png"]
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "error", [RuntimeError(FULL), MemoryError(), ValueError("a fault at 0x7f00deadbeef")]
)
def test_a_fault_while_decoding_ends_the_stream_in_an_error(
    client: httpx2.Client, error: Exception
) -> None:
    fault = Once(DecoderLayer, of_one_token, error)
    with pytest.MonkeyPatch.context() as patch:
        fault.put(patch)
        told = client.post(CHAT, json=ask(stream=True))
    assert fault.raised == 1
    errors = [json.loads(line)["error"] for line in _objects(told) if '"error"' in line]
    assert len(errors) == 1 and errors[0]["message"]
    assert not INTERNALS.search(json.dumps(errors))
    end = time.monotonic() + 30
    while client.get("/health").status_code != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert client.post(CHAT, json=ask()).status_code == 200, "the next one is answered"


def test_a_clock_that_jumps_disturbs_nobody(client: httpx2.Client) -> None:
    sound, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return sound() + (JUMP_S if calls % 2 else -JUMP_S)

    with Listener(client) as beside, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", jumping)
        count = beside.start()
        response = client.post(CHAT, json=ask())
        assert set(beside.settle(count)) == {beside.expected}
    assert response.status_code == 200 and calls > 0
