"""Greedy decoding that verifies proposed tokens, several in one step.

Decoding is bound by reading the weights, so a few tokens more in a step cost little. Proposals
come from the text itself or from a draft model; the model computes them all at once, and those up
to the first that is not its own choice are kept, with its choice behind them. So every step gives
at least the token that plain decoding gives, and the text is the model's own.

"The same tokens" has one limit: a step of several rows sums in another order than a step of one,
so where two logits agree to the last bits of the dtype the other may win, as it may between two
devices.

Where nothing is proposed the loop is the plain one, with the device a token ahead. A proposal makes
it wait for the token that is under way, and only if that token was foreseen too is the rest
verified. `Pace` measures what this brings and asks for longer matches where it brought nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_qwenvl.engine.decode import CLEAR_EVERY, decode_step
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.pace import Pace, Proposer
from mlx_qwenvl.engine.reply import Speculation
from mlx_qwenvl.engine.sampling import Sampled, Sampler, draw
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.linear import DequantizingLinear
from mlx_qwenvl.models.model import Model

FUSED_ROWS = 32  # queries that share a key-value head, up to which Metal's decode attention serves
CPU_ROWS = 8  # twice the time of one row; more cost more
DEQUANTIZING_ROWS = (8, 16)  # the CPU's time no longer grows from `FEW_ROWS` on, at 4 to 6 steps


@dataclass(frozen=True)
class Rows:
    """Tokens of one verifying step, the one before the proposal included; least to most."""

    least: int
    most: int


def verify_rows(model: Model) -> Rows:
    """How many tokens to verify at once, by device and kind of weights.

    On a GPU as many as keep attention on the path that decoding takes: 5 for the 2B, 4 for the 7B
    and the 72B. MLX's CPU backend multiplies a quantized matrix row by row up to `FEW_ROWS` rows,
    so that two rows cost twice as much as one; from there on it dequantizes the matrix once. There
    a proposal has to be long to pay.
    """
    text = model.config.text
    if mx.default_device() != mx.cpu:
        most = FUSED_ROWS * text.num_key_value_heads // text.num_attention_heads
        return Rows(2, most)
    dequantizes = any(
        isinstance(module, DequantizingLinear) for module in model.layers[0].modules()
    )
    return Rows(*DEQUANTIZING_ROWS) if dequantizes else Rows(2, CPU_ROWS)


def can_speculate(options: Options, cache: Sequence[LayerCache]) -> bool:
    """Whether the next token depends on the text alone: greedy, no grammar, no counting penalty."""
    sampling = options.sampling
    counts = sampling.presence_penalty or sampling.frequency_penalty
    return (
        options.speculation
        and options.grammar is None
        and sampling.is_greedy
        and sampling.repetition_penalty == 1
        and not counts
        and all(layer.is_trimmable() for layer in cache)
    )


@dataclass
class Source:
    """A proposer and how well it does."""

    proposer: Proposer
    pace: Pace

    @property
    def is_worth_it(self) -> bool:
        """Whether a proposal may be asked for."""
        return self.proposer.confidence >= self.pace.needed


@dataclass
class Speculator:
    """What one answer's speculation works with, and what came of it.

    Attributes:
        sources: In the order in which they are asked.
        rows: Tokens of a verifying step.
        clock: Tells seconds.
        proposed: Tokens proposed so far.
        accepted: Those of them that became part of the answer.
        rounds: Steps that verified them.
    """

    sources: Sequence[Source]
    rows: Rows
    clock: Callable[[], float] = time.perf_counter
    proposed: int = 0
    accepted: int = 0
    rounds: int = 0
    _awaited: list[Source] = field(default_factory=list, init=False)

    def prepare(self) -> None:
        """Prepare all sources."""
        for source in self.sources:
            source.proposer.prepare()

    def append(self, tokens: Sequence[int]) -> None:
        """Tell all sources the answer's next tokens."""
        for source in self.sources:
            for token in tokens:
                source.proposer.append(token)

    def plain(self, seconds: float) -> None:
        """Note how long a plain step took."""
        for source in self.sources:
            source.pace.plain(seconds)

    @property
    def figures(self) -> Speculation:
        """What came of it so far."""
        return Speculation(self.proposed, self.accepted, self.rounds)

    def verified(self, source: Source, proposed: int, right: int, seconds: float) -> None:
        """Note a verifying step.

        Args:
            source: Whose proposal it was.
            proposed: The proposal's tokens.
            right: Those of them that the model would have chosen.
            seconds: What the step took.
        """
        source.pace.round(seconds, right + 1)
        source.proposer.learn(proposed, right)
        self.proposed += proposed
        self.accepted += right
        self.rounds += 1

    def missed(self) -> None:
        """Note that a token was waited for in vain."""
        for source in self._awaited:
            source.pace.lost()

    def is_waiting(self, room: int) -> bool:
        """Whether the value of the token under way is worth waiting for.

        Args:
            room: Tokens that may follow it.
        """
        enough = room >= self.rows.least
        self._awaited = [source for source in self.sources if enough and source.is_worth_it]
        return bool(self._awaited)

    def propose(self, room: int) -> tuple[Source | None, list[int]]:
        """The first proposal that fills a step, and whose it is; `room` tokens may follow."""
        for source in self.sources:
            if source.is_worth_it and room >= self.rows.least:
                proposal = source.proposer.propose(min(room, self.rows.most) - 1)
                if len(proposal) + 1 >= self.rows.least:
                    return source, proposal
        return None, []


