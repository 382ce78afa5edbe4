"""One answer, from a prompt to the last chunk: prefill, decode, text, stops, counts and times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.draft import Draft, DraftModel
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.lookup import SIZE, Lookup
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.pace import MEASURED, Pace
from mlx_qwenvl.engine.prefill import Prefilled, prefill
from mlx_qwenvl.engine.reply import Chunk, FinishReason, Timings, TokenLogprob, Usage
from mlx_qwenvl.engine.sampling import Sampled, Sampler
from mlx_qwenvl.engine.speculate import (
    Rows,
    Source,
    Speculator,
    can_speculate,
    speculate,
    verify_rows,
)
from mlx_qwenvl.engine.stops import StopText
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import StreamDecoder, Tokenizer
from mlx_qwenvl.models.qwen2_vl import Qwen2VL


@dataclass
class Stopwatch:
    """Moments of one call, in `time.perf_counter` seconds.

    Attributes:
        called: When the caller asked.
        load_s: Seconds that loading the model took, before.
        reading_s: Seconds spent opening pictures.
        prefilled: When the prompt's computation began.
        first: When the first token was there.
    """

    load_s: float = 0.0
    reading_s: float = 0.0
    called: float = field(default_factory=time.perf_counter)
    prefilled: float = 0.0
    first: float = 0.0


def answer(
    model: Qwen2VL,
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
    watch.prefilled = time.perf_counter()
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
    decoder, stop = StreamDecoder(tokenizer), StopText(options.stop)
    drawn: list[int] = []
    reason: FinishReason = "length"
    count = 0
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
            token = sampled.token_id
            if not drawn:
                watch.first = time.perf_counter()
            drawn.append(token)
            if token in end_ids:
                if constraint is not None:
                    constraint.check()
                reason = "stop"
                break
            count += 1
            text = stop.feed(decoder.feed(token))
            yield Chunk(text, (token,), _logprobs(sampled))
            if stop.found:
                reason = "stop"
                break
    finally:
        steps.close()  # before the conversation is told what its cache holds
        conversation.extend(drawn)
        if drafting is not None:
            drafting.finish(drawn)
    rest = stop.feed(decoder.finish()) + stop.finish()
    yield Chunk(
        rest,
        finish_reason=reason,
        usage=Usage(prompt.token_ids.size, prompt.image_tokens, filled.cached_tokens, count),
        timings=_timings(watch, prompt, filled, count),
        peak_memory_bytes=mx.get_peak_memory(),
        speculation=None if speculator is None else speculator.figures,
    )


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


def _logprobs(sampled: Sampled) -> tuple[TokenLogprob, ...]:
    if sampled.logprob is None:
        return ()
    top: tuple[tuple[int, float], ...] = ()
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        ids = np.array(sampled.top_tokens).tolist()
        top = tuple(zip(ids, np.array(sampled.top_logprobs).tolist(), strict=True))
    return (TokenLogprob(sampled.token_id, float(np.array(sampled.logprob)), top),)


def _timings(watch: Stopwatch, prompt: Prompt, filled: Prefilled, count: int) -> Timings:
    prefill_s = watch.first - watch.prefilled - filled.vision_s
    decode_s = time.perf_counter() - watch.first
    computed = prompt.token_ids.size - filled.cached_tokens
    return Timings(
        load_s=watch.load_s,
        vision_s=watch.reading_s + filled.vision_s,
        prefill_s=prefill_s,
        time_to_first_token_s=watch.first - watch.called,
        decode_s=decode_s,
        prompt_tokens_per_s=computed / prefill_s if prefill_s > 0 else 0.0,
        completion_tokens_per_s=(count - 1) / decode_s if count > 1 and decode_s > 0 else 0.0,
    )
