"""A terminal that can do more: Markdown, colours, what is going on, and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from PIL import Image
from rich.console import Console
from rich.status import Status
from rich.text import Text
from rich.theme import Theme

from mlx_qwenvl.chatting.keys import quiet_keys
from mlx_qwenvl.chatting.markdown import MarkdownStream, box_styles
from mlx_qwenvl.chatting.pointing import Pointer
from mlx_qwenvl.chatting.preview import preview
from mlx_qwenvl.chatting.stopping import hear
from mlx_qwenvl.clean import clean, clean_line
from mlx_qwenvl.engine.reply import Chunk


class RichScreen:
    """Answers as Markdown.

    Args:
        protocol: How the terminal shows pictures; None where it does not.
        shows_thinking: Whether thoughts are shown, dimmed.
    """

    def __init__(self, protocol: str | None = None, *, shows_thinking: bool = False) -> None:
        self._shows_thinking = shows_thinking
        theme = Theme(box_styles())
        self.console = Console(highlight=False, markup=False, emoji=False, theme=theme)
        self._errors = Console(highlight=False, markup=False, emoji=False, stderr=True)
        self._protocol = protocol
        self._status: Status | None = None

    def say(self, text: str) -> None:
        """Show what a command gives."""
        self.console.print(Text(clean(text)))

    def note(self, text: str) -> None:
        """Show an aside in one line."""
        self.console.print(Text(clean_line(text), style="dim"))

    def error(self, text: str) -> None:
        """Show in one line what went wrong."""
        self._errors.print(Text.assemble(("error: ", "bold red"), clean_line(text)))

    @contextmanager
    def reading(self, names: Sequence[str]) -> Iterator[None]:
        """Show that pictures are read, until the first word of an answer."""
        with quiet_keys():
            if names:
                self._tell(f"reading {', '.join(names)}")
            try:
                yield
            finally:
                self._tell(None)

    def advance(self) -> Callable[[int, int], None] | None:
        """What shows how many tokens of a prompt are computed, where it takes several steps."""

        def advance(done: int, total: int) -> None:
            if done < total:
                self._tell(f"reading: {done} of {total} tokens")

        return advance

    def answer(self, chunks: Iterator[Chunk]) -> bool:
        """Show an answer as it comes, and tell whether Ctrl-C ended it."""
        pointer, stream = Pointer(), MarkdownStream(self.console)
        is_thinking = False

        def show(chunk: Chunk) -> None:
            nonlocal is_thinking
            if chunk.thinking and not self._shows_thinking:
                self._tell("thinking")
                return
            self._tell(None)
            if chunk.thinking:
                is_thinking = True
                self.console.print(Text(clean(chunk.thinking), style="dim"), end="", soft_wrap=True)
            if chunk.text and is_thinking:
                self.console.print("\n")
                is_thinking = False
            stream.feed(pointer.feed(chunk.text))

        try:
            return hear(chunks, show)
        finally:
            self._tell(None)
            if is_thinking:
                self.console.print()
            stream.feed(pointer.finish())
            stream.finish()

    def picture(self, picture: Image.Image) -> None:
        """Show a picture, where the terminal can."""
        if self._protocol is None:
            return
        was_told, self._status = self._status, None
        if was_told is not None:
            was_told.stop()
        in_tmux = bool(os.environ.get("TMUX"))
        text = preview(picture, self._protocol, self.console.width, in_tmux=in_tmux)
        self.console.file.write(text)
        self.console.file.flush()
        if was_told is not None:
            was_told.start()
            self._status = was_told

    def _tell(self, what: str | None) -> None:
        """Show in one line what is going on; None for nothing."""
        if what is None:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        line = Text(clean_line(what), style="dim", no_wrap=True, overflow="ellipsis")
        if self._status is None:
            self._status = self.console.status(line)
            self._status.start()
        else:
            self._status.update(line)
