"""The decode loop: one token for each running sequence, again and again.

The step is written for B sequences: weights are read once for all of them, and every sequence
draws with its own sampler. The device works on the next token while Python deals with this one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import mlx.core as mx

from mlx_qwenvl.engine.sampling import Sampled, Sampler, draw
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.model import Model

CLEAR_EVERY = 256  # tokens between returns of freed buffers to the system


def decode_step(
    model: Model,
    cache: Sequence[LayerCache],
    tokens: Sequence[mx.array],
    samplers: Sequence[Sampler],
) -> list[Sampled]:
    """Feed one token for each of B sequences and draw the next ones.

    Nothing is waited for, but `tokens` where a sampler has a constraint.

    Args:
        model: The model.
        cache: One entry a layer, each for B sequences.
        tokens: B scalars.
        samplers: B samplers.
    """
    inputs = mx.stack(list(tokens))[:, None]
    logits = model(inputs, cache)[:, -1]
    if any(sampler.constraint is not None for sampler in samplers):
        mx.async_eval(logits)  # the device is at work while the host finds out what may come
    return draw(logits, samplers, model.ops)


def decode(
    model: Model,
    cache: Sequence[LayerCache],
    logits: mx.array,
    samplers: Sequence[Sampler],
    max_tokens: int,
) -> Generator[list[Sampled], None, None]:
    """Tokens of B sequences, step by step.

    Args:
        model: The model.
        cache: Holds the prompts.
        logits: [B, V] of the prompts' last tokens.
        samplers: B samplers.
        max_tokens: Steps to take at most.

    Yields:
        One evaluated token a sequence. By then the next step is under way, so the cache is one
        token ahead unless this is the last.
    """
    current = draw(logits, samplers, model.ops)
    _start(current)
    for index in range(max_tokens):
        following = None
        if index + 1 < max_tokens:
            following = decode_step(model, cache, [drawn.token for drawn in current], samplers)
            _start(following)
        mx.eval([drawn.arrays for drawn in current])
        yield current
        if following is None:
            return
        current = following
        if index % CLEAR_EVERY == CLEAR_EVERY - 1:
            mx.clear_cache()


def _start(drawn: Sequence[Sampled]) -> None:
    mx.async_eval([one.arrays for one in drawn])
