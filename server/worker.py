"""The engine's thread. It loads the model, steps the scheduler and lets the model go.

Nothing else touches MLX. Work comes in through a queue that is emptied before every step, so what
is withdrawn is gone within one step; what came of a step goes out in one piece.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_qwenvl.engine.job import Event, Job
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import RanksLost
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.vlm import QwenVL

LOADING_S = 1.0  # that a load, which cannot be broken off, is waited for at the end, in seconds

log = logging.getLogger("mlx_qwenvl.server")


class Worker:
    """One thread and what it owns.

    Args:
        load: Loads the model; called in the thread, again after every `unload`.
        max_running: Answers that are computed side by side.
        loaded: Called in the thread with the model, or with what went wrong.
        told: Called in the thread with what came of a step.
        crashed: Called in the thread with what escaped from its work, and whether it goes on; all
            jobs are lost.
    """

    def __init__(
        self,
        load: Callable[[], QwenVL],
        max_running: int,
        loaded: Callable[[QwenVL | Exception], None],
        told: Callable[[Sequence[Event]], None],
        crashed: Callable[[BaseException, bool], None],
    ) -> None:
        self._load, self._max_running = load, max_running
        self._loaded, self._told, self._crashed = loaded, told, crashed
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._vlm: QwenVL | None = None
        self._ended = self._is_loading = False
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()  # of the present scheduler
        self.scheduler: Scheduler | None = None
        self.working_since: float | None = None  # of the step that is under way
        self.active_bytes = 0  # that MLX holds, as of the last step

    def start(self) -> None:
        """Start the thread, which loads the model first."""
        self._thread.start()
        self.load()

    def load(self) -> None:
        """Load the model."""
        self._inbox.put(self._do_load)

    def unload(self) -> None:
        """Let the model and all that is kept of earlier questions go."""
        self._inbox.put(self._do_unload)

    def add(
        self,
        prompt: Prompt,
        options: Options,
        watch: Stopwatch,
        n: int,
        is_wanted: Callable[[], bool],
        answer: Callable[[Job | Exception], None],
    ) -> None:
        """Queue a question.

        Args:
            prompt: What is asked.
            options: The call's.
            watch: Started by the caller.
            n: Answers to it.
            is_wanted: Asked when its turn comes; where nobody waits any more it is left out.
            answer: Called in the thread with the job, or with why it is refused.
        """

        def work() -> None:
            if not is_wanted():
                return
            try:
                if self.scheduler is None:
                    raise RuntimeError("a question came while there was no model")
                job = self.scheduler.add(prompt, options, watch, n=n)
            except Exception as error:
                answer(error)
            else:
                self._jobs.add(job)
                answer(job)

        self._inbox.put(work)

    def cancel(self, job: Job) -> None:
        """Withdraw a question."""

        def work() -> None:
            # One that was lost in a crash is nothing that a later scheduler knows.
            if self.scheduler is not None and job in self._jobs:
                self.scheduler.cancel(job)

        self._inbox.put(work)

    @property
    def has_ended(self) -> bool:
        """Whether the thread does nothing any more, or never did."""
        return not self._thread.is_alive()

    def stop(self, seconds: float) -> bool:
        """End the thread; give whether it has ended in time."""

        def work() -> None:
            self._ended = True

        if self._thread.is_alive():
            self._inbox.put(work)
            self._thread.join(min(seconds, LOADING_S) if self._is_loading else seconds)
        return self.has_ended

    def _run(self) -> None:
        try:
            while not self._ended:
                self._empty_inbox()
                if self.scheduler is not None and not self.scheduler.is_idle and not self._ended:
                    self._work(self._step)
        except BaseException as error:  # or nobody would hear that the thread is gone
            log.critical("the engine's thread has ended", exc_info=error)
            self._crashed(error, False)
        self._let_go()
        # A thread that ends with streams of its own may take the process down when that exits.
        mx.clear_streams()

    def _empty_inbox(self) -> None:
        if self.scheduler is None or self.scheduler.is_idle:
            self._work(self._inbox.get())
        while not self._inbox.empty():
            self._work(self._inbox.get())

    def _work(self, work: Callable[[], None]) -> None:
        """Do something, and begin anew where it fails."""
        try:
            work()
        except RanksLost as error:  # there is nothing to begin anew with
            self._ended = True
            self._crashed(error, False)
        except Exception as error:
            log.critical("the engine failed", exc_info=error)
            self._forget_all()
            self._crashed(error, True)

    def _step(self) -> None:
        assert self.scheduler is not None
        self.working_since = time.monotonic()
        try:
            told = self.scheduler.step()
        finally:
            self.working_since = None
            self.active_bytes = mx.get_active_memory()
        if told:
            self._told(told)

    def _do_load(self) -> None:
        self._is_loading = True
        try:
            self._vlm = self._load()
            self.scheduler = self._vlm.scheduler(self._max_running)
        except Exception as error:
            self._do_unload()
            self._loaded(error)
        else:
            self.active_bytes = mx.get_active_memory()
            self._loaded(self._vlm)
        finally:
            self._is_loading = False

    def _do_unload(self) -> None:
        self._let_go()
        gc.collect()  # modules refer to each other in circles
        mx.clear_cache()
        self.active_bytes = mx.get_active_memory()

    def _let_go(self) -> None:
        if self._vlm is not None:
            self._vlm.grammars.close()
        self._vlm = self.scheduler = None

    def _forget_all(self) -> None:
        """Begin anew after a failure, with nothing that it may have left half done."""
        self._jobs = weakref.WeakSet()
        if self._vlm is not None:
            self._vlm.stores.make_room(2**63)
            self.scheduler = self._vlm.scheduler(self._max_running)
        mx.clear_cache()
