"""Many questions to one model: who is read next, who is decoded, and whose fault is whose.

One thread owns a scheduler and calls `step` while there is work. A step does two things at most: a
slice of the one prompt that is being read, and a token of every answer that is being told. So what
an answer waits for between two tokens is bounded: a step of decoding, and a slice. That aims at
`SHARED_S`, and what is not cut further is `LEAST_TOKENS` of the prompt, `LEAST_ROWS` patches of a
block of the vision tower, and the tower's merger (`slices.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from mlx_qwenvl.engine.agreed import ALONE, Agreed
from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.crowd import Crowd, Member
from mlx_qwenvl.engine.draft import Draft, DraftModel
from mlx_qwenvl.engine.fit import check_answer, check_ever, room_for_answer
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.job import Event, Failed, Job, Told, fault_of
from mlx_qwenvl.engine.options import SEED_LIMIT, Options
from mlx_qwenvl.engine.prefill import Filling
from mlx_qwenvl.engine.sampling import Sampled, Sampler
from mlx_qwenvl.engine.slices import Slices
from mlx_qwenvl.engine.speculate import verify_rows
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.engine.telling import Stopwatch, Telling
from mlx_qwenvl.engine.thinking import Thoughts
from mlx_qwenvl.errors import MemoryExceeded, OptionError
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.models.batch_cache import copies_into_slots
from mlx_qwenvl.models.model import Model

__all__ = ["MAX_RUNNING", "Event", "Failed", "Job", "Scheduler", "Told"]

MAX_RUNNING = 8  # answers decoded together, where the caller sets no limit


class Scheduler:
    """Answers questions side by side.

    Args:
        model: The model.
        tokenizer: Its vocabulary.
        stores: What is kept of earlier questions.
        end_ids: Tokens that end an answer.
        start: Makes the constraint of one answer from its grammar.
        drafting: Gives the draft model for a call's options, or None.
        max_running: Answers decoded together at most.
        in_bulk: Whether all that counts is when the last answer is there. Questions are then read
            first, uncut, as long as there are places, so that each step of decoding has as many
            answers as can be; and answers are not kept, because nobody goes on from them.
        agreed: What is decided by the time and by memory.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        stores: Stores,
        end_ids: frozenset[int],
        start: Callable[[Grammar], Constraint],
        drafting: Callable[[Options], DraftModel | None],
        max_running: int = MAX_RUNNING,
        *,
        in_bulk: bool = False,
        agreed: Agreed = ALONE,
    ) -> None:
        if max_running < 1:
            raise OptionError(f"max_running is {max_running}, expected a number from 1 up")
        self._model, self._tokenizer, self._stores = model, tokenizer, stores
        self._end_ids, self._start, self._drafting = end_ids, start, drafting
        self.max_running, self._in_bulk = max_running, in_bulk
        self._agreed = agreed
        self.slices = Slices(agreed.clock)
        self._crowd = Crowd(model, lambda: self.slices.mark(), agreed.clock)
        self._of: dict[int, tuple[Job, int]] = {}  # whose answer a member is, by identity
        self._queue: deque[Job] = deque()
        self._reading: Job | None = None
        self._ready: deque[Job] = deque()  # read, with answers that wait to be begun
        self._blocked = False  # the first in the queue waits for memory

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._queue or self._reading or self._ready or self._crowd.members)

    @property
    def queued(self) -> int:
        """Jobs that wait to be read."""
        return len(self._queue)

    @property
    def prefilling(self) -> int:
        """Jobs that are being read, or read and waiting for a place."""
        return (self._reading is not None) + len(self._ready)

    @property
    def running(self) -> int:
        """Answers that are being told."""
        return len(self._crowd.members)

    @property
    def tokens(self) -> int:
        """Tokens in the caches of running answers."""
        return self._crowd.tokens

    def add(self, prompt: Prompt, options: Options, watch: Stopwatch, *, n: int = 1) -> Job:
        """Queue a question.

        Args:
            prompt: What is asked.
            options: The call's. A grammar that was not compiled before is compiled here.
            watch: Started when it was asked.
            n: Answers to it. Each draws with a seed of its own: the call's, and those that follow.

        Raises:
            ContextError: The prompt leaves no room for an answer.
            MemoryExceeded: It would not fit with nothing else running.
            OptionError: The grammar cannot be followed, or `n` is below 1.
        """
        if n < 1:
            raise OptionError(f"n is {n}, expected a number from 1 up")
        config = self._model.config
        options = replace(options, max_tokens=room_for_answer(config, prompt, options))
        options.kv.for_heads(config.text.head_dim)
        if options.grammar is not None:
            self._start(options.grammar)
        stores = self._stores if options.cache else Stores.of(self._model, 0, 0)
        if self._agreed.is_asked:
            check_ever(self._model, prompt, options, self._stores.nbytes + self._crowd.nbytes)
        watch.reading_s = time.perf_counter() - watch.called
        if self.is_idle:
            mx.reset_peak_memory()
        job = Job(prompt, options, n, watch, stores, (0, prompt.token_ids.size))
        self._queue.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Withdraw a job; what was computed of it is kept for the next who asks the like."""
        if not job.is_over:
            self._remove(job, keep=True)

    def step(self) -> list[Event]:
        """Do a slice of work.

        Returns:
            What came of it. A job's fault is an event like any other; what is raised is nobody's.
        """
        events: list[Event] = []
        if self._reading is None:
            self._take_next(events)
        if self._reading is not None:
            self._read(self._reading, events)
        self._begin(events)
        if self._crowd.members and not (self._in_bulk and self._goes_on_reading()):
            self._decode(events)
        return events

    def _take_next(self, events: list[Event]) -> None:
        """Begin to read the next question, where there is a place and memory for it."""
        if not self._may_take():
            return
        job = self._queue[0]
        shares = bool(self._crowd.members or self._ready)
        try:
            check_answer(
                self._model,
                job.prompt,
                job.options,
                job.stores,
                self._stores,
                is_shared=shares,
                agreed=self._agreed,
            )
        except MemoryExceeded as error:
            if shares:
                self._blocked = True
            else:
                self._fail(job, error, events)
            return
        self._queue.popleft()
        self._reading = job
        try:
            kv = job.options.kv.for_heads(self._model.config.text.head_dim)
            job._conversation = job.stores.prefixes.take(job.prompt, kv)
            job._filling = Filling(
                self._model,
                job._conversation,
                job.prompt,
                step=job.options.prefill_step,
                slices=self.slices,
                store=job.stores.features,
                on_prefill=job.options.on_prefill,
            )
        except Exception as error:
            self._fail(job, fault_of(error), events)

    def _read(self, job: Job, events: list[Event]) -> None:
        """Read the next slice of a question."""
        assert job._filling is not None, "it is being read"
        self.slices.shared = bool(self._crowd.members) and not self._in_bulk
        try:
            filled = job._filling.advance()
        except Exception as error:
            self._fail(job, fault_of(error), events)
            return
        job.progress = job._filling.done, job.progress[1]
        if filled is not None:
            job._filled, job._filling, self._reading = filled, None, None
            self._ready.append(job)

    def _begin(self, events: list[Event]) -> None:
        """Begin answers whose question is read, as far as there are places."""
        while self._ready and len(self._crowd.members) < self.max_running:
            job = self._ready[0]
            try:
                self._begin_one(job)
            except Exception as error:
                self._fail(job, fault_of(error), events)

    def _begin_one(self, job: Job) -> None:
        filled, conversation, index = job._filled, job._conversation, job._begun
        assert filled is not None and conversation is not None, "it was read"
        job._begun += 1
        is_last = job._begun == job.n
        if is_last:
            self._ready.popleft()
        options, is_alone = job.options, job.n == 1 and self._is_alone(0)
        if options.seed is not None:
            seed = (options.seed + index + SEED_LIMIT) % (2 * SEED_LIMIT) - SEED_LIMIT
            options = replace(options, seed=seed)
        constraint = None if options.grammar is None else self._start(options.grammar)
        logits = filled.logits[:, -1]
        watch = replace(job.watch)
        drafting, draft = None, self._drafting(options) if is_alone else None
        if draft is not None:
            least = verify_rows(self._model).least - 1
            drafting = Draft(draft, job.prompt, logits.shape[-1], options, least)
        # Where its caches become the row's own, or more answers follow, it works on a copy.
        takes = is_last and (is_alone or copies_into_slots(conversation.cache))
        member = Member(
            job.prompt,
            options,
            Sampler(options, logits.shape[-1], job.prompt.token_ids, constraint),
            Telling(
                self._tokenizer,
                options,
                self._end_ids,
                watch,
                constraint,
                self._model.points_in,
                Thoughts.of(self._tokenizer, job.prompt, constraint),
            ),
            conversation.kv,
            conversation if takes else conversation.fork(conversation.length),
            filled,
            drafting,
        )
        job._members.append(member)
        self._of[id(member)] = job, index
        self._crowd.join(member, is_alone=is_alone)
        if is_last:
            job._conversation = job._filled = None
            if not is_alone:
                # For who asks the like meanwhile.
                job.stores.prefixes.put(conversation)

    def _decode(self, events: list[Event]) -> None:
        """A token of every answer."""
        members = list(self._crowd.members)
        try:
            told = self._crowd.step(is_alone=self._is_alone(1))
        except Exception as error:
            if len(members) > 1:
                raise
            self._fail(self._of[id(members[0])][0], fault_of(error), events)
            return
        for member, sampled in told:
            job, index = self._of.get(id(member), (None, 0))
            if job is not None:  # else another of its answers has failed
                try:
                    self._tell(job, index, member, sampled, events)
                except Exception as error:
                    self._fail(job, fault_of(error), events)

    def _tell(
        self, job: Job, index: int, member: Member, sampled: Sampled, events: list[Event]
    ) -> None:
        telling, filled = member.telling, member.filled
        chunk = telling.hear(sampled)
        if chunk is not None:
            events.append(Told(job, index, chunk))
        if telling.reason is None:
            return
        # One that was alone need not be copied to be kept.
        self._let_go(job, member, keep=not self._in_bulk or member.row is None)
        job._ended += 1
        job.is_over = job._ended == job.n
        last = telling.finish(job.prompt, filled, mx.get_peak_memory(), member.speculation)
        events.append(Told(job, index, last))

    def _is_alone(self, running: int) -> bool:
        """Whether nobody comes beside so many running answers."""
        if self._reading is not None or self._ready or len(self._crowd.members) > running:
            return False
        return not self._queue or self._blocked or self.max_running == 1

    def _may_take(self) -> bool:
        """Whether the next in the queue can be read now."""
        has_place = not self._ready and len(self._crowd.members) < self.max_running
        return bool(self._queue) and has_place and not self._blocked

    def _goes_on_reading(self) -> bool:
        return self._reading is not None or self._may_take()

    def _fail(self, job: Job, error: Exception, events: list[Event]) -> None:
        self._remove(job, keep=False)
        events.append(Failed(job, error))

    def _remove(self, job: Job, *, keep: bool) -> None:
        job.is_over = True
        if job in self._queue:
            self._blocked = self._blocked and job is not self._queue[0]
            self._queue.remove(job)
        if job in self._ready:
            self._ready.remove(job)
        if job is self._reading:
            self._reading = None
        for member in list(job._members):
            self._let_go(job, member, keep=keep)
        if job._filling is not None:
            job._filling.close()
        conversation = job._conversation
        job._conversation = job._filled = job._filling = None
        if keep and conversation is not None:
            job.stores.prefixes.put(conversation)

    def _let_go(self, job: Job, member: Member, *, keep: bool) -> None:
        """Take an answer out of the crowd."""
        job._members.remove(member)
        del self._of[id(member)]
        self._blocked = False
        keep = keep and job.stores.prefixes.keeps
        conversation = self._crowd.leave(member, keep=keep)
        if conversation is not None:
            job.stores.prefixes.put(conversation)
