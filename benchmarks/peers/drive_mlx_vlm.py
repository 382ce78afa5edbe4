"""mlx-vlm, for `benchmarks.peers`; run by a Python that has it.

Prompts are put together by its own processor from messages with pictures before text.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.peers.wire import (
    FIRST_TOKENS,
    Answer,
    Batch,
    Options,
    Turn,
    asking,
    continued,
    drive,
    timed,
)


class MlxVlm:
    """A model and its processor."""

    def __init__(self, options: Options) -> None:
        utils = importlib.import_module("mlx_vlm.utils")
        self._mlx_vlm = importlib.import_module("mlx_vlm")
        self._model, self._processor = utils.load(options.folder)
        if options.dtype is not None:
            mx = importlib.import_module("mlx.core")
            self._model.set_dtype(getattr(mx, options.dtype))
            mx.eval(self._model.parameters())
        self._processor.tokenizer.stopping_criteria.eos_token_ids = []

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation through `stream_generate`."""
        begin = time.perf_counter()
        return self._timed(self._prompt(turns), _images(turns), max_tokens, begin)

    def another(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer both; at best with its caches of features and of the prompt."""
        kept = self._caches() if best else {}
        begin = time.perf_counter()
        self._timed(self._prompt(turns), _images(turns), 1, begin, **kept)
        turns = asking(turns, question)
        begin = time.perf_counter()
        return self._timed(self._prompt(turns), _images(turns), 1, begin, **kept)

    def next_turn(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Ask twice with the caches of its chat.

        Its chat moves the picture to the newest question; at best it stays where it was.
        """
        kept, images = self._caches(), _images(turns)
        own = None if best else len(images)
        first = self._prompt(turns, own)
        begin = time.perf_counter()
        said = self._timed(first, images, FIRST_TOKENS, begin, **kept)
        begin = time.perf_counter()
        prompt = self._prompt(continued(turns, said.text, question), own)
        return self._timed(prompt, images, 1, begin, **kept)

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Its `batch_generate`, which heeds end tokens unless they are taken away."""
        generate = importlib.import_module("mlx_vlm.generate")
        begin = time.perf_counter()
        done = generate.batch_generate(
            self._model,
            self._processor,
            prompts=questions,
            max_tokens=max_tokens,
            sampler=lambda logprobs: logprobs.argmax(axis=-1),
        )
        return Batch(time.perf_counter() - begin, int(done.stats.generation_tokens))

    def _caches(self) -> dict[str, Any]:
        state = importlib.import_module("mlx_vlm.generate").PromptCacheState()
        return {"vision_cache": self._mlx_vlm.VisionFeatureCache(), "prompt_cache_state": state}

    def _prompt(self, turns: list[Turn], own: int | None = None) -> str:
        if own is not None:
            history = [
                {"role": turn.role, "content": [{"type": "text", "text": turn.text}]}
                for turn in turns
            ]
            prompt_utils = importlib.import_module("mlx_vlm.prompt_utils")
            template = prompt_utils.apply_chat_template
            return str(template(self._processor, self._model.config, history, num_images=own))
        messages = [
            {
                "role": turn.role,
                "content": [
                    *({"type": "image"} for _ in turn.images),
                    {"type": "text", "text": turn.text},
                ],
            }
            for turn in turns
        ]
        return str(
            self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )

    def _timed(
        self, prompt: str, images: list[str], max_tokens: int, begin: float, **more: Any
    ) -> Answer:
        counts: list[int] = [0]

        def pieces() -> Iterator[tuple[int, str]]:
            stream = self._mlx_vlm.stream_generate(
                self._model,
                self._processor,
                prompt,
                image=images or None,
                max_tokens=max_tokens,
                temperature=0.0,
                **more,
            )
            for result in stream:
                counts[0] = int(result.prompt_tokens)
                if result.finish_reason is None:  # the last one repeats its token
                    yield int(result.token), result.text

        answer = timed(pieces(), begin)
        return Answer(
            answer.first_s,
            answer.decode_s,
            answer.tokens,
            answer.n_tokens,
            counts[0],
            answer.text,
        )


def _images(turns: list[Turn]) -> list[str]:
    return [path for turn in turns for path in turn.images]


if __name__ == "__main__":
    drive(MlxVlm, ["mlx", "mlx-vlm"])
