"""Answers for an event loop: a thread computes them side by side, the loop hears the pieces.

MLX computes lazily and in the thread that asked for it, so one thread does all of this, as the
server's does. It lives as long as there is something to answer, and none is left when the program
ends.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from mlx_qwenvl.engine.job import Event, Job, Told
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.engine.turnstile import Turnstile
from mlx_qwenvl.inputs.prompt import Prompt


@dataclass(eq=False)
class Question:
    """A question and who waits for its answer.

    Attributes:
        prompt: What is asked.
        options: The call's.
        watch: Started by the caller.
        tell: Called in the answering thread with each chunk, or with why there is none.
        job: The scheduler's, once it has one.
        is_withdrawn: Whether nobody waits any more.
    """

    prompt: Prompt
    options: Options
    watch: Stopwatch
    tell: Callable[[Chunk | Exception], None]
    job: Job | None = None
    is_withdrawn: bool = False


class Asker:
    """Takes questions to the thread that answers them.

    Args:
        scheduler: Makes what answers them; called again after a failure that is nobody's.
        stores: What is kept of earlier questions; emptied after such a failure.
        turnstile: Shared with whoever else computes with the model.
    """

    def __init__(
        self, scheduler: Callable[[], Scheduler], stores: Stores, turnstile: Turnstile
    ) -> None:
        self._make, self._stores, self._turnstile = scheduler, stores, turnstile
        self._scheduler = scheduler()
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._of: dict[int, Question] = {}  # whose a job is, by identity; the thread's
        self._is_ending = False

    async def listen(
        self, prepare: Callable[[], Prompt], options: Options, watch: Stopwatch
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer; it is withdrawn when the listener leaves or is cancelled.

        Args:
            prepare: Makes the prompt; called in some thread, since it may wait for pictures.
            options: The call's.
            watch: Started by the caller.

        Raises:
            QwenVLError: It cannot be answered.
        """
        prompt = await asyncio.to_thread(prepare)
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Chunk | Exception]()

        def tell(piece: Chunk | Exception) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(heard.put_nowait, piece)

        question = Question(prompt, options, watch, tell)
        self._post(lambda: self._add(question))
        try:
            while True:
                piece = await heard.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            question.is_withdrawn = True
            if question.job is None or not question.job.is_over:
                self._post(lambda: self._withdraw(question))

    def _post(self, work: Callable[[], None]) -> None:
        """Have something done in the thread, before its next step."""
        with self._lock:
            if self._thread is None and not self._is_ending:
                thread = threading.Thread(target=self._run, name="mlx-qwenvl", daemon=True)
                atexit.register(self._end)
                thread.start()
                self._thread = thread
            self._inbox.append(work)

    def _end(self) -> None:
        """Called when the program ends: it waits for the step under way, or MLX would be torn."""
        self._is_ending = True
        thread = self._thread
        if thread is not None:
            thread.join()

    # From here on, in the thread.

    def _run(self) -> None:
        while self._has_work():
            try:
                events = self._turnstile.step(self._step)
            except Exception as error:
                self._turnstile.step(partial(self._begin_anew, error))
            else:
                self._tell(events)
        # A thread that ends with streams of its own may take the process down when that exits.
        mx.clear_streams()

    def _has_work(self) -> bool:
        """Whether anything is left to do; where not, the next question finds no thread."""
        with self._lock:
            if self._thread is not threading.current_thread():  # Ctrl-C came while it was started
                return False
            if self._is_ending:
                return False
            if self._inbox or not self._scheduler.is_idle:
                return True
            self._thread = None
            atexit.unregister(self._end)
            return False

    def _step(self) -> list[Event]:
        while self._inbox:
            self._inbox.popleft()()
        return [] if self._scheduler.is_idle else self._scheduler.step()

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            question = self._of.get(id(event.job))
            if question is None:
                continue
            piece = event.chunk if isinstance(event, Told) else event.error
            if isinstance(piece, Exception) or piece.finish_reason is not None:
                self._of.pop(id(event.job))
            question.tell(piece)

    def _add(self, question: Question) -> None:
        if question.is_withdrawn:
            return
        try:
            job = self._scheduler.add(question.prompt, question.options, question.watch)
        except Exception as error:
            question.tell(error)
        else:
            question.job, self._of[id(job)] = job, question

    def _withdraw(self, question: Question) -> None:
        if question.job is not None and self._of.pop(id(question.job), None) is question:
            self._scheduler.cancel(question.job)

    def _begin_anew(self, error: Exception) -> None:
        """Tell all who wait, and keep nothing that the failure may have left half done."""
        waiting = list(self._of.values())
        self._of.clear()
        self._stores.make_room(2**63)
        self._scheduler = self._make()
        mx.clear_cache()
        for question in waiting:
            question.tell(error)
