"""Questions to a scheduler, and what is heard of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.options import read_options
from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.engine.scheduler import Event, Failed, Job, Scheduler
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import question_messages


@dataclass(frozen=True)
class Question:
    """What is asked of `generate` and of a scheduler alike."""

    text: str
    images: Sequence[ImageSource] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def alone(self, vlm: QwenVL, **options: Any) -> Reply:
        """The answer of `generate`, from nothing that was kept and with no proposals."""
        plain = {"cache": False, "speculation": False}
        return vlm.generate(self.text, images=self.images, **(self.options | plain | options))

    def add(self, vlm: QwenVL, scheduler: Scheduler, n: int = 1, **options: Any) -> Job:
        """Queue it."""
        watch, read = Stopwatch(), read_options(self.options | options, vlm.sampling)
        turns = question_messages(self.text, self.images, None, None)
        return scheduler.add(vlm.prompt(turns, read), read, watch, n=n)


class Listener:
    """Hears a scheduler.

    Attributes:
        errors: Why jobs failed.
        chunks: What was told of each answer.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.errors: dict[Job, Exception] = {}
        self.chunks: dict[tuple[Job, int], list[Chunk]] = {}

    def step(self) -> list[Event]:
        """One step."""
        events = self._scheduler.step()
        for event in events:
            if isinstance(event, Failed):
                assert event.job not in self.errors
                self.errors[event.job] = event.error
            else:
                self.chunks.setdefault((event.job, event.index), []).append(event.chunk)
        return events

    def until_told(self, job: Job, tokens: int = 1) -> None:
        """Go on until so many tokens of a job's first answer are told."""
        while len(self.heard(job)) < tokens:
            assert not self._scheduler.is_idle, "it was never told"
            self.step()

    def until_idle(self) -> None:
        """Go on until there is nothing to do."""
        while not self._scheduler.is_idle:
            self.step()

    def heard(self, job: Job, index: int = 0) -> list[int]:
        """Tokens told so far."""
        return [i for chunk in self.chunks.get((job, index), []) for i in chunk.token_ids]

    def reply(self, job: Job, index: int = 0) -> Reply:
        """A finished answer."""
        return Reply.of(self.chunks[job, index], "")
