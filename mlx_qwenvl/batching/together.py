"""Questions about many pictures or videos, answered side by side while the next are opened.

They are opened by threads; one thread, the caller's, makes all steps of the model. How many are
open at once is bounded, however many there are.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import mlx.core as mx

from mlx_qwenvl.batching.ahead import Ahead
from mlx_qwenvl.engine.job import Failed, Job, fault_of
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.vlm import QwenVL

OPENING_THREADS = min(4, os.cpu_count() or 1)  # each may hold a whole photo, unresized
AHEAD = 2 * OPENING_THREADS  # that are being opened, or are open and wait to be asked about
LISTENING_S = 0.1  # seconds without a result after which the caller may look up

Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked(Generic[Item]):
    """Which question about what.

    Attributes:
        item: The picture or video as it was given.
        question: Index of the question.
        key: Of its content and all that the answer depends on; "" where nobody needs it.
    """

    item: Item
    question: int = 0
    key: str = ""


Prepared = tuple[Asked[Item], Prompt | QwenVLError | None]
"""A question that is ready to be answered, that cannot be, or that needs no answer."""

Outcome = tuple[Asked[Item], Reply | QwenVLError | None]
"""What became of a question; None where it needed no answer."""


@dataclass
class _Open(Generic[Item]):
    """A question that is being answered."""

    asked: Asked[Item]
    prompt: Prompt
    chunks: list[Chunk] = field(default_factory=list)


class Together(Generic[Item]):
    """Answers questions about pictures or videos side by side.

    Args:
        vlm: The model.
        items: What is asked about, in any form; the iterable is read as far as there is room.
        prepare: Opens one and makes its questions; called in several threads at once. What it
            raises is the error of its first question.
        options: Of all answers.
        max_running: Answers decoded together at most.

    Raises:
        OptionError: `max_running` is below 1.
    """

    def __init__(
        self,
        vlm: QwenVL,
        items: Iterable[Item],
        prepare: Callable[[Item], Sequence[Prepared[Item]]],
        options: Options,
        max_running: int,
    ) -> None:
        self._vlm, self._prepare, self._options = vlm, prepare, options
        self._max_running = max_running
        self._scheduler = vlm.scheduler(max_running, in_bulk=True)
        self._items = items
        self._waiting: deque[_Open[Item]] = deque()
        self._jobs: dict[Job, _Open[Item]] = {}
        self._begun = False

    @property
    def unanswered(self) -> int:
        """Questions that are ready and have no answer yet."""
        return len(self._waiting) + len(self._jobs)

    def outcomes(self) -> Generator[Outcome[Item] | None, None, None]:
        """What becomes of each question, in order of completion; replies name no sources.

        None comes after every step that completes nothing, so that a caller who has to stop can.
        """
        ahead = Ahead(self._items, self._prepared, threads=OPENING_THREADS, most=AHEAD)
        try:
            while True:
                yield from self._take(ahead)
                yield from self._add()
                if not self.unanswered and ahead.is_done:
                    return
                if self._may_step(ahead):
                    yield from self._step()
                yield None
        finally:
            ahead.close()

    def _prepared(self, item: Item) -> Sequence[Prepared[Item]]:
        try:
            return self._prepare(item)
        except Exception as error:
            return [(Asked(item), as_fault(error))]

    def _take(self, ahead: Ahead[Item, Sequence[Prepared[Item]]]) -> Iterator[Outcome[Item]]:
        """Take what is open as long as there are places, and wait where there is nothing else.

        The first answer waits for a second question. A lone answer works in its own cache, where
        nobody who comes later finds the beginning that all questions have in common; in a crowd it
        is found by all, and so computed once.
        """
        while self.unanswered <= self._max_running and not ahead.is_done:
            made = ahead.take(0 if self._may_step(ahead) else LISTENING_S)
            if made is None:
                return
            for asked, prepared in made:
                if isinstance(prepared, Prompt):
                    self._waiting.append(_Open(asked, prepared))
                else:
                    yield asked, prepared

    def _may_step(self, ahead: Ahead[Item, Sequence[Prepared[Item]]]) -> bool:
        enough = self._begun or self.unanswered > 1 or ahead.is_done
        return enough and self.unanswered > 0

    def _add(self) -> Iterator[Outcome[Item]]:
        """Queue questions, one more than can be answered at once."""
        while self._waiting and len(self._jobs) <= self._max_running:
            opened = self._waiting.popleft()
            watch = Stopwatch(self._vlm.load_s)
            try:
                job = self._scheduler.add(opened.prompt, self._options, watch)
            except Exception as error:
                yield opened.asked, as_fault(error)
            else:
                self._jobs[job] = opened

    def _step(self) -> Iterator[Outcome[Item]]:
        self._begun = True
        try:
            events = self._vlm.turnstile.step(self._scheduler.step)
        except Exception as error:
            if self._max_running == 1:
                raise
            self._begin_anew(error)
            return
        for event in events:
            if isinstance(event, Failed):
                yield self._jobs.pop(event.job).asked, as_fault(event.error)
                continue
            opened = self._jobs[event.job]
            opened.chunks.append(event.chunk)
            if event.chunk.finish_reason is not None:
                del self._jobs[event.job]
                yield opened.asked, Reply.of(opened.chunks, self._vlm.name)

    def _begin_anew(self, error: Exception) -> None:
        """After a step that broke for all, ask again with fewer at a time, until one is alone."""
        self._max_running //= 2
        log.warning("%s; going on with %d at a time", as_fault(error), self._max_running)
        self._vlm.stores.make_room(2**63)
        self._scheduler = self._vlm.scheduler(self._max_running, in_bulk=True)
        mx.clear_cache()
        again = [_Open(opened.asked, opened.prompt) for opened in self._jobs.values()]
        self._jobs.clear()
        self._waiting.extendleft(reversed(again))


def as_fault(error: Exception) -> QwenVLError:
    """What an exception about one of them means to people."""
    fault = fault_of(error)
    if isinstance(fault, QwenVLError):
        return fault
    said = " ".join(str(error).split())[:200]
    unexpected = QwenVLError(
        f"it failed in a way that nobody expected: {type(error).__name__}: {said}"
    )
    unexpected.__cause__ = error
    return unexpected
