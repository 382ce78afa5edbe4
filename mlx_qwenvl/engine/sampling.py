"""Drawing the next token of each sequence, on the device and without waiting for it.

Every sequence has a sampler of its own, so a batch may mix settings and seeds freely. Penalties,
bias and temperature make probabilities of the logits here; which of them are kept and what is drawn
is defined in `kernels/sample.py`. A batch that is greedy takes the likeliest tokens.

B counts sequences, V is the vocabulary's size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.options import Options, Sampling
from mlx_qwenvl.errors import NotFinite, OptionError
from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.kernels.sample import NO_TOKEN, Filters

COLDEST = 2.0**-40  # temperature at which only the likeliest token has a probability
KEEP_ALL = 2**31  # as top-k: more than any vocabulary has


class Sampled(NamedTuple):
    """One drawn token; the arrays may still be under way.

    Attributes:
        token: Its id, a scalar.
        logprob: Its log-probability under the model, a scalar, or None where not asked for.
        top_tokens: The likeliest ids [n], likeliest first, or None.
        top_logprobs: Their log-probabilities [n], or None.
        witness: One of the model's logits [1, 1] where the likeliest was taken, which is a token
            also where all of them are NaN.
    """

    token: mx.array
    logprob: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None
    witness: mx.array | None = None

    @property
    def token_id(self) -> int:
        """The token as a number; waits for it.

        Raises:
            NotFinite: There was nothing to draw from.
        """
        token = int(np.array(self.token))
        lost = self.witness is not None and not math.isfinite(float(np.array(self.witness)[0, 0]))
        if lost or token == NO_TOKEN:
            raise NotFinite("the model computed NaN or infinity, expected logits")
        return token

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated."""
        return [array for array in self if array is not None]


class Sampler:
    """What the tokens of one answer are drawn by: settings, counts and chance.

    Args:
        options: The call's.
        vocabulary: V.
        prompt_ids: The prompt [L], which the repetition penalty counts too.
        constraint: What the answer has to keep to, or None.

    Attributes:
        options: As given.
        constraint: As given. Every draw but the first waits for the token of the one before, so
            the step between them should be under way by then.
        is_greedy: Whether it always takes the likeliest token.
        adjusts: Whether it has a constraint, a bias or a penalty.
    """

    def __init__(
        self,
        options: Options,
        vocabulary: int,
        prompt_ids: np.ndarray,
        constraint: Constraint | None = None,
    ) -> None:
        self.options = options
        self.constraint = constraint
        self._awaited: mx.array | None = None
        self.is_greedy = options.sampling.is_greedy
        self._random = random.Random(None if options.seed is None else options.seed % 2**64)
        self._bias = _dense_bias(options, vocabulary)
        self._counts: mx.array | None = None
        self._prompt: mx.array | None = None
        sampling = options.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = mx.zeros(vocabulary)
        if sampling.repetition_penalty != 1:
            self._counts = mx.zeros(vocabulary)
            in_prompt = np.zeros(vocabulary, dtype=bool)
            in_prompt[prompt_ids] = True
            self._prompt = mx.array(in_prompt)
        self.adjusts = not (constraint is None and self._bias is None and self._counts is None)

    def adjusted(self, logits: mx.array) -> mx.array:
        """Logits [V] float32 of what may come, with bias and penalties."""
        sampling = self.options.sampling
        if self.constraint is not None:
            logits = mx.where(self._allowed(self.constraint), logits, -mx.inf)
        if self._bias is not None:
            logits = logits + self._bias
        if self._counts is None:
            return logits
        answered = self._counts > 0
        if self._prompt is not None:
            penalty = sampling.repetition_penalty
            penalized = mx.where(logits > 0, logits / penalty, logits * penalty)
            logits = mx.where(answered | self._prompt, penalized, logits)
        if sampling.frequency_penalty:
            logits = logits - sampling.frequency_penalty * self._counts
        if sampling.presence_penalty:
            logits = logits - sampling.presence_penalty * answered
        return logits

    def _allowed(self, constraint: Constraint) -> mx.array:
        """Tokens that may be drawn now, bool [V]; waits for the last one drawn."""
        if self._awaited is not None:
            constraint.accept(int(np.array(self._awaited)))
            self._awaited = None
        return constraint.mask()

    def count(self, token: mx.array) -> None:
        """Take note of a drawn token, for the constraint and the penalties."""
        if self.constraint is not None:
            self._awaited = token
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1)

    def chance(self) -> int:
        """The next of the seed's numbers, in 0..2^32 - 1.

        They depend on the seed alone: it gives the same tokens alone and beside others.
        """
        return self._random.getrandbits(32)


