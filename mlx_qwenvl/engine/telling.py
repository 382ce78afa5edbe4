"""From drawn tokens to the chunks of one answer: text, stop texts, counts and times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import Prefilled
from mlx_qwenvl.engine.reply import (
    Chunk,
    FinishReason,
    Speculation,
    Timings,
    TokenLogprob,
    Usage,
)
from mlx_qwenvl.engine.sampling import Sampled
from mlx_qwenvl.engine.stops import StopText
from mlx_qwenvl.engine.thinking import Thoughts
from mlx_qwenvl.grounding.frame import Unit
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import StreamDecoder, Tokenizer
from mlx_qwenvl.inputs.video import VideoPatches


@dataclass
class Stopwatch:
    """Moments of one call, in `time.perf_counter` seconds.

    Attributes:
        called: When the caller asked.
        load_s: Seconds that loading the model took, before.
        reading_s: Seconds spent opening pictures.
        first: When the first token was there.
    """

    load_s: float = 0.0
    reading_s: float = 0.0
    called: float = field(default_factory=time.perf_counter)
    first: float = 0.0


class Telling:
    """One answer while it is told.

    Args:
        tokenizer: The model's vocabulary.
        options: The call's.
        end_ids: Tokens that end an answer.
        watch: The call's; its first token is noted here.
        constraint: What the answer keeps to, or None.
        unit: What the model counts in where it points at pictures.
        thoughts: Tells thoughts from the answer; None where the model has none.

    Attributes:
        drawn: The tokens so far, with the one that ended it.
        reason: Why it is over; None while it is not.
        watch: As given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: Options,
        end_ids: frozenset[int],
        watch: Stopwatch,
        constraint: Constraint | None = None,
        unit: Unit = "thousandths",
        thoughts: Thoughts | None = None,
    ) -> None:
        self._unit = unit
        self._thoughts = thoughts
        self._most = options.max_tokens
        self._end_ids = end_ids
        self._constraint = constraint
        self._decoder, self._stop = StreamDecoder(tokenizer), StopText(options.stop)
        self._count = self._thought = 0
        self.watch = watch
        self.drawn: list[int] = []
        self.reason: FinishReason | None = None

    def hear(self, sampled: Sampled) -> Chunk | None:
        """The next token's chunk, or None for a token that ends the answer.

        Raises:
            QwenVLError: There was nothing to draw from, or the grammar could not be followed.
        """
        token = sampled.token_id
        if not self.drawn:
            self.watch.first = time.perf_counter()
        self.drawn.append(token)
        if token in self._end_ids:
            if self._constraint is not None:
                self._constraint.check()
            self.reason = "stop"
            return None
        self._count += 1
        text = self._stop.feed(self._decoder.feed(token))
        if self._stop.found:
            self.reason = "stop"
        elif len(self.drawn) >= self._most:
            self.reason = "length"
        was_inside = self._is_thinking
        thinking, answer = self._apart(text)
        if was_inside or self._is_thinking:  # the mark that closes them is one of theirs
            self._thought += 1
        said = None if answer == text else text
        return Chunk(answer, (token,), _logprobs(sampled), thinking=thinking, said=said)

    @property
    def _is_thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.is_inside

    def _apart(self, text: str) -> tuple[str, str]:
        """Thoughts and the answer in a text."""
        return ("", text) if self._thoughts is None else self._thoughts.feed(text)

    def finish(
        self,
        prompt: Prompt,
        filled: Prefilled,
        peak_memory_bytes: int,
        speculation: Speculation | None,
    ) -> Chunk:
        """The last chunk: text that was held back, the finish reason and the figures.

        Args:
            prompt: What was answered.
            filled: What its computation left.
            peak_memory_bytes: Most memory that MLX held.
            speculation: What proposed tokens brought.
        """
        said = self._stop.feed(self._decoder.finish()) + self._stop.finish()
        thinking, rest = self._apart(said)
        if self._thoughts is not None:
            thought, answer = self._thoughts.finish()
            thinking, rest = thinking + thought, rest + answer
        cached = filled.cached_tokens
        return Chunk(
            rest,
            thinking=thinking,
            said=None if rest == said else said,
            finish_reason=self.reason or "length",
            usage=Usage(
                prompt.token_ids.size,
                prompt.image_tokens,
                cached,
                self._count,
                prompt.video_tokens,
                self._thought,
            ),
            timings=self._timings(prompt, filled),
            peak_memory_bytes=peak_memory_bytes,
            speculation=speculation,
            stop_text=self._stop.hit,
            pictures=tuple(s.image for s in prompt.slots if isinstance(s.image, ImagePatches)),
            videos=tuple(s.image for s in prompt.slots if isinstance(s.image, VideoPatches)),
            unit=self._unit,
        )

    def _timings(self, prompt: Prompt, filled: Prefilled) -> Timings:
        watch, count = self.watch, self._count
        prefill_s = filled.text_s + watch.first - filled.ready
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


def _logprobs(sampled: Sampled) -> tuple[TokenLogprob, ...]:
    if sampled.logprob is None:
        return ()
    top: tuple[tuple[int, float], ...] = ()
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        ids = np.array(sampled.top_tokens).tolist()
        top = tuple(zip(ids, np.array(sampled.top_logprobs).tolist(), strict=True))
    return (TokenLogprob(sampled.token_id, float(np.array(sampled.logprob)), top),)
