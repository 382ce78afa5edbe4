"""Drawing a token from one sequence's logits, on the device and without waiting for it.

Every sequence has a sampler of its own, so a batch may mix settings and seeds freely.

V is the vocabulary's size.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.options import Options


class Sampled(NamedTuple):
    """One drawn token; the arrays may still be under way.

    Attributes:
        token: Its id, a scalar.
        logprob: Its log-probability under the model, a scalar, or None where not asked for.
        top_tokens: The likeliest ids [n], likeliest first, or None.
        top_logprobs: Their log-probabilities [n], or None.
    """

    token: mx.array
    logprob: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None

    @property
    def token_id(self) -> int:
        """The token as a number; waits for it."""
        return int(np.array(self.token))

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated."""
        return [array for array in self if array is not None]


class Sampler:
    """Draws the tokens of one answer.

    Args:
        options: The call's.
        vocabulary: V.
        prompt_ids: The prompt [L], which the repetition penalty counts too.
    """

    def __init__(self, options: Options, vocabulary: int, prompt_ids: np.ndarray) -> None:
        self._options = options
        self._sampling = sampling = options.sampling
        seed = secrets.randbits(63) if options.seed is None else options.seed % 2**64
        self._key = mx.random.key(seed)
        self._bias = _dense_bias(options, vocabulary)
        self._counts: mx.array | None = None
        self._prompt: mx.array | None = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = mx.zeros(vocabulary)
        if sampling.repetition_penalty != 1:
            self._counts = mx.zeros(vocabulary)
            in_prompt = np.zeros(vocabulary, dtype=bool)
            in_prompt[prompt_ids] = True
            self._prompt = mx.array(in_prompt)

    def __call__(self, logits: mx.array) -> Sampled:
        """Draw from logits [V]."""
        raw = logits.astype(mx.float32)
        token = self._draw(self._penalized(raw))
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1)
        if not self._options.logprobs:
            return Sampled(token)
        logprobs = raw - mx.logsumexp(raw)
        count = self._options.top_logprobs
        if count == 0:
            return Sampled(token, logprobs[token])
        top = mx.argpartition(-logprobs, kth=count - 1)[:count]
        top = top[mx.argsort(-logprobs[top])]
        return Sampled(token, logprobs[token], top, logprobs[top])

    def _penalized(self, logits: mx.array) -> mx.array:
        sampling = self._sampling
        if self._bias is not None:
            logits = logits + self._bias
        if self._counts is None:
            return logits
        answered = self._counts > 0
        if self._prompt is not None:
            penalty = sampling.repetition_penalty
            penalized = mx.where(logits > 0, logits / penalty, logits * penalty)
            logits = mx.where(answered | self._prompt, penalized, logits)
        logits = logits - sampling.frequency_penalty * self._counts
        return logits - sampling.presence_penalty * answered

    def _draw(self, logits: mx.array) -> mx.array:
        sampling = self._sampling
        if sampling.is_greedy:
            return mx.argmax(logits)
        logits = logits / sampling.temperature
        self._key, key = mx.random.split(self._key)
        if not (sampling.top_k or sampling.top_p < 1 or sampling.min_p):
            return mx.random.categorical(logits, key=key)
        order = mx.argsort(-logits)
        kept = keep_likeliest(logits[order], sampling.top_k, sampling.top_p, sampling.min_p)
        return order[mx.random.categorical(kept, key=key)]


def keep_likeliest(logits: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Sorted logits with all but the kept ones at minus infinity; the likeliest always stays.

    Args:
        logits: [V], largest first.
        top_k: Keep the first k; 0 for all.
        top_p: Keep those before which less than p has been reached, after top-k.
        min_p: Keep those at least this fraction as likely as the first, after both.
    """
    rank = mx.arange(logits.shape[-1])
    keep = rank < (top_k or logits.shape[-1])
    logits = mx.where(keep, logits, -mx.inf)
    if top_p < 1:
        probabilities = mx.softmax(logits)
        before = mx.cumsum(probabilities) - probabilities
        logits = mx.where((before < top_p) | (rank == 0), logits, -mx.inf)
    if min_p > 0:
        logits = mx.where(logits >= logits[0] + float(np.log(min_p)), logits, -mx.inf)
    return logits


def _dense_bias(options: Options, vocabulary: int) -> mx.array | None:
    from mlx_qwenvl.errors import OptionError

    if not options.logit_bias:
        return None
    bias = np.zeros(vocabulary, dtype=np.float32)
    for token, value in options.logit_bias.items():
        if token >= vocabulary:
            raise OptionError(f"logit_bias names token {token}, the vocabulary has {vocabulary}")
        bias[token] = value
    return mx.array(bias)