def draw(logits: mx.array, samplers: Sequence[Sampler], ops: Ops) -> list[Sampled]:
    """Draw one token for each row of logits [B, V]."""
    raw = logits.astype(mx.float32)
    adjusted = raw
    if any(sampler.adjusts for sampler in samplers):
        rows = [sampler.adjusted(row) for sampler, row in zip(samplers, raw, strict=True)]
        adjusted = mx.stack(rows) if len(rows) > 1 else rows[0][None]  # spares a copy
    takes_likeliest = all(sampler.is_greedy for sampler in samplers)
    if takes_likeliest:
        tokens = mx.argmax(adjusted, axis=-1)
    else:
        scale, filters = settings_of(tuple(sampler.options.sampling for sampler in samplers))
        chance = mx.array([[sampler.chance()] for sampler in samplers], dtype=mx.uint64)
        tokens = ops.sample(mx.softmax(adjusted * scale, axis=-1), chance, filters)
    if ops.of_first is not None:
        # Chips round differently, and one other token would be the end of the common way.
        tokens = ops.of_first(tokens)
    drawn = []
    for i, (sampler, token) in enumerate(zip(samplers, tokens, strict=True)):
        sampler.count(token)
        options = sampler.options
        witness = raw[i : i + 1, :1] if takes_likeliest else None  # a view; raw[i] is a launch
        if options.logprobs:
            row = raw[i : i + 1].reshape(-1)
            drawn.append(_with_logprobs(token, row, options.top_logprobs, witness))
        else:
            drawn.append(Sampled(token, witness=witness))
    return drawn


@lru_cache(maxsize=64)
def settings_of(samplings: tuple[Sampling, ...]) -> tuple[mx.array, Filters]:
    """What the device wants to know of each row; made once, since it stays from step to step.

    Returns:
        1 / temperature [B, 1] float32, and what is kept. A greedy row is one that is cold.
    """
    greedy = Sampling(temperature=0, top_k=1)
    rows = [greedy if one.is_greedy else one for one in samplings]
    top_k = [[one.top_k or KEEP_ALL] for one in rows]
    beyond = [[min(round((1 - one.top_p) * 2**32), 2**32 - 1)] for one in rows]
    filters = Filters(
        top_k=mx.array(top_k, dtype=mx.uint32),
        beyond=mx.array(beyond, dtype=mx.uint64),
        min_p=mx.array([[one.min_p] for one in rows], dtype=mx.float32),
        with_k=any(one.top_k for one in rows),
        with_p=any(share > 0 for (share,) in beyond),
        with_floor=any(one.min_p for one in rows),
    )
    scale = [[1 / max(one.temperature, COLDEST)] for one in rows]
    return mx.array(scale, dtype=mx.float32), filters


def _with_logprobs(token: mx.array, raw: mx.array, count: int, witness: mx.array | None) -> Sampled:
    """A token drawn from raw logits [V], with the model's own log-probabilities."""
    logprobs = raw - mx.logsumexp(raw)
    if count == 0:
        return Sampled(token, logprobs[token], witness=witness)
    top = mx.argpartition(-logprobs, kth=count - 1)[:count]
    top = top[mx.argsort(-logprobs[top])]
    return Sampled(token, logprobs[token], top, logprobs[top], witness)


def _dense_bias(options: Options, vocabulary: int) -> mx.array | None:
    if not options.logit_bias:
        return None
    bias = np.zeros(vocabulary, dtype=np.float32)
    for token, value in options.logit_bias.items():
        if token >= vocabulary:
            raise OptionError(
                f"logit_bias names token {token}, the vocabulary has {vocabulary}", "logit_bias"
            )
        bias[token] = value
    return mx.array(bias)
