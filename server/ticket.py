"""What a caller holds of a call, and what the engine knows of it until it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlx_qwenvl.engine.job import Job
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.errors import QwenVLError

T = TypeVar("T")


class Overloaded(QwenVLError):
    """More requests wait than the operator allows."""


class Unavailable(QwenVLError):
    """The model is being loaded, or the engine is ending or dead."""


class EngineFailed(QwenVLError):
    """The engine failed while it worked on a call; it was not the call's fault."""


@dataclass(frozen=True)
class Heard:
    """A piece of one of a call's answers.

    Attributes:
        index: Which of the call's `n` answers.
        chunk: The piece; the last one of an answer has a finish reason, usage and timings.
    """

    index: int
    chunk: Chunk


class Ticket:
    """A call that was accepted: an iterator over what is heard.

    Args:
        chunks: Of the answers.
        withdraw: Withdraws the call.
        progress: Gives the prompt tokens that are computed, and all of them.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Heard],
        withdraw: Callable[[], None] | None = None,
        progress: Callable[[], tuple[int, int] | None] | None = None,
    ) -> None:
        self._chunks, self._withdraw, self._progress = chunks, withdraw, progress
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Heard]:
        """What is heard, until all answers are finished."""
        return self._chunks

    @property
    def progress(self) -> tuple[int, int] | None:
        """Prompt tokens that are computed, and all of them; None where nobody knows."""
        return None if self._progress is None else self._progress()

    def cancel(self) -> None:
        """Withdraw the call; its work stops within one step. Does nothing once it is finished."""
        if not self.cancelled:
            self.cancelled = True
            if self._withdraw is not None:
                self._withdraw()


@dataclass(eq=False)
class OpenCall:
    """A call that is not finished.

    Attributes:
        heard: What came of it; an error ends it. A slow listener holds up nobody: it is as long as
            the answers at most.
        over: Done once nothing more is to come; has the reason where that is not the answer's end.
        job: The scheduler's, while it has one.
        last_at: When something was heard last of each answer, in `time.monotonic` seconds.
    """

    heard: asyncio.Queue[Heard | Exception]
    over: asyncio.Future[None]
    job: Job | None = None
    last_at: dict[int, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return self.over.done()


async def unless_over(opened: OpenCall, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work on a call; whatever ends the call is raised."""
    working = asyncio.ensure_future(work)
    working.add_done_callback(seen)
    try:
        both: set[asyncio.Future[Any]] = {working, opened.over}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            opened.over.result()
        return working.result()
    finally:
        working.cancel()


def seen(future: asyncio.Future[Any]) -> None:
    """Marks an error as seen: whoever waits is told, and perhaps nobody does."""
    if not future.cancelled():
        future.exception()
