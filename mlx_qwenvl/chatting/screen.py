"""Where answers and everything else go: what a screen has to do, and the plain one.

On the plain screen stdout carries the answers alone; the rest goes to stderr. It has no colours
and moves no cursor, and serves pipes, files and terminals that can do no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from PIL import Image

from mlx_qwenvl.chatting.stopping import hear
from mlx_qwenvl.clean import clean, clean_line
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.grounding.boxes import MarkFilter
from mlx_qwenvl.thoughts import ThinkingPrinter


class Screen(Protocol):
    """What shows a conversation."""

    def say(self, text: str) -> None:
        """Show what a command gives."""

    def note(self, text: str) -> None:
        """Show an aside in one line."""

    def error(self, text: str) -> None:
        """Show in one line what went wrong."""

    def reading(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Show that pictures are read, until the first word of an answer."""

    def advance(self) -> Callable[[int, int], None] | None:
        """What hears how many tokens of a prompt are computed, and of how many."""

    def answer(self, chunks: Iterator[Chunk]) -> bool:
        """Show an answer as it comes, and tell whether Ctrl-C ended it."""

    def picture(self, picture: Image.Image) -> None:
        """Show a picture, where the terminal can."""


class PlainScreen:
    """Answers as plain lines on stdout.

    Args:
        shows_thinking: Whether thoughts are shown, on stderr.
    """

    def __init__(self, *, shows_thinking: bool = False) -> None:
        self._shows_thinking = shows_thinking
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # without UTF-8 there is still an answer

    def say(self, text: str) -> None:
        """Show what a command gives."""
        print(clean(text), file=sys.stderr)

    def note(self, text: str) -> None:
        """Show an aside in one line."""
        print(clean_line(text), file=sys.stderr)

    def error(self, text: str) -> None:
        """Show in one line what went wrong."""
        print(f"error: {clean_line(text)}", file=sys.stderr)

    def reading(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Nothing moves here."""
        return nullcontext()

    def advance(self) -> Callable[[int, int], None] | None:
        """Nothing moves here."""
        return None

    def answer(self, chunks: Iterator[Chunk]) -> bool:
        """Print an answer as it comes, and tell whether Ctrl-C ended it."""
        marks, is_begun = MarkFilter(), False
        thoughts = ThinkingPrinter(sys.stderr if self._shows_thinking else None)

        def show(chunk: Chunk) -> None:
            nonlocal is_begun
            is_begun = True
            thoughts.hear(chunk)
            print(clean(marks.feed(chunk.text)), end="", flush=True)

        try:
            return hear(chunks, show)
        finally:
            thoughts.finish()
            if is_begun:
                print(clean(marks.finish()), flush=True)

    def picture(self, picture: Image.Image) -> None:
        """There is nowhere to show it."""
