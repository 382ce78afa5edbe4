"""Answers that are decoded together: one step gives each of them a token.

Weights are read once a step for all of them. One that is alone works in its conversation's own
cache, with proposals where it is greedy, exactly as `answer` does; when a second one comes it moves
to a slot of the shared cache, and back when it is alone again. Neither loses or repeats a draw.

The graph of a step is made while the device is at work with the one before, and handed over when
that one is done: handed over earlier, it would find the shared arrays in use and copy them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.engine.answer import sources
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import CLEAR_EVERY, decode_step
from mlx_qwenvl.engine.draft import Draft
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import Prefilled
from mlx_qwenvl.engine.reply import Speculation
from mlx_qwenvl.engine.sampling import Sampled, Sampler, draw
from mlx_qwenvl.engine.speculate import Speculator, can_speculate, speculate, verify_rows
from mlx_qwenvl.engine.telling import Telling
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.batch_cache import BatchCache, Row
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.quantized_cache import KVFormat


@dataclass(eq=False)
class Member:
    """One answer that is being decoded.

    Attributes:
        prompt: What is answered.
        options: The call's.
        sampler: Its own.
        telling: What came of it so far.
        kv: How its keys and values are kept.
        conversation: Where it works alone; None while it has a row.
        filled: What the prompt's computation left.
        drafting: A draft's view of it.
        current: The token drawn last, which is in no cache yet.
        is_told: Whether that one was given already.
        row: Its place among others.
        speculator: What its proposals come from; None where there are none.
        steps: Its tokens, while proposals are verified.
    """

    prompt: Prompt
    options: Options
    sampler: Sampler
    telling: Telling
    kv: KVFormat
    conversation: Conversation | None
    filled: Prefilled
    drafting: Draft | None = None
    current: Sampled | None = None
    is_told: bool = False
    row: Row | None = None
    speculator: Speculator | None = None
    steps: Generator[list[Sampled], None, None] | None = None

    @property
    def length(self) -> int:
        """Tokens in its cache."""
        if self.row is not None:
            return self.row.length
        return 0 if self.conversation is None else self.conversation.length

    @property
    def is_last(self) -> bool:
        """Whether `current` is as many tokens as it may have."""
        drawn = len(self.telling.drawn) + (not self.is_told)
        return self.current is not None and drawn >= self.options.max_tokens

    @property
    def speculation(self) -> Speculation | None:
        """What its proposals brought."""
        return None if self.speculator is None else self.speculator.figures

    def now(self, model: Model) -> Sampled:
        """The token drawn last, under way at least; the first one is drawn here."""
        if self.current is None:
            (self.current,) = draw(self.filled.logits[:, -1], [self.sampler], model.ops)
            mx.async_eval(self.current.arrays)
        return self.current


class Crowd:
    """The answers that are being decoded.

    Args:
        model: The model.
        on_token: Called when the tokens of a step are there, before the next is handed over.
        clock: Tells seconds, by which proposals are made or not.
    """

    def __init__(
        self,
        model: Model,
        on_token: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._on_token, self._clock = model, on_token, clock
        self._cache = BatchCache(len(model.layers))
        self._steps = 0
        self.members: list[Member] = []

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, spare room included."""
        own = [member.conversation for member in self.members]
        return self._cache.nbytes + sum(one.nbytes for one in own if one is not None)

    @property
    def tokens(self) -> int:
        """Tokens that are held."""
        return sum(member.length for member in self.members)

    def join(self, member: Member, *, is_alone: bool) -> None:
        """Take in an answer whose prompt is computed.

        Args:
            member: The answer.
            is_alone: Whether nobody else is there or about to come. Elsewhere it gets a row now,
                and its conversation is free.
        """
        self.members.append(member)
        if not is_alone:
            self._to_row(member)

    def leave(self, member: Member, *, keep: bool) -> Conversation | None:
        """Let an answer go.

        Args:
            member: The answer.
            keep: Whether its conversation is wanted, as far as it was told.
        """
        self.members.remove(member)
        if member.steps is not None:
            member.steps.close()
        _end_draft(member)
        if member.row is not None:
            self._settle()
            if keep:
                self._copy_out(member)
            self._cache.leave(member.row)
        kept = member.conversation
        if not keep or kept is None:
            return None
        kept.extend(member.telling.drawn)
        return kept

    def step(self, *, is_alone: bool) -> list[tuple[Member, Sampled]]:
        """The next token of each answer, evaluated.

        Args:
            is_alone: Whether nobody else is about to come, where there is one answer.
        """
        self._steps += 1
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()
        if len(self.members) == 1 and is_alone:
            return self._step_alone(self.members[0])
        for member in self.members:
            if member.row is None and not member.is_last:
                self._to_row(member)
        return self._step_together()

    def _step_together(self) -> list[tuple[Member, Sampled]]:
        told = [(m, m.now(self._model)) for m in self.members if not m.is_told]
        if self._cache.moves():
            self._settle()
        self._cache.begin_step()
        of_row = {id(member.row): member for member in self.members}
        order = [of_row[id(row)] for row in self._cache.rows]
        following = self._following(self._cache.layers, order) if order else []
        mx.eval([sampled.arrays for _, sampled in told])
        self._on_token()
        mx.async_eval([sampled.arrays for sampled in following])
        for member, sampled in zip(order, following, strict=True):
            member.current, member.is_told = sampled, False
        return told

    def _following(self, cache: Sequence[LayerCache], order: Sequence[Member]) -> list[Sampled]:
        """What is drawn behind each answer's `current`; nothing is handed to the device.

        A constraint wants to know `current` before it lets anything be drawn. There the device is
        given the step without the draw, and the host finds out what may come meanwhile.
        """
        now = [member.now(self._model) for member in order]
        samplers = [member.sampler for member in order]
        logits = self._model(mx.stack([s.token for s in now])[:, None], cache)[:, -1]
        if any(sampler.constraint is not None for sampler in samplers):
            mx.eval([sampled.arrays for sampled in now])
            mx.async_eval(logits)
        return draw(logits, samplers, self._model.ops)

    def _step_alone(self, member: Member) -> list[tuple[Member, Sampled]]:
        if member.row is not None:
            self._settle()
            self._copy_out(member)
            self._cache.leave(member.row)
            member.row = None
        assert member.conversation is not None, "one without a row has a conversation"
        cache = member.conversation.cache
        told: list[tuple[Member, Sampled]] = []
        if member.steps is None and can_speculate(member.options, cache) and not member.is_last:
            told = self._speculate(member, cache)
            if told:
                return told
        if member.steps is not None:
            (sampled,) = next(member.steps)
            return [(member, sampled)]
        current, following = member.now(self._model), None
        if not member.is_last:
            (following,) = decode_step(self._model, cache, [current.token], [member.sampler])
            mx.async_eval(following.arrays)
        mx.eval(current.arrays)
        if not member.is_told:
            told = [(member, current)]
        member.current, member.is_told = following, False
        return told

    def _speculate(
        self, member: Member, cache: Sequence[LayerCache]
    ) -> list[tuple[Member, Sampled]]:
        """Begin to verify proposals; give what was drawn before and not told yet."""
        rows, before = verify_rows(self._model), member.speculator
        speculator = Speculator(sources(member.prompt, member.drafting, rows), rows, self._clock)
        if before is not None:
            speculator.proposed, speculator.accepted = before.proposed, before.accepted
            speculator.rounds = before.rounds
        logits, most = member.filled.logits[:, -1], member.options.max_tokens
        told: list[tuple[Member, Sampled]] = []
        if member.current is not None:
            mx.eval(member.current.arrays)
            if not member.is_told:
                told = [(member, member.current)]
            drawn = [*member.telling.drawn, *(sampled.token_id for _, sampled in told)]
            speculator.append(drawn)
            most -= len(drawn)
            logits = self._model(member.current.token[None, None], cache)[:, -1]
            member.current = None
        member.speculator = speculator
        member.steps = speculate(self._model, cache, logits, member.sampler, most, speculator)
        return told

    def _to_row(self, member: Member) -> None:
        """Give an answer a place among others; its own cache is let go."""
        conversation = member.conversation
        assert conversation is not None, "one without a row has a conversation"
        self._settle()
        if member.steps is not None:
            member.steps.close()
            member.steps = None
            _end_draft(member)
            drawn = member.telling.drawn
            if drawn:
                # The token under way is drawn again, which is the same where this is allowed.
                fed = member.prompt.token_ids.size + len(drawn) - 1
                for layer in conversation.cache:
                    layer.trim(layer.offset - fed)
                member.current, member.is_told = Sampled(mx.array(drawn[-1], mx.uint32)), True
        member.row = self._cache.join(conversation.cache)
        member.conversation = None

    def _copy_out(self, member: Member) -> None:
        assert member.row is not None, "one with a row"
        cache = self._cache.copied(member.row)
        member.conversation = Conversation.of(cache, member.prompt, member.kv)

    def _settle(self) -> None:
        """Wait for all that is under way, so that nothing but this holds the shared arrays."""
        mx.eval([m.current.arrays for m in self.members if m.current is not None])


def _end_draft(member: Member) -> None:
    """Keep what a draft has read; it does not come back, since it heard nothing of a crowd."""
    if member.drafting is not None:
        member.drafting.finish(member.telling.drawn)
        member.drafting = None