def speculate(
    model: Model,
    cache: Sequence[LayerCache],
    logits: mx.array,
    sampler: Sampler,
    max_tokens: int,
    speculator: Speculator,
) -> Generator[list[Sampled], None, None]:
    """Tokens of one sequence, as `decode` gives them.

    Args:
        model: The model.
        cache: Holds the prompt. When the caller stops it holds what plain decoding leaves there:
            the prompt and the tokens heard, without the last of `max_tokens`.
        logits: [1, V] of the prompt's last token.
        sampler: Greedy, and the same for every token.
        max_tokens: Tokens to give at most.
        speculator: Proposes.
    """
    prompt_length, heard = cache[0].offset, 0
    try:
        for sampled in _tokens(model, cache, logits, sampler, max_tokens, speculator):
            heard += 1
            yield [sampled]
    finally:
        for layer in cache:
            layer.trim(max(0, layer.offset - prompt_length - heard))


def _tokens(
    model: Model,
    cache: Sequence[LayerCache],
    logits: mx.array,
    sampler: Sampler,
    max_tokens: int,
    speculator: Speculator,
) -> Iterator[Sampled]:
    """The loop of `speculate`; it may have fed more than it gave."""
    (current,) = draw(logits, [sampler], model.ops)
    mx.async_eval(current.arrays)
    index = 0  # of `current` in the answer
    is_known = False  # whether its value was waited for
    is_timed = False  # whether the time since `before` will be that of one plain step
    before, cleared = 0.0, 0
    kept: list[Sampled] = []  # known and not given yet, so that the device works meanwhile
    while True:
        room = max_tokens - index - 1  # tokens that may follow
        is_plain = not is_known and (index == 0 or not speculator.is_waiting(room))
        if not is_plain and not is_known:
            mx.eval(current.arrays)
            speculator.append([current.token_id])
            before = speculator.clock()
        source, proposal = (None, []) if is_plain else speculator.propose(cache[0].revocable(room))
        if source is not None:
            rows = _verify(model, cache, current, proposal, sampler)
            yield from kept
            ids = [current.token_id, *_values(rows)]
            right = _common(proposal, ids[1:])
            for layer in cache:
                layer.trim(len(proposal) - right)
            kept, current = [current, *rows[:right]], rows[right]
            index, is_known, is_timed = index + right + 1, True, False
            speculator.append(ids[1 : right + 2])
            now = speculator.clock()
            speculator.verified(source, len(proposal), right, now - before)
            before = now
        else:
            if not is_plain and not is_known:
                speculator.missed()
            following = None
            if room:
                (following,) = decode_step(model, cache, [current.token], [sampler])
                mx.async_eval(following.arrays)
            yield from kept
            kept = []
            if is_plain:
                mx.eval(current.arrays)
                speculator.append([current.token_id])
                now = speculator.clock()
                if is_timed:
                    speculator.plain(now - before)
                before = now
            yield current
            if following is None:
                return
            if index == 0:
                speculator.prepare()
            is_timed = is_plain and index > 1
            current, index, is_known = following, index + 1, False
        if index // CLEAR_EVERY > cleared:
            mx.clear_cache()
            cleared = index // CLEAR_EVERY


def _verify(
    model: Model,
    cache: Sequence[LayerCache],
    current: Sampled,
    proposal: Sequence[int],
    sampler: Sampler,
) -> list[Sampled]:
    """The model's choices behind `current` and each proposed token; nothing is waited for."""
    inputs = mx.array([[current.token_id, *proposal]])
    rows = draw(model(inputs, cache)[0], [sampler] * (len(proposal) + 1), model.ops)
    mx.async_eval([row.arrays for row in rows])
    return rows


def _values(rows: Sequence[Sampled]) -> list[int]:
    """The tokens as numbers; waits for all that was drawn."""
    mx.eval([row.arrays for row in rows])
    return [row.token_id for row in rows]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens agree from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
