"""Rank 0's scheduler: what it is told and does, the other ranks are told and do."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from mlx_qwenvl.distributed.commands import Add, Cancel, Close, Heard, Open, Step
from mlx_qwenvl.distributed.ranks import Ranks
from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.draft import DraftModel
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.job import Event, Failed, Job, Told
from mlx_qwenvl.engine.options import SEED_LIMIT, Options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import QwenVLError, RanksLost
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.models.model import Model

_numbers = itertools.count()


class LeadingScheduler(Scheduler):
    """A scheduler that takes the other ranks along; its arguments are those of `Scheduler`.

    A failure of a step that is nobody's, or an interruption in its middle, is the end of the ranks'
    common way: whatever is asked afterwards is answered with `RanksLost`.
    """

    def __init__(
        self,
        ranks: Ranks,
        model: Model,
        tokenizer: Tokenizer,
        stores: Stores,
        end_ids: frozenset[int],
        start: Callable[[Grammar], Constraint],
        drafting: Callable[[Options], DraftModel | None],
        max_running: int,
        *,
        in_bulk: bool = False,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            stores,
            end_ids,
            start,
            drafting,
            max_running,
            in_bulk=in_bulk,
            agreed=ranks.agreed,
        )
        self._ranks = ranks
        self._number = next(_numbers)
        self._job_numbers = itertools.count()
        self._numbered: dict[Job, int] = {}
        self._before: tuple[Heard, ...] = ()
        self._is_open = False

    def add(self, prompt: Prompt, options: Options, watch: Stopwatch, *, n: int = 1) -> Job:
        """Queue a question on all ranks; what is refused here they never hear of."""
        if options.seed is None:
            options = replace(options, seed=secrets.randbelow(SEED_LIMIT))
        job = super().add(prompt, options, watch, n=n)
        if not self._is_open:
            self._ranks.tell(Open(self._number, self.max_running, self._in_bulk))
            self._is_open = True
        number = self._numbered[job] = next(self._job_numbers)
        self._ranks.tell(Add(self._number, number, prompt, replace(options, on_prefill=None), n))
        return job

    def cancel(self, job: Job) -> None:
        """Withdraw a job on all ranks."""
        if job.is_over:
            return
        with self._ranks.working():
            self._ranks.tell(Cancel(self._number, self._numbered.pop(job)))
            super().cancel(job)

    def step(self) -> list[Event]:
        """Do a slice of work, as all ranks do."""
        with self._ranks.working():
            self._ranks.tell(Step(self._number, self._before))
            events = super().step()
            self._before = heard_of(events, self._numbered)
            refuse_faults(events)
        for job in [job for job in self._numbered if job.is_over]:
            del self._numbered[job]
        return events

    def close(self) -> None:
        """Withdraw what is left, and let it go on the other ranks."""
        if self._is_open and self._ranks.go_on:
            for job in list(self._numbered):
                self.cancel(job)
            self._ranks.tell(Close(self._number))


def answer_in(
    scheduler: LeadingScheduler, prompt: Prompt, options: Options, watch: Stopwatch
) -> Generator[Chunk, None, None]:
    """Answer one question, as `engine/answer.py` does with the model to itself."""
    try:
        job = scheduler.add(prompt, options, watch)
        while not job.is_over:
            for event in scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
                yield event.chunk
    finally:
        scheduler.close()


def heard_of(events: Sequence[Event], numbers: dict[Job, int]) -> tuple[Heard, ...]:
    """What a step brought, by the jobs' numbers."""
    return tuple(
        (numbers[event.job], event.index, event.chunk.token_ids, event.chunk.finish_reason or "")
        if isinstance(event, Told)
        else (numbers[event.job], -1, (), "failed")
        for event in events
    )


def refuse_faults(events: Sequence[Event]) -> None:
    """Raise what a job failed of that is not the job's fault, such as a connection."""
    for event in events:
        if isinstance(event, Failed):
            own = isinstance(event.error, QwenVLError) and not isinstance(event.error, RanksLost)
            if not own:
                raise event.error
