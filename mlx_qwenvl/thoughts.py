"""What a model thinks before it answers, beside the answer: on stderr, as it comes."""

from __future__ import annotations

from typing import TextIO

from mlx_qwenvl.clean import clean
from mlx_qwenvl.engine.reply import Chunk


class ThinkingPrinter:
    """Prints thoughts, and ends their line where the answer begins.

    Args:
        out: Where to; None prints nothing.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._is_open = False

    def hear(self, chunk: Chunk) -> None:
        """Print what a chunk has of them."""
        if self._out is None:
            return
        if chunk.thinking:
            self._is_open = True
            print(clean(chunk.thinking), end="", file=self._out, flush=True)
        if chunk.text:
            self.finish()

    def finish(self) -> None:
        """End the line, where one was begun."""
        if self._is_open:
            print(file=self._out, flush=True)
        self._is_open = False
