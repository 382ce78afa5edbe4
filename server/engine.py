"""The engine's thread: the only place that touches MLX, and how a request gets there and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mlx_qwenvl.engine.answer import Stopwatch
from mlx_qwenvl.engine.options import read_options
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.vlm import QwenVL

from .call import Call
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
        chunks: Of the answer.
    """

    def __init__(self, chunks: AsyncIterator[Heard]) -> None:
        self._chunks = chunks
        self.progress: tuple[int, int] | None = None  # prompt tokens computed, and in all

    def __aiter__(self) -> AsyncIterator[Heard]:
        """What is heard, until all answers are finished."""
        return self._chunks

    def cancel(self) -> None:
        """Withdraw the call; its work stops within one step. Does nothing once it is finished."""


class Engine:
    """Answers calls.

    Args:
        vlm: The loaded model.
        thread: A pool of one thread, in which it was loaded.
        settings: The operator's.
    """

    def __init__(self, vlm: QwenVL, thread: ThreadPoolExecutor, settings: Settings) -> None:
        self._vlm, self._thread, self.settings = vlm, thread, settings

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._vlm.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary, for any thread."""
        return self._vlm.tokenizer

    async def count(self, call: Call) -> int:
        """Tokens of a call's prompt, pictures included."""
        raise NotImplementedError

    async def submit(self, call: Call) -> Ticket:
        """Accept a call.

        Raises:
            Overloaded: Too many wait already.
            Unavailable: There is no engine now.
            QwenVLError: The call itself cannot be answered.
        """
        loop = asyncio.get_running_loop()

        def begin() -> Iterator[Chunk]:
            watch = Stopwatch(self._vlm.load_s)
            options = read_options(call.options, self._vlm.sampling)
            return self._vlm._answer(self._vlm.prompt(call.messages, options), options, watch)

        stream = await loop.run_in_executor(self._thread, begin)

        async def chunks() -> AsyncIterator[Heard]:
            while (c := await loop.run_in_executor(self._thread, next, stream, None)) is not None:
                yield Heard(0, c)

        return Ticket(chunks())
