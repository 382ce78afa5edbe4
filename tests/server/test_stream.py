"""Streams: signs of life, errors on the way, listeners that leave or stop reading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from mlx_qwenvl.errors import MemoryExceeded
from server.errors import ClientGone
from server.settings import Settings
from server.stream import EventStream, heard, unless_gone
from server.ticket import Heard, Ticket
from server.wire import dumps, frame
from tests.server.conftest import Script, body, ends, events, says

CHAT = "/v1/chat/completions"
SCOPE = {"type": "http", "path": CHAT, "method": "POST", "headers": []}


async def nothing() -> AsyncIterator[Heard]:
    silent: tuple[Heard, ...] = ()
    for piece in silent:
        yield piece


class Wire:
    """The two ends of an ASGI connection."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to that")


def stream(
    frames: AsyncGenerator[str, None], **settings: Any
) -> tuple[EventStream, Ticket, list[str]]:
    """A stream of frames, its ticket, and what is noted when the frames are closed."""
    closed: list[str] = []

    async def watched() -> AsyncGenerator[str, None]:
        try:
            async for text in frames:
                yield text
        finally:
            closed.append("closed")

    ticket = Ticket(nothing())
    return EventStream(watched(), ticket, Settings(**settings)), ticket, closed


async def some(*texts: str) -> AsyncGenerator[str, None]:
    for text in texts:
        yield frame(text)


async def endless() -> AsyncGenerator[str, None]:
    while True:
        yield frame("more")
        await asyncio.sleep(0.001)


async def silence() -> AsyncGenerator[str, None]:
    await asyncio.sleep(60)
    yield frame("late")


def test_headers_go_out_before_the_first_piece_is_there() -> None:
    async def run() -> None:
        wire = Wire()
        answer, ticket, closed = stream(silence())
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: bool(wire.sent))
        headers = dict(wire.sent[0]["headers"])
        assert wire.sent[0]["status"] == 200 and b"content-length" not in headers
        wire.gone.set()
        await task
        assert ticket.cancelled and closed == ["closed"]

    asyncio.run(run())


def test_a_finished_stream_ends_the_response() -> None:
    async def run() -> None:
        wire = Wire()
        answer, _, closed = stream(some("a", "b"))
        await answer(SCOPE, wire.receive, wire.send)
        assert wire.text == "data: a\n\ndata: b\n\n"
        assert wire.sent[-1]["more_body"] is False and closed == ["closed"]

    asyncio.run(run())


def test_signs_of_life_tell_how_far_the_prompt_is() -> None:
    async def run() -> None:
        wire = Wire()
        answer, ticket, _ = stream(silence(), keepalive_s=0.01)
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: ": waiting\n\n" in wire.text)
        ticket._progress = lambda: (512, 1230)
        await until(lambda: ": prefill 512/1230\n\n" in wire.text)
        wire.gone.set()
        await task

    asyncio.run(run())


def test_no_sign_of_life_comes_while_pieces_do() -> None:
    async def run() -> None:
        wire = Wire()
        answer, _, _ = stream(endless(), keepalive_s=1.0)
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: len(wire.sent) > 20)
        wire.gone.set()
        await task
        assert ":" not in wire.text.replace("data: ", "")

    asyncio.run(run())


@pytest.mark.parametrize("frames", [endless, silence], ids=["talking", "silent"])
def test_a_listener_that_leaves_withdraws_the_call(
    frames: Callable[[], AsyncGenerator[str, None]],
) -> None:
    async def run() -> None:
        wire = Wire()
        answer, ticket, closed = stream(frames())
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: bool(wire.sent))
        assert not ticket.cancelled
        wire.gone.set()
        await asyncio.wait_for(task, 1)
        assert ticket.cancelled and closed == ["closed"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_a_listener_that_stops_reading_is_dropped() -> None:
    async def run() -> None:
        wire = Wire()
        answer, ticket, closed = stream(endless(), write_timeout_s=0.05)
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: len(wire.sent) > 2)
        wire.reads.clear()
        await asyncio.wait_for(task, 1)
        assert ticket.cancelled and closed == ["closed"]
        assert wire.sent[-1]["more_body"]  # the response is not said to be whole

    asyncio.run(run())


def test_a_task_that_is_cancelled_withdraws_the_call() -> None:
    async def run() -> None:
        wire = Wire()
        answer, ticket, closed = stream(silence())
        task = asyncio.ensure_future(answer(SCOPE, wire.receive, wire.send))
        await until(lambda: bool(wire.sent))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ticket.cancelled and closed == ["closed"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def request(wire: Wire) -> Request:
    return Request(SCOPE, wire.receive, wire.send)


def test_who_leaves_before_a_whole_answer_withdraws_the_call() -> None:
    async def run() -> None:
        wire, ticket = Wire(), Ticket(nothing())
        cancelled: list[str] = []

        async def hear(_: Ticket) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append("cancelled")
                raise

        task = asyncio.ensure_future(heard(request(wire), ticket, hear))
        await asyncio.sleep(0.01)
        wire.gone.set()
        with pytest.raises(ClientGone):
            await asyncio.wait_for(task, 1)
        assert ticket.cancelled and cancelled == ["cancelled"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_work_for_someone_who_stays_gives_its_result_or_its_error() -> None:
    async def run() -> None:
        wire = Wire()

        async def work(value: int) -> int:
            return 1 // value

        assert await unless_gone(request(wire), work(1)) == 1
        with pytest.raises(ZeroDivisionError):
            await unless_gone(request(wire), work(0))
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_an_error_on_the_way_is_the_last_thing_in_a_stream(script: Script) -> None:
    client, engine = script(says("Hel"), MemoryExceeded("too much"))
    *chunks, last = events(client.post(CHAT, json=body(stream=True)).text)
    assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["", "Hel"]
    assert last == {
        "error": {
            "message": "too much",
            "type": "invalid_request_error",
            "param": None,
            "code": "memory_exceeded",
        }
    }
    assert engine.tickets[0].cancelled


def test_an_unforeseen_error_on_the_way_tells_nothing_of_the_inside(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = script(says("Hel"), RuntimeError("at 0x7f12 in /home/someone"), ends())
    text = client.post(CHAT, json=body(stream=True)).text
    last = events(text)[-1]
    assert last["error"]["type"] == "server_error" and set(last["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
    assert "0x7f12" not in text and "home" not in text
    assert len([r for r in caplog.records if r.exc_info]) == 1


def test_a_silent_engine_is_heard_as_comments_that_clients_skip(script: Script) -> None:
    client, _ = script(0.05, says("Hello"), ends(), settings=Settings(keepalive_s=0.01))
    text = client.post(CHAT, json=body(stream=True)).text
    assert ": waiting\n\n" in text and events(text)[-1] == "[DONE]"


def test_frames_are_one_line_of_utf_8() -> None:
    text = frame({"a": "line\nbreak \u2028 é \U0001f600"}, event="x")
    assert text.startswith("event: x\ndata: ") and text.endswith("\n\n")
    assert text.count("\n") == 3
    assert json.loads(text.split("data: ")[1])["a"] == "line\nbreak \u2028 é \U0001f600"
    assert dumps({"a": "\ud800"}).encode() == b'{"a":"\\ud800"}'
