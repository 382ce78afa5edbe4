"""Before a call is computed: its pictures are opened, its prompt is made, its grammar compiled.

No part of this touches MLX. It runs in a few threads beside the event loop.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from mlx_qwenvl.engine.options import Options, read_options
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.prompt import Prompt, text_prompt
from mlx_qwenvl.vlm import QwenVL

from .call import Call
from .media import MediaPolicy
from .settings import Settings

PREPARING_THREADS = 16  # they mostly wait for other machines


class Preparing:
    """The threads, made as they are needed.

    Args:
        settings: The operator's.

    Raises:
        OptionError: The folder for pictures is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._media = MediaPolicy.of(settings)
        self._pool = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self._under_way: set[Future[Prompt]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is prepared now."""
        return not self._under_way

    async def prepare(
        self, vlm: QwenVL, call: Call, *, computes: bool = True
    ) -> tuple[Prompt, Options]:
        """A call's prompt and options.

        Args:
            vlm: The model.
            call: The call.
            computes: Whether it will be computed, and not only counted.

        Raises:
            QwenVLError: The call cannot be answered.
        """
        options = replace(read_options(call.options, vlm.sampling), grammar=call.grammar)
        vocabulary = vlm.config.text.vocab_size
        if any(token >= vocabulary for token in options.logit_bias):
            raise OptionError(
                f"logit_bias names a token beyond the vocabulary of {vocabulary}", "logit_bias"
            )

        def work() -> Prompt:
            if computes and call.grammar is not None:
                vlm.grammars.compile(call.grammar)
            if call.text is not None:
                context = vlm.config.text.max_position_embeddings
                return text_prompt(call.text, vlm.tokenizer, context)
            return vlm.prompt(call.messages, options, self._media.limits())

        future = self._pool.submit(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(future), options

    def close(self) -> None:
        """Begin nothing any more; what is under way is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
