"""The engine around a scheduler that does what a test wants: queue, cancelling, crashes, ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import MemoryExceeded, QwenVL, QwenVLError, load
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.scheduler import Event, Failed, Job, Told
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import CheckpointError, ContextError, OptionError
from mlx_qwenvl.inputs.messages import Message, TextPart
from mlx_qwenvl.inputs.prompt import Prompt
from server import engine as engine_module
from server.call import Call
from server.engine import Engine
from server.settings import Settings
from server.ticket import EngineFailed, Heard, Overloaded, Ticket, Unavailable
from tests.server.conftest import TIMINGS

SOON_S = 10.0  # in which whatever a test waits for has happened on a busy machine, in seconds
PROMPT = Prompt(np.arange(5, dtype=np.int32), ())


class FakeScheduler:
    """Tells each answer so many pieces, one a step; notes what is done to it.

    Args:
        pieces: Of every answer.
    """

    def __init__(self, pieces: int = 3) -> None:
        self.pieces = pieces
        self.jobs: dict[Job, list[int]] = {}
        self.notes: list[str] = []
        self.may_step = threading.Semaphore(0)
        self.runs_freely = True
        self.is_stepping = threading.Event()
        self.fails: list[BaseException] = []
        self.refuses: Exception | None = None
        self.fails_job: dict[str, Exception] = {}
        self.before_add: Callable[[], None] = lambda: None

    @property
    def is_idle(self) -> bool:
        return not self.jobs

    @property
    def queued(self) -> int:
        return 0

    @property
    def prefilling(self) -> int:
        return 0

    @property
    def running(self) -> int:
        return len(self.jobs)

    def add(self, prompt: Prompt, options: Options, watch: Stopwatch, *, n: int = 1) -> Job:
        self.before_add()
        if self.refuses is not None:
            raise self.refuses
        job = Job(prompt, options, n, watch, None, (0, 5))  # type: ignore[arg-type]
        self.jobs[job] = [0] * n
        self.notes.append("add")
        return job

    def cancel(self, job: Job) -> None:
        assert job in self.jobs, "a job of another scheduler, or cancelled twice"
        del self.jobs[job]
        job.is_over = True
        self.notes.append("cancel")

    def step(self) -> list[Event]:
        self.is_stepping.set()
        if self.runs_freely:
            time.sleep(0.001)
        else:
            assert self.may_step.acquire(timeout=SOON_S)
        self.notes.append("step")
        if self.fails:
            raise self.fails.pop(0)
        events: list[Event] = []
        for job, told in list(self.jobs.items()):
            if (error := self.fails_job.get(job.options.stop[0])) is not None:
                events.append(Failed(job, error))
                told[:] = [self.pieces] * job.n
            for index in range(job.n):
                if told[index] < self.pieces:
                    told[index] += 1
                    is_last = told[index] == self.pieces
                    reason = "stop" if is_last else None
                    chunk = Chunk(
                        f"{index}.{told[index]} ",
                        (7,),
                        finish_reason=reason,  # type: ignore[arg-type]
                        timings=TIMINGS if is_last else None,
                    )
                    events.append(Told(job, index, chunk))
            if all(count == self.pieces for count in told):
                job.is_over = True
                del self.jobs[job]
        return events


class FakeVLM:
    """What the engine needs of a model; its prompts wait where a test says so."""

    def __init__(self, make: Callable[[], FakeScheduler]) -> None:
        self.make, self.made = make, list[FakeScheduler]()
        self.load_s, self.sampling, self.tokenizer, self.ranks = 0.0, None, object(), None
        text = SimpleNamespace(vocab_size=64, max_position_embeddings=128)
        self.config = SimpleNamespace(text=text)
        self.grammars = SimpleNamespace(close=lambda: None, compile=lambda grammar: None)
        self.stores = SimpleNamespace(
            make_room=lambda nbytes: 0,
            prefixes=SimpleNamespace(nbytes=0),
            features=SimpleNamespace(nbytes=0),
        )
        self.may_prepare = threading.Event()
        self.may_prepare.set()
        self.is_preparing = threading.Event()

    def scheduler(self, max_running: int) -> FakeScheduler:
        self.made.append(self.make())
        return self.made[-1]

    def prompt(self, messages: Any, options: Options, limits: Any) -> Prompt:
        self.is_preparing.set()
        assert self.may_prepare.wait(SOON_S)
        return PROMPT


class Fake:
    """An engine around fakes.

    Args:
        pieces: Of every answer.
        loads: What loading does each time; beyond its end it works.
        **settings: The operator's.
    """

    def __init__(
        self,
        pieces: int = 3,
        loads: Sequence[BaseException | Callable[[], None]] = (),
        **settings: Any,
    ) -> None:
        self.vlm = FakeVLM(lambda: FakeScheduler(pieces))
        self.loads, self.loaded = list(loads), 0
        self.failures = self.readies = 0
        self.engine = Engine(self._load, Settings(**settings), "x", self._failed, self._ready)

    def _load(self) -> QwenVL:
        self.loaded += 1
        if self.loads:
            first = self.loads.pop(0)
            if isinstance(first, BaseException):
                raise first
            first()
        return self.vlm  # type: ignore[return-value]

    def _failed(self) -> None:
        self.failures += 1

    def _ready(self) -> None:
        self.readies += 1

    @property
    def scheduler(self) -> FakeScheduler:
        return self.vlm.made[-1]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        async with self.engine.running():
            await self.engine.ready()
            try:
                yield self.engine
            finally:
                self.vlm.may_prepare.set()
                for scheduler in self.vlm.made:
                    scheduler.runs_freely = True
                    scheduler.may_step.release(1000)


def call(name: str = "a", n: int = 1) -> Call:
    return Call((Message("user", (TextPart("hello"),)),), options={"stop": [name]}, n=n)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 3 * SOON_S)

    asyncio.run(bounded())


async def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.002)


async def heard_of(ticket: Ticket) -> str:
    return "".join([heard.chunk.text async for heard in ticket])


def _wait(event: threading.Event) -> None:
    event.wait(SOON_S)


async def held(scheduler: FakeScheduler) -> None:
    """Hold a scheduler within a step."""
    scheduler.runs_freely = False
    await asyncio.sleep(0.01)
    scheduler.is_stepping.clear()
    scheduler.may_step.release()
    await until(scheduler.is_stepping.is_set)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + SOON_S
    while left := [t for t in threading.enumerate() if t not in before and not t.daemon]:
        assert time.monotonic() < end, left
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t not in before and t.name == "engine"]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LOOK_S", 0.01)


# Delivery


def test_pieces_come_in_order_and_each_call_hears_its_own() -> None:
    async def work() -> None:
        async with Fake().running() as engine:
            tickets = [await engine.submit(call(n=n)) for n in (1, 2, 1)]
            first, second, third = await asyncio.gather(*map(heard_of, tickets))
            assert first == third == "0.1 0.2 0.3 "
            assert second == "0.1 1.1 0.2 1.2 0.3 1.3 "
            assert engine.open_calls == 0

    run(work())


def test_a_slow_reader_holds_up_nobody() -> None:
    async def work() -> None:
        fake = Fake(pieces=200)
        async with fake.running() as engine:
            slow = await engine.submit(call())
            assert isinstance(await anext(aiter(slow)), Heard)
            assert (await heard_of(await engine.submit(call()))).count(" ") == 200
            await until(lambda: fake.scheduler.is_idle)  # also the slow one's work is done
            assert (await heard_of(slow)).count(" ") == 199

    run(work())


def test_a_failure_of_one_job_reaches_its_call_alone() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            fake.scheduler.fails_job["bad"] = OptionError("so it is")
            good, bad = await engine.submit(call()), await engine.submit(call("bad"))
            with pytest.raises(OptionError, match="so it is"):
                await heard_of(bad)
            assert await heard_of(good) == "0.1 0.2 0.3 "
            assert engine.open_calls == 0 and engine.crash_count == 0
            assert "cancel" not in fake.scheduler.notes or fake.scheduler.is_idle

    run(work())


@pytest.mark.parametrize("error", [MemoryExceeded("too much"), ContextError("too long")])
def test_what_the_scheduler_refuses_is_raised_by_submit(error: QwenVLError) -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            fake.scheduler.refuses = error
            with pytest.raises(type(error), match="too"):
                await engine.submit(call())
            assert engine.open_calls == 0 and engine.state == "ready"
            fake.scheduler.refuses = None
            await heard_of(await engine.submit(call()))

    run(work())


# The queue


def test_more_calls_than_may_wait_are_refused_until_one_is_over() -> None:
    async def work() -> None:
        fake = Fake(max_concurrency=1, max_queue=2)
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            first = await engine.submit(call())
            await until(fake.scheduler.is_stepping.is_set)
            submitting = [asyncio.ensure_future(engine.submit(call())) for _ in range(2)]
            await until(lambda: engine.open_calls == 3)
            with pytest.raises(Overloaded, match="3 requests are open, at most 3 pass"):
                await engine.submit(call())
            with pytest.raises(Overloaded):
                await engine.count(call())
            submitting[1].cancel()
            await asyncio.wait({submitting[1]})
            submitting[1] = asyncio.ensure_future(engine.submit(call()))
            await until(lambda: engine.open_calls == 3)
            with pytest.raises(Overloaded):
                await engine.submit(call())
            fake.scheduler.runs_freely = True
            fake.scheduler.may_step.release(100)
            for ticket in [first, *await asyncio.gather(*submitting)]:
                assert await heard_of(ticket) == "0.1 0.2 0.3 "
            assert engine.open_calls == 0

    run(work())


# Withdrawing


def test_a_withdrawn_call_is_out_of_the_scheduler_before_the_step_after_next() -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            scheduler = fake.scheduler
            kept, gone = await engine.submit(call()), await engine.submit(call())
            await anext(aiter(gone))
            await held(scheduler)
            before = len(scheduler.notes)
            gone.cancel()
            gone.cancel()
            assert engine.open_calls == 1
            scheduler.may_step.release(2)
            await until(lambda: scheduler.notes[before:].count("step") == 2)
            assert scheduler.notes[before:] == ["step", "cancel", "step"]
            with pytest.raises(Unavailable, match="withdrawn"):
                await heard_of(gone)
            kept.cancel()
            scheduler.may_step.release(5)
            await until(lambda: scheduler.is_idle)

    run(work())


def test_a_listener_that_stops_iterating_withdraws_the_call() -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            ticket = await engine.submit(call())
            chunks: Any = aiter(ticket)
            await anext(chunks)
            await chunks.aclose()
            await until(lambda: fake.scheduler.is_idle)
            assert engine.open_calls == 0 and fake.scheduler.notes.count("cancel") == 1

    run(work())


def test_a_finished_call_is_not_withdrawn_again() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            ticket = await engine.submit(call())
            await heard_of(ticket)
            ticket.cancel()
            await heard_of(await engine.submit(call()))
            assert "cancel" not in fake.scheduler.notes

    run(work())


def test_a_submission_that_is_cancelled_while_it_is_prepared_leaves_nothing() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            fake.vlm.may_prepare.clear()
            fake.vlm.is_preparing.clear()
            task = asyncio.ensure_future(engine.submit(call()))
            await until(fake.vlm.is_preparing.is_set)
            assert engine.open_calls == 1
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() and engine.open_calls == 0
            fake.vlm.may_prepare.set()
            await heard_of(await engine.submit(call()))
            assert fake.scheduler.notes.count("add") == 1

    run(work())


def test_a_submission_that_is_cancelled_in_the_inbox_is_never_added() -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            first = await engine.submit(call())
            await until(fake.scheduler.is_stepping.is_set)
            task = asyncio.ensure_future(engine.submit(call()))
            await until(lambda: engine.worker._inbox.qsize())
            task.cancel()
            await asyncio.wait({task})
            assert engine.open_calls == 1
            first.cancel()
            fake.scheduler.may_step.release(5)
            await until(lambda: fake.scheduler.is_idle)
            assert fake.scheduler.notes.count("add") == 1

    run(work())


def test_a_submission_that_is_cancelled_while_it_is_added_is_cancelled_there_too() -> None:
    async def work() -> None:
        fake = Fake(pieces=10**9)
        async with fake.running() as engine:
            is_adding, may_add = threading.Event(), threading.Event()

            def wait() -> None:
                is_adding.set()
                assert may_add.wait(SOON_S)

            fake.scheduler.before_add = wait
            task = asyncio.ensure_future(engine.submit(call()))
            await until(is_adding.is_set)
            task.cancel()
            await asyncio.wait({task})
            assert engine.open_calls == 0
            may_add.set()
            await until(lambda: "cancel" in fake.scheduler.notes)
            assert fake.scheduler.is_idle and not engine._of

    run(work())


def test_a_submission_that_is_cancelled_while_the_model_is_loaded_leaves_the_load_to_others() -> (
    None
):
    async def work() -> None:
        fake = Fake(idle_unload_s=0.0)
        may_load = threading.Event()
        async with fake.running() as engine:
            await until(lambda: engine.state == "unloaded")
            fake.loads.append(lambda: _wait(may_load))
            first = asyncio.ensure_future(engine.submit(call()))
            second = asyncio.ensure_future(engine.submit(call()))
            await until(lambda: fake.loaded == 2)
            first.cancel()
            await asyncio.wait({first})
            assert engine.open_calls == 1
            may_load.set()
            assert await heard_of(await second) == "0.1 0.2 0.3 "
            assert fake.loaded == 2

    run(work())


# Crashes


def test_a_crash_ends_all_calls_and_a_new_scheduler_answers_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            broken = fake.scheduler
            tickets = [await engine.submit(call()) for _ in range(3)]
            await held(broken)
            fake.vlm.may_prepare.clear()
            fake.vlm.is_preparing.clear()
            later = asyncio.ensure_future(engine.submit(call()))  # not in the scheduler yet
            await until(fake.vlm.is_preparing.is_set)
            tickets[2].cancel()  # on its way to the scheduler that is about to fail
            broken.fails.append(RuntimeError("kernel panic"))
            fake.vlm.make = lambda: FakeScheduler(2)
            broken.may_step.release()
            for ticket in tickets[:2]:
                with pytest.raises(EngineFailed, match="try again"):
                    await heard_of(ticket)
            assert fake.scheduler is not broken
            fake.vlm.may_prepare.set()
            assert await heard_of(await later) == "0.1 0.2 "
            assert engine.state == "ready" and engine.crash_count == 1 and engine.open_calls == 0
            assert fake.loaded == 1 and fake.failures == 0

    with caplog.at_level(logging.WARNING):
        run(work())
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None and "kernel panic" in caplog.text


def test_withdrawing_a_call_of_a_real_scheduler_that_crashed_harms_nobody(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A decode step that fails leaves members in the old scheduler that the new one never had.
    async def work() -> None:
        engine = Engine(lambda: load(tiny_folder, dtype="float32"), Settings(), "tiny")
        async with engine.running():
            await engine.ready()
            scheduler = engine.worker.scheduler
            assert scheduler is not None
            step = scheduler.step

            def failing() -> list[Event]:
                if scheduler.running == 2:
                    raise RuntimeError("kernel panic")
                return step()

            monkeypatch.setattr(scheduler, "step", failing)
            asked = Call(call().messages, options={"max_tokens": 40, "temperature": 0.0}, n=2)
            with pytest.raises(EngineFailed):
                await heard_of(await engine.submit(asked))
            assert await heard_of(await engine.submit(asked)) and engine.state == "ready"

    run(work())


def test_a_failure_between_steps_counts_as_a_crash() -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            first, second = await engine.submit(call()), await engine.submit(call())
            fake.scheduler.cancel = lambda job: 1 / 0  # type: ignore[assignment]
            first.cancel()
            with pytest.raises(EngineFailed):
                await heard_of(second)
            fake.vlm.make = FakeScheduler
            await heard_of(await engine.submit(call()))
            assert engine.crash_count == 1

    run(work())


def crash(fake: Fake, error: BaseException) -> None:
    fake.vlm.made[-1].fails.append(error)


def test_too_many_crashes_end_the_engine() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            for number in range(engine_module.MAX_CRASHES):
                assert engine.state == "ready" and fake.failures == 0, number
                crash(fake, RuntimeError(f"number {number}"))
                with pytest.raises(EngineFailed):
                    await heard_of(await engine.submit(call()))
            assert engine.state == "dead" and fake.failures == 1
            assert str(engine.failure) == "number 4"
            with pytest.raises(Unavailable, match="failed"):
                await engine.submit(call())

    run(work())


def test_crashes_that_are_rare_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CRASHES_S", 0.0)

    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            for _ in range(engine_module.MAX_CRASHES + 2):
                crash(fake, RuntimeError("once more"))
                with pytest.raises(EngineFailed):
                    await heard_of(await engine.submit(call()))
            assert engine.state == "ready" and fake.failures == 0

    run(work())


def test_the_first_crash_ends_the_engine_where_the_operator_says_so() -> None:
    async def work() -> None:
        fake = Fake(on_crash="exit")
        async with fake.running() as engine:
            crash(fake, RuntimeError("kernel panic"))
            with pytest.raises(EngineFailed):
                await heard_of(await engine.submit(call()))
            assert engine.state == "dead" and fake.failures == 1

    run(work())


def test_the_end_of_the_thread_ends_the_engine() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            crash(fake, SystemExit(3))
            with pytest.raises(EngineFailed):
                await heard_of(await engine.submit(call()))
            assert engine.state == "dead" and fake.failures == 1
            await until(lambda: engine.has_ended)

    run(work())


def test_a_step_that_hangs_ends_the_engine() -> None:
    async def work() -> None:
        fake = Fake(hang_s=0.05)
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            ticket = await engine.submit(call())
            with pytest.raises(Unavailable, match="failed"):
                await heard_of(ticket)
            assert engine.state == "dead" and fake.failures == 1
            assert "hangs" in str(engine.failure)
            assert not engine.has_ended

    run(work())


def test_a_long_load_is_no_hang() -> None:
    async def work() -> None:
        fake = Fake(hang_s=0.02, loads=[lambda: time.sleep(0.2)])
        async with fake.running() as engine:
            assert engine.state == "ready" and fake.failures == 0

    run(work())


# Loading and letting go


def test_calls_are_refused_while_the_model_is_loaded() -> None:
    async def work() -> None:
        may_load = threading.Event()
        fake = Fake(loads=[lambda: _wait(may_load)])
        async with fake.engine.running():
            await until(lambda: fake.loaded)
            with pytest.raises(Unavailable, match="being loaded"):
                await fake.engine.submit(call())
            with pytest.raises(Unavailable, match="being loaded"):
                _ = fake.engine.tokenizer
            assert fake.readies == 0 and fake.engine.context == 0
            may_load.set()
            await fake.engine.ready()
            assert fake.readies == 1 and fake.engine.context == 128
            await heard_of(await fake.engine.submit(call()))

    run(work())


@pytest.mark.parametrize("error", [CheckpointError("damaged"), ValueError("odd"), SystemExit(1)])
def test_a_first_load_that_fails_ends_the_engine(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        fake = Fake(loads=[error])
        async with fake.engine.running():
            with pytest.raises(Unavailable):
                await fake.engine.ready()
            assert fake.engine.state == "dead" and fake.engine.failure is error
            assert fake.failures == 1 and fake.readies == 0

    with caplog.at_level(logging.ERROR):
        run(work())
    # An error of ours is said in one line when the process ends; of others the trace is needed.
    assert len(caplog.records) == (not isinstance(error, QwenVLError))


def test_a_load_that_fails_later_is_tried_again_by_the_next_call() -> None:
    async def work() -> None:
        fake = Fake(idle_unload_s=0.0)
        async with fake.running() as engine:
            await until(lambda: engine.state == "unloaded")
            fake.loads += [MemoryExceeded("no room now"), ValueError("odd")]
            for _ in range(2):
                with pytest.raises(Unavailable, match="cannot be loaded"):
                    await engine.submit(call())
                assert engine.state == "unloaded" and engine.open_calls == 0
            assert await heard_of(await engine.submit(call())) == "0.1 0.2 0.3 "
            assert fake.loaded == 4 and engine.load_count == 2 and fake.failures == 0
            assert fake.readies == 1

    run(work())


def test_many_calls_after_an_unload_cause_one_load() -> None:
    async def work() -> None:
        fake = Fake(idle_unload_s=0.05)
        async with fake.running() as engine:
            await until(lambda: engine.state == "unloaded")
            tickets = await asyncio.gather(*(engine.submit(call()) for _ in range(20)))
            said = await asyncio.gather(*map(heard_of, tickets))
            assert said == ["0.1 0.2 0.3 "] * 20 and fake.loaded == 2

    run(work())


def test_calls_that_race_with_the_unload_timer_are_all_answered() -> None:
    async def work() -> None:
        fake = Fake(idle_unload_s=0.0)
        async with fake.running() as engine:
            for number in range(20):
                await asyncio.sleep(0.001 * (number % 17))
                assert await heard_of(await engine.submit(call())) == "0.1 0.2 0.3 "
            assert 1 < fake.loaded <= 21 and engine.open_calls == 0

    run(work())


def test_a_busy_model_is_not_let_go() -> None:
    async def work() -> None:
        fake = Fake(idle_unload_s=0.02)
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            ticket = await engine.submit(call())
            await asyncio.sleep(0.2)
            assert engine.state == "ready"
            fake.scheduler.may_step.release(100)
            await heard_of(ticket)
            await until(lambda: engine.state == "unloaded")

    run(work())


def test_memory_falls_when_an_idle_model_is_let_go(tiny_folder: Path) -> None:
    references: list[weakref.ref[Any]] = []

    def loading() -> QwenVL:
        vlm = load(tiny_folder, dtype="float32")
        references.append(weakref.ref(vlm))
        references.append(weakref.ref(vlm.model))
        return vlm

    async def work() -> None:
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        engine = Engine(loading, Settings(idle_unload_s=0.3), "tiny")
        async with engine.running():
            await engine.ready()
            asked = Call(call().messages, options={"max_tokens": 4})
            ticket = await engine.submit(asked)
            await heard_of(ticket)
            assert engine.metrics.text()
            held = engine.worker.active_bytes - before
            await until(lambda: engine.state == "unloaded")
            await until(lambda: engine.worker.scheduler is None and not engine.step_s)
            await until(lambda: mx.get_active_memory() - before < held / 20)
            assert all(reference() is None for reference in references)
            await heard_of(await engine.submit(asked))
            assert engine.load_count == 2 and mx.get_active_memory() - before > held / 2

    run(work())


# The end


def test_a_draining_engine_finishes_what_it_accepted_and_takes_nothing_more() -> None:
    async def work() -> None:
        fake = Fake()
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            ticket = await engine.submit(call())
            fake.vlm.may_prepare.clear()
            fake.vlm.is_preparing.clear()
            preparing = asyncio.ensure_future(engine.submit(call()))
            await until(fake.vlm.is_preparing.is_set)
            engine.drain()
            with pytest.raises(Unavailable, match="ending"):
                await engine.submit(call())
            fake.vlm.may_prepare.set()
            fake.scheduler.runs_freely = True
            fake.scheduler.may_step.release(100)
            assert await heard_of(ticket) == await heard_of(await preparing) == "0.1 0.2 0.3 "

    run(work())


def test_the_end_tells_whoever_still_waits() -> None:
    async def work() -> None:
        fake = Fake(pieces=1000)
        async with fake.running() as engine:
            fake.scheduler.runs_freely = False
            ticket = await engine.submit(call())
        with pytest.raises(Unavailable, match="ending"):
            await heard_of(ticket)
        assert engine.has_ended and engine.open_calls == 0

    run(work())


def test_an_engine_that_ends_while_it_loads_does_not_wait_for_long() -> None:
    may_load = threading.Event()

    async def work() -> None:
        fake = Fake(loads=[lambda: _wait(may_load)])
        begin = time.monotonic()
        async with fake.engine.running():
            await until(lambda: fake.loaded)
        assert time.monotonic() - begin < 3 and not fake.engine.has_ended
        may_load.set()
        await until(lambda: fake.engine.has_ended)

    run(work())


def test_an_engine_that_never_ran_has_ended() -> None:
    engine = Fake().engine
    assert engine.has_ended and engine.worker.stop(0)
    assert b"mlx_qwenvl_open_calls 0.0" in engine.metrics.text()
