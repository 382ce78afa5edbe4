"""The engine's thread: the only place that touches MLX, and how a request gets there and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_qwenvl.engine.answer import Stopwatch
from mlx_qwenvl.engine.options import SEED_LIMIT, Options, read_options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.inputs.prompt import Prompt, text_prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.vlm import QwenVL

from .call import Call
from .media import MediaPolicy
from .settings import Settings


class Overloaded(QwenVLError):
    """More requests wait than the operator allows."""


class Unavailable(QwenVLError):
    """The model is being loaded, or the engine is ending or dead."""


@dataclass(frozen=True)
class Heard:
    """A piece of one of a call's answers.

    Attributes:
        index: Which of the call's `n` answers.
        chunk: The piece; the last one of an answer has a finish reason, usage and timings.
    """

    index: int
    chunk: Chunk


class Ticket:
    """A call that was accepted: an iterator over what is heard.

    Args:
        chunks: Of the answers.
    """

    def __init__(self, chunks: AsyncIterator[Heard]) -> None:
        self._chunks = chunks
        self.progress: tuple[int, int] | None = None  # prompt tokens computed, and in all
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Heard]:
        """What is heard, until all answers are finished."""
        return self._chunks

    def cancel(self) -> None:
        """Withdraw the call; its work stops within one step. Does nothing once it is finished."""
        self.cancelled = True


class Engine:
    """Answers calls.

    Args:
        vlm: The loaded model.
        thread: A pool of one thread, in which it was loaded.
        settings: The operator's.
    """

    def __init__(self, vlm: QwenVL, thread: ThreadPoolExecutor, settings: Settings) -> None:
        self._vlm, self._thread, self.settings = vlm, thread, settings
        self._media = MediaPolicy.of(settings)

    @property
    def name(self) -> str:
        """What the model is called; of a folder its last part, which tells nothing else."""
        path = Path(self._vlm.name)
        return path.name if path.is_absolute() else self._vlm.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary, for any thread."""
        return self._vlm.tokenizer

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._vlm.config.text.max_position_embeddings

    async def prompt(self, call: Call) -> Prompt:
        """A call's prompt, its pictures opened; nothing is computed."""
        loop = asyncio.get_running_loop()
        options = read_options(call.options, self._vlm.sampling)
        return await loop.run_in_executor(self._thread, self._prompt, call, options)

    async def count(self, call: Call) -> int:
        """Tokens of a call's prompt, pictures included."""
        return (await self.prompt(call)).token_ids.size

    async def submit(self, call: Call) -> Ticket:
        """Accept a call.

        Raises:
            Overloaded: Too many wait already.
            Unavailable: There is no engine now.
            QwenVLError: The call itself cannot be answered.
        """
        loop = asyncio.get_running_loop()

        def begin() -> list[Iterator[Chunk]]:
            options = read_options(call.options, self._vlm.sampling)
            vocabulary = self._vlm.config.text.vocab_size
            if any(token >= vocabulary for token in options.logit_bias):
                raise OptionError(
                    f"logit_bias names a token beyond the vocabulary of {vocabulary}", "logit_bias"
                )
            prompt = self._prompt(call, options)
            return [
                self._vlm._answer(prompt, each, Stopwatch(self._vlm.load_s))
                for each in (seeded(options, index) for index in range(call.n))
            ]

        if call.grammar is not None:
            raise OptionError("this engine cannot bind an answer to a form yet", "response_format")
        streams = await loop.run_in_executor(self._thread, begin)

        async def chunks() -> AsyncIterator[Heard]:
            for index, stream in enumerate(streams):
                while not ticket.cancelled:
                    chunk = await loop.run_in_executor(self._thread, next, stream, None)
                    if chunk is None:
                        break
                    yield Heard(index, chunk)

        ticket = Ticket(chunks())
        return ticket

    def _prompt(self, call: Call, options: Options) -> Prompt:
        if call.text is not None:
            return text_prompt(call.text, self._vlm.tokenizer)
        return self._vlm.prompt(call.messages, options, self._media.limits())


def seeded(options: Options, index: int) -> Options:
    """Options of one of a call's answers: the first has the seed that was asked for."""
    if options.seed is None or index == 0:
        return options
    return replace(
        options, seed=(options.seed + index + SEED_LIMIT) % (2 * SEED_LIMIT) - SEED_LIMIT
    )
