"""Markdown on a terminal, as an answer comes.

Finished blocks are printed once. The last one is drawn again while it grows; of one that is higher
than the screen the upper lines are printed for good, so that the answer scrolls as any text does.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any, ClassVar, Final, TypeAlias

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.style import Style
from rich.syntax import Syntax

from mlx_qwenvl.chatting.pointing import BEGINS, END
from mlx_qwenvl.grounding.draw import COLORS

REDRAW_S: Final = 0.05  # seconds between two drawings of the block that grows
SPARE_LINES: Final = 2  # lines of the screen that a growing block leaves free

# HTML stays text, so that nothing of an answer vanishes.
_PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_MARKED: Final = (*BEGINS, END)
_Line: TypeAlias = list[Segment]


def box_styles() -> dict[str, Style]:
    """Styles of names and boxes: the colours of the picture behind letters that can be read."""
    styles = {}
    for index, (red, green, blue) in enumerate(COLORS):
        is_light = 299 * red + 587 * green + 114 * blue > 128e3
        letters = "black" if is_light else "white"
        styles[f"markdown.box{index}"] = Style.parse(f"{letters} on rgb({red},{green},{blue})")
    return styles


class _Heading(markdown.Heading):
    """A heading at the left, whatever its level."""

    LEVEL_ALIGN: ClassVar = {}


class _Code(markdown.CodeBlock):
    """Code without empty lines around it, on the terminal's own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        yield Syntax(
            code, self.lexer_name, theme="ansi_dark", word_wrap=True, background_color="default"
        )


class Markdown(markdown.Markdown):
    """Markdown of an answer: lines stay lines, links show where they lead, boxes have colours.

    Args:
        text: The Markdown.
    """

    elements: ClassVar[dict[str, Any]] = {
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }
    inlines = markdown.Markdown.inlines | {f"box{index}" for index in range(len(COLORS))}

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            if token.children:
                token.children = _lined(_coloured(token.children))
            elif token.content:
                token.content = "".join(c for c in token.content if c not in _MARKED)


def _lined(tokens: list[Token]) -> list[Token]:
    """Line breaks of the source kept: receipts and poems live on them."""
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
    return tokens


def _coloured(tokens: list[Token]) -> list[Token]:
    """Text cut at the letters that begin and end a colour."""
    cut: list[Token] = []
    depth = 0
    for token in tokens:
        if not any(letter in token.content for letter in _MARKED):
            cut.append(token)
            continue
        if token.type != "text":
            token.content = "".join(c for c in token.content if c not in _MARKED)
            cut.append(token)
            continue
        text = ""
        for letter in f"{token.content}\0":
            if letter != "\0" and letter not in _MARKED:
                text += letter
                continue
            if text:
                cut.append(Token("text", "", 0, content=text))
                text = ""
            if letter in BEGINS:
                depth += 1
                cut.append(Token("box_open", f"box{BEGINS.index(letter)}", 1))
            elif letter == END and depth:
                depth -= 1
                cut.append(Token("box_close", "box0", -1))
    # A name that a table or a heading tore apart ends with it.
    return cut + [Token("box_close", "box0", -1)] * depth


def split_blocks(text: str, *, is_end: bool = False) -> tuple[list[str], str]:
    """Blocks of Markdown that no further text can change, and the rest.

    Args:
        text: The Markdown so far.
        is_end: Whether no further text comes. Otherwise a line that goes on begins no block:
            `***` is a rule, `***word` goes on with the paragraph above.
    """
    known = text if is_end else text[: text.rfind("\n") + 1]
    tops = [token.map for token in _PARSER.parse(known) if token.level == 0 and token.map]
    if len(tops) < 2:
        return [], text
    lines = text.split("\n")
    starts = [0, *(start for start, _ in tops[1:])]
    blocks = ["\n".join(lines[begin:end]) for begin, end in pairwise(starts)]
    return blocks, "\n".join(lines[starts[-1] :])


class MarkdownStream:
    """Prints Markdown while it is written.

    rich's `Live` would do, but for terminals that get narrower meanwhile: they wrap what is drawn.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # of the block that grows
        self._scrolled = 0  # lines of it that are printed for good
        self._drawn: list[int] = []  # columns of its other lines, which are drawn again
        self._has_blocks = False
        self._drawn_s = 0.0

    def feed(self, text: str) -> None:
        """More of it."""
        self._text += text
        now = time.monotonic()
        if text and now - self._drawn_s >= REDRAW_S:
            self._drawn_s = now
            self._draw(is_end=False)

    def finish(self) -> None:
        """Print what is left for good."""
        self._draw(is_end=True)

    def _draw(self, *, is_end: bool) -> None:
        """Print the blocks that are finished, and the one that grows over its last drawing."""
        blocks, self._text = split_blocks(self._text, is_end=is_end)
        above: list[_Line] = []
        for block in [*blocks, self._text] if is_end else blocks:
            above += self._lines(block)[self._scrolled :]
            self._scrolled, self._has_blocks = 0, self._has_blocks or bool(block.strip())
        growing = [] if is_end else self._lines(self._text)[self._scrolled :]
        # What does not fit goes up, and scrolls as any text does.
        spare = max(0, len(growing) - max(1, self._console.height - SPARE_LINES))
        self._scrolled += spare
        above += growing[:spare]
        self._put(above, growing[spare:])

    def _lines(self, text: str) -> list[_Line]:
        """A block in lines, with an empty one before it where others went before."""
        lines = self._console.render_lines(Markdown(text), pad=False)
        while lines and _is_blank(lines[-1]):
            lines.pop()
        while lines and _is_blank(lines[0]):
            lines.pop(0)
        return ([[]] if self._has_blocks and lines else []) + lines

    def _put(self, above: list[_Line], growing: list[_Line]) -> None:
        """Print lines for good, and others below them, in one write over what was drawn."""
        segments = [segment for line in above for segment in (*line, Segment.line())]
        for index, line in enumerate(growing):
            segments += [Segment.line()] * (index > 0) + line
        self._console.print(self._erasing(), Segments(segments), end="", soft_wrap=True)
        self._drawn = [Segment.get_line_length(line) for line in growing]

    def _erasing(self) -> Control:
        """What takes the last drawing away, as wide as the terminal is now."""
        rows = sum(max(1, -(-columns // self._console.width)) for columns in self._drawn)
        if not rows:
            return Control()
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (rows - 1)
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up)


def _is_blank(line: _Line) -> bool:
    return not "".join(segment.text for segment in line).strip()
