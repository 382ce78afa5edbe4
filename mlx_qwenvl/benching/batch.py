"""Several answers in one step: B prompts of equal length, read and decoded side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.options import PREFILL_STEP, Options
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.prompt import build_prompt
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.vlm import QwenVL


def answer_together(vlm: QwenVL, questions: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Answer questions without pictures at once, taking the likeliest tokens.

    Args:
        vlm: The model.
        questions: B questions whose prompts have equally many tokens.
        max_tokens: Tokens of each answer; end tokens end nothing.

    Returns:
        B lists of token ids.

    Raises:
        PromptError: The lengths differ.
    """
    prompts = [
        build_prompt(
            [user_message(question, ())], vlm.template, vlm.tokenizer, vlm.processor.open
        ).token_ids
        for question in questions
    ]
    lengths = sorted({ids.size for ids in prompts})
    if len(lengths) != 1:
        raise PromptError(f"the prompts have {lengths} tokens, expected equally many")
    cache = vlm.model.make_cache()
    logits = prefill_rows(vlm.model, cache, np.stack(prompts))
    steps = decode_rows(vlm.model, cache, logits, max_tokens)
    return [list(row) for row in zip(*steps, strict=True)]


def prefill_rows(model: Model, cache: Sequence[LayerCache], token_ids: np.ndarray) -> mx.array:
    """Read B prompts of text; gives the logits [B, V] of their last tokens.

    Args:
        model: The model.
        cache: One entry a layer, which takes B sequences.
        token_ids: [B, L].
    """
    length = token_ids.shape[1]
    for begin in range(0, length, PREFILL_STEP):
        vectors = model.embed(mx.array(token_ids[:, begin : begin + PREFILL_STEP]))[0]
        hidden = model.model(vectors, cache)
        mx.eval(hidden, [layer.state for layer in cache])
    return model.logits(hidden[:, -1])


def decode_rows(
    model: Model, cache: Sequence[LayerCache], logits: mx.array, max_tokens: int
) -> Iterator[list[int]]:
    """The likeliest tokens of B sequences, one of each a step."""
    nothing = np.empty(0, dtype=np.int32)
    samplers = [Sampler(Options(), row.shape[-1], nothing) for row in logits]
    for drawn in decode(model, cache, logits, samplers, max_tokens):
        yield [one.token_id for one in drawn]
