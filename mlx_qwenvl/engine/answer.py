"""One answer, from a prompt to the last chunk, with the model to itself."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.draft import Draft, DraftModel
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.lookup import SIZE, Lookup
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.pace import MEASURED, Pace
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.engine.speculate import (
    Rows,
    Source,
    Speculator,
    can_speculate,
    speculate,
    verify_rows,
)
from mlx_qwenvl.engine.telling import Stopwatch, Telling
from mlx_qwenvl.engine.thinking import Thoughts
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.models.model import Model

__all__ = ["Stopwatch", "answer", "sources"]


def answer(
    model: Model,
    tokenizer: Tokenizer,
    conversation: Conversation,
    prompt: Prompt,
    store: FeatureStore,
    options: Options,
    end_ids: frozenset[int],
    watch: Stopwatch,
    draft: DraftModel | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Chunk]:
    """Answer a prompt.

    Args:
        model: The model.
        tokenizer: Its vocabulary.
        conversation: What of the conversation is computed already; kept up to date, also when the
            caller stops listening.
        prompt: The whole conversation.
        store: Features of pictures seen before.
        options: The call's.
        end_ids: Tokens that end an answer.
        watch: Started by the caller.
        draft: A model that proposes tokens.
        constraint: What the options' grammar lets through.

    Yields:
        A chunk a token, then one with the finish reason and the figures.

    Raises:
        OptionError: The grammar became too complex on the way.
    """
    mx.reset_peak_memory()
    filled = prefill(
        model,
        conversation,
        prompt,
        step=options.prefill_step,
        store=store,
        on_prefill=options.on_prefill,
    )
    logits = filled.logits[:, -1]
    sampler = Sampler(options, logits.shape[-1], prompt.token_ids, constraint)
    thoughts = Thoughts.of(tokenizer, prompt, constraint)
    telling = Telling(tokenizer, options, end_ids, watch, constraint, model.points_in, thoughts)
    cache, most = conversation.cache, options.max_tokens
    rows = verify_rows(model)
    drafting = None
    if draft is not None:
        drafting = Draft(draft, prompt, logits.shape[-1], options, rows.least - 1)
    speculator = None
    if can_speculate(options, cache):
        speculator = Speculator(sources(prompt, drafting, rows), rows)
        steps = speculate(model, cache, logits, sampler, most, speculator)
    else:
        steps = decode(model, cache, logits, [sampler], most)
    try:
        for (sampled,) in steps:
            chunk = telling.hear(sampled)
            if chunk is not None:
                yield chunk
            if telling.reason is not None:
                break
    finally:
        steps.close()  # before the conversation is told what its cache holds
        conversation.extend(telling.drawn)
        if drafting is not None:
            drafting.finish(telling.drawn)
    figures = None if speculator is None else speculator.figures
    yield telling.finish(prompt, filled, mx.get_peak_memory(), figures)


def sources(prompt: Prompt, drafting: Draft | None, rows: Rows) -> list[Source]:
    """Who proposes: the text first, which is right more often and costs nothing.

    Args:
        prompt: The whole conversation.
        drafting: A draft of the answer.
        rows: Tokens of a verifying step.
    """
    # What is waited for and comes as foreseen adds one to the match, which then fills a step.
    least = max(SIZE, rows.least - 2)
    found = [Source(Lookup(prompt), Pace(least, first=least))]
    if drafting is not None:
        # It waits until plain steps were timed, or what it costs would not be known.
        found.append(Source(drafting, Pace(least=0, first=MEASURED + 2, growth=4)))
    return found
