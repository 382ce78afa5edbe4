"""What the routes know of the engine: calls go in, and what is heard comes out.

All of this runs in the event loop. Pictures are opened and prompts made in a few threads beside
it, and everything that is computed is computed in the engine's own (`worker.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from mlx_qwenvl.engine.job import Event, Job, Told
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import QwenVLError, RanksLost
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.vlm import QwenVL

from .call import Call
from .metrics import Metrics
from .preparing import Preparing
from .settings import Settings
from .ticket import (
    EngineFailed,
    Heard,
    OpenCall,
    Overloaded,
    Ticket,
    Unavailable,
    seen,
    unless_over,
)
from .worker import Worker

State = Literal["loading", "ready", "unloaded", "draining", "dead"]

MAX_CRASHES = 5  # within `CRASHES_S`, after which starting anew is given up
CRASHES_S = 60.0  # seconds
LOOK_S = 0.5  # between looks at what only time tells, in seconds
STOP_S = 5.0  # in which a step may come to its end when the server ends, in seconds
RANKS_S = 15.0  # in which the server tells its callers that another rank is gone, in seconds

log = logging.getLogger("mlx_qwenvl.server")


class Engine:
    """Answers calls, from `running` on.

    Args:
        load: Loads the model; called in the engine's thread.
        settings: The operator's.
        name: What the model is called, as the operator named it.
        on_failure: Called in the event loop when the engine will not answer any more.
        on_ready: Called in the event loop when the model was loaded for the first time.

    Attributes:
        settings: As given.
        state: What it is doing.
        metrics: Its counters.
        failure: Why it does not answer any more, or None.
    """

    def __init__(
        self,
        load: Callable[[], QwenVL],
        settings: Settings,
        name: str,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.metrics = Metrics(self)
        self._on_failure, self._on_ready = on_failure, on_ready
        path = Path(name)
        self.name = path.name if path.is_absolute() else name  # of a path nothing but its end
        self._preparing = Preparing(settings)
        self._worker = Worker(
            load, settings.max_concurrency, self._when_loaded, self._when_told, self._when_crashed
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._vlm: QwenVL | None = None
        self._tokenizer: Tokenizer | None = None
        self._loading: asyncio.Future[QwenVL] | None = None
        self._calls: set[OpenCall] = set()
        self._of: dict[int, OpenCall] = {}  # whose a job is, by identity
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._quiet_since = time.monotonic()
        self.crash_count = self.load_count = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model and answer until the block ends, without waiting for the model."""
        self._loop = asyncio.get_running_loop()
        self._loading = self._loop.create_future()
        self._loading.add_done_callback(seen)
        self._worker.start()
        watching = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            self.drain()
            self.end_calls()
            self._preparing.close()
            await self._loop.run_in_executor(None, self._worker.stop, STOP_S)
            with suppress(asyncio.CancelledError):
                await watching

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary, for any thread.

        Raises:
            Unavailable: The model was never loaded yet.
        """
        if self._tokenizer is None:
            raise Unavailable("the model is being loaded")
        return self._tokenizer

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together; 0 while nobody knows."""
        return 0 if self._vlm is None else self._vlm.config.text.max_position_embeddings

    @property
    def open_calls(self) -> int:
        """Calls that are prepared, queued or answered."""
        return len(self._calls)

    @property
    def has_ended(self) -> bool:
        """Whether no thread of it works any more."""
        return self._worker.has_ended and self._preparing.is_idle

    @property
    def worker(self) -> Worker:
        """The engine's thread."""
        return self._worker

    @property
    def vlm(self) -> QwenVL | None:
        """The model, where it is loaded; to be looked at and not to be asked."""
        return self._vlm

    @property
    def step_s(self) -> float:
        """Seconds that the step under way has taken; 0 where there is none."""
        since = self._worker.working_since
        return 0.0 if since is None else time.monotonic() - since

    def drain(self) -> None:
        """Take no calls any more; those that were accepted go on."""
        if self.state != "dead":
            self.state = "draining"

    def end_calls(self) -> None:
        """Tell all who still wait that they wait in vain."""
        self._end_all(Unavailable("the server is ending"))

    async def ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            Unavailable: It cannot be loaded.
        """
        await self._awake()

    async def prompt(self, call: Call) -> Prompt:
        """A call's prompt, its pictures opened; nothing is computed. Errors as of `submit`."""
        opened = self._admit()

        async def work() -> Prompt:
            return (await self._preparing.prepare(await self._awake(), call, computes=False))[0]

        try:
            return await unless_over(opened, work())
        finally:
            self._end(opened)

    async def count(self, call: Call) -> int:
        """Tokens of a call's prompt, pictures included. Errors as of `submit`."""
        return int((await self.prompt(call)).token_ids.size)

    async def submit(self, call: Call) -> Ticket:
        """Accept a call.

        Raises:
            Overloaded: Too many wait already.
            Unavailable: There is no engine now.
            QwenVLError: The call itself cannot be answered.
        """
        opened = self._admit()
        try:
            await unless_over(opened, self._add(opened, call))
        except BaseException:
            self._end(opened)
            raise
        return Ticket(
            self._hear(opened, call.n),
            lambda: self._end(opened, Unavailable("the call was withdrawn")),
            lambda: None if opened.job is None else opened.job.progress,
        )

    async def _add(self, opened: OpenCall, call: Call) -> None:
        """Bring a call into the scheduler."""
        watch = Stopwatch()
        vlm = await self._awake()
        watch.load_s = vlm.load_s
        prompt, options = await self._preparing.prepare(vlm, call)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker.add(
            prompt,
            options,
            watch,
            call.n,
            lambda: not opened.is_over,
            lambda job: self._post(lambda: self._accept(opened, accepted, job)),
        )
        await accepted

    def _admit(self) -> OpenCall:
        """Take a call in, which counts until it is ended.

        Raises:
            Overloaded: Too many wait already.
            Unavailable: There is no engine now.
        """
        reasons = {
            "loading": "the model is being loaded",
            "draining": "the server is ending",
            "dead": "the engine has failed",
        }
        if self.state in reasons:
            raise Unavailable(reasons[self.state])
        most = self.settings.max_concurrency + self.settings.max_queue
        if len(self._calls) >= most:
            raise Overloaded(f"{len(self._calls)} requests are open, at most {most} pass")
        opened = OpenCall(asyncio.Queue(), asyncio.get_running_loop().create_future())
        opened.over.add_done_callback(seen)
        self._calls.add(opened)
        return opened

    async def _awake(self) -> QwenVL:
        """The model, loaded again where it was let go."""
        assert self._loading is not None, "the engine is running"
        if self.state == "unloaded" and self._loading.done():
            # One load, whoever asks for it first; it stands behind the unloading in the inbox.
            self._loading = asyncio.get_running_loop().create_future()
            self._loading.add_done_callback(seen)
            self._worker.load()
        return await asyncio.shield(self._loading)

    def _accept(
        self, opened: OpenCall, accepted: asyncio.Future[None], job: Job | Exception
    ) -> None:
        """Take note of what the scheduler said to a call."""
        if isinstance(job, Job):
            if opened.is_over:  # withdrawn meanwhile
                self._worker.cancel(job)
            else:
                opened.job, self._of[id(job)] = job, opened
        if accepted.done():
            return
        if isinstance(job, Job):
            accepted.set_result(None)
        else:
            accepted.set_exception(job)

    async def _hear(self, opened: OpenCall, left: int) -> AsyncGenerator[Heard, None]:
        """What comes of a call."""
        try:
            while left:
                heard = await opened.heard.get()
                if isinstance(heard, Exception):
                    raise heard
                if heard.chunk.finish_reason is not None:
                    left -= 1
                yield heard
        finally:
            self._end(opened)

    def _end(self, opened: OpenCall, error: Exception | None = None) -> None:
        """Let go of a call, and of its work where that is not done."""
        if opened.is_over:
            return
        if error is None:
            opened.over.cancel()
        else:
            opened.over.set_exception(error)
        self._calls.discard(opened)
        self._quiet_since = time.monotonic()
        if opened.job is not None:
            self._of.pop(id(opened.job), None)
            if not opened.job.is_over:
                self._worker.cancel(opened.job)
            opened.job = None  # it knows the model, which nobody is to hold on to
        if error is not None:
            opened.heard.put_nowait(error)

    # What the engine's thread says; each of these is called there and goes on in the event loop.

    def _post(self, work: Callable[[], None]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
            self._loop.call_soon_threadsafe(work)

    def _when_loaded(self, vlm: QwenVL | Exception) -> None:
        self._post(lambda: self._note_loaded(vlm))

    def _when_told(self, events: Sequence[Event]) -> None:
        self._post(lambda: self._deliver(events))

    def _when_crashed(self, error: BaseException, goes_on: bool) -> None:
        self._post(lambda: self._note_crash(error, goes_on))

    def _when_lost(self, reason: str) -> None:
        log.critical("%s", reason)
        self._when_crashed(RanksLost(reason), False)

    def _note_loaded(self, vlm: QwenVL | Exception) -> None:
        assert self._loading is not None
        if self._loading.done():  # the engine is dead already
            return
        if isinstance(vlm, Exception):
            if not isinstance(vlm, QwenVLError):
                log.error("the model cannot be loaded", exc_info=vlm)
            elif self.load_count:
                log.error("the model cannot be loaded again: %s", vlm)
            self._loading.set_exception(Unavailable("the model cannot be loaded"))
            if not self.load_count:  # there never was anything to serve
                self._fail(vlm)
            return
        self.load_count += 1
        self._vlm, self._tokenizer = vlm, vlm.tokenizer
        if vlm.ranks is not None:
            vlm.ranks.when_lost(self._when_lost, RANKS_S)
        if self.state in ("loading", "unloaded"):
            self.state = "ready"
        self._quiet_since = time.monotonic()
        self._loading.set_result(vlm)
        if self.load_count == 1:
            self._on_ready()

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            opened = self._of.get(id(event.job))
            if opened is None:
                continue
            if isinstance(event, Told):
                self.metrics.heard(opened.last_at.get(event.index), event.chunk)
                opened.last_at[event.index] = time.monotonic()
                opened.heard.put_nowait(Heard(event.index, event.chunk))
            else:
                opened.heard.put_nowait(event.error)

    def _note_crash(self, error: BaseException, goes_on: bool) -> None:
        self.crash_count += 1
        self._crashes.append(time.monotonic())
        often = len(self._crashes) == MAX_CRASHES and (
            self._crashes[-1] - self._crashes[0] < CRASHES_S
        )
        for opened in list(self._calls):
            if opened.job is not None:
                self._end(opened, EngineFailed("the engine failed while it answered; try again"))
        if often or not goes_on or self.settings.on_crash == "exit":
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Answer nothing any more."""
        self.state, self.failure = "dead", error
        assert self._loading is not None
        if not self._loading.done():
            self._loading.set_exception(Unavailable("the engine has failed"))
        self._end_all(Unavailable("the engine has failed"))
        self._on_failure()

    def _end_all(self, error: Exception) -> None:
        for opened in list(self._calls):
            self._end(opened, error)

    async def _watch(self) -> None:
        """Let an idle model go, and notice an engine that hangs."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.state != "dead" and self.step_s > self.settings.hang_s:
                log.critical("the engine hangs: a step has taken %.0f s", self.step_s)
                self._fail(EngineFailed("the engine hangs"))
            idle = self.settings.idle_unload_s
            if idle is None or self.state != "ready" or self._calls:
                continue
            if time.monotonic() - self._quiet_since >= idle:
                self.state, self._vlm = "unloaded", None
                # Nobody waits for the old one, and it is not to be held on to.
                self._loading = asyncio.get_running_loop().create_future()
                self._loading.set_result(None)  # type: ignore[arg-type]
                self._worker.unload()
