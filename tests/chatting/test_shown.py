"""How answers look: nothing raw or lost, colours as in the picture, scrolling as text does."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import Any

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.theme import Theme

from mlx_qwenvl.chatting import markdown
from mlx_qwenvl.chatting.markdown import Markdown, MarkdownStream, box_styles, split_blocks
from mlx_qwenvl.chatting.pointing import BEGINS, END, Pointer
from mlx_qwenvl.clean import clean, clean_line
from mlx_qwenvl.grounding.boxes import MARKS, find_boxes, without_marks
from mlx_qwenvl.grounding.draw import COLORS, color_of
from mlx_qwenvl.grounding.frame import Frame

COLOURS = re.compile(f"[{''.join(BEGINS)}{END}]")


def box(label: str, corners: str = "(1,2),(3,4)") -> str:
    name = f"<|object_ref_start|>{label}<|object_ref_end|>" if label else ""
    return f"{name}<|box_start|>{corners}<|box_end|>"


# --- Nothing raw ----------------------------------------------------------------------------------


@given(text=st.text(st.characters(max_codepoint=0x2100)))
@example(text="\x1b]52;c;aGk=\x07\x9b31m\r\n\x7f")
def test_no_control_character_passes(text: str) -> None:
    shown = clean(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert clean(shown) == shown
    assert not re.search(r"\s\s|\n|\t", clean_line(text))


def test_ordinary_text_passes_as_it_is() -> None:
    text = "Zeile 1\n\tعربى 日本語 👩‍👧 naïve <b>"
    assert clean(text) == text


# --- Marks and colours ----------------------------------------------------------------------------


def pointed(text: str, cuts: list[int]) -> str:
    pointer = Pointer()
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    return "".join(map(pointer.feed, pieces)) + pointer.finish()


PIECES = st.sampled_from(
    [
        *MARKS,
        "<",
        "<|",
        "|>",
        "a cat",
        "(1,2)",
        ",(3,4)",
        " ",
        "\n",
        box("cat"),
        box("dog"),
        box(""),
    ]
)


@given(pieces=st.lists(PIECES, max_size=12), cuts=st.lists(st.integers(0, 500), max_size=12))
@settings(max_examples=300, deadline=None)
def test_what_is_shown_is_the_answer_without_its_marks(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    shown = pointed(text, cuts)
    assert COLOURS.sub("", shown) == clean(without_marks(text))
    assert shown == pointed(text, []), "however it comes"
    depth = 0
    for letter in COLOURS.findall(shown):
        depth += 1 if letter in BEGINS else -1
        assert 0 <= depth <= 1


def test_names_and_boxes_have_the_colours_of_the_drawing() -> None:
    text = f"See {box('cat')}{box('')}, {box('dog')} and again {box('cat')}."
    boxes = find_boxes(text, [Frame((1000, 1000))])
    colours = color_of(boxes)
    shown = pointed(text, [])
    spans = re.findall(f"([{''.join(BEGINS)}])([^{END}]*){END}", shown)
    assert [COLORS[BEGINS.index(begin)] for begin, _ in spans] == [colours[b.label] for b in boxes]
    assert [span for _, span in spans] == [
        *("cat(1,2),(3,4)", "(1,2),(3,4)"),
        *("dog(1,2),(3,4)", "cat(1,2),(3,4)"),
    ]


def test_a_name_that_nothing_is_drawn_for_has_no_colour() -> None:
    assert not COLOURS.search(pointed("<|object_ref_start|>a cat<|object_ref_end|> sleeps", []))
    assert not COLOURS.search(pointed(box("cat", "(3,4),(1,2)"), []))


def test_an_endless_name_is_shown_all_the_same() -> None:
    pointer = Pointer()
    shown = "".join(pointer.feed("word ") for _ in range(3))
    shown += pointer.feed("<|object_ref_start|>")
    shown += "".join(pointer.feed("word ") for _ in range(400))
    assert shown.count("word") > 300


# --- Markdown -------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A file that is a terminal."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self.stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self.stream.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        columns = range(self.screen.columns)
        above = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()


def console_of(file: Screen, **changes: Any) -> Console:
    given: dict[str, Any] = {
        **{"file": file, "force_terminal": True, "color_system": "truecolor"},
        **{"width": file.screen.columns, "height": file.screen.lines},
        **{"highlight": False, "theme": Theme(box_styles())},
    }
    return Console(**(given | changes))


def streamed(text: str, size: int, columns: int = 60, rows: int = 14) -> Screen:
    file = Screen(columns, rows)
    stream = MarkdownStream(console_of(file))
    for begin in range(0, len(text), size):
        stream.feed(text[begin : begin + size])
    stream.finish()
    return file


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is drawn, as if it came slowly."""
    monkeypatch.setattr(markdown, "REDRAW_S", 0.0)


TEXT = """# A heading

A paragraph with **bold** text and `code`, <b>html</b> and List<int>,
whose second line is a line of its own.

1. one
2. two
   with more

```python
def f(x):
    return x
```

| a | b |
|---|---|
| 1 | 2 |

A [link](http://example.org/a).

> quoted

""" + "\n".join(f"- item {i}" for i in range(15))


def test_nothing_of_an_answer_vanishes() -> None:
    shown = streamed(TEXT, 7).text
    for piece in (
        *("A heading", "bold", "code", "<b>html</b>", "List<int>", "return x", "quoted"),
        *("link (http://example.org/a)", "item 0", "item 14", "with more"),
    ):
        assert shown.count(piece) == 1, piece
    assert "\nwhose second line" in shown and "**" not in shown


@pytest.mark.parametrize("size", [3, 50])
def test_it_looks_the_same_however_it_comes(size: int) -> None:
    assert streamed(TEXT, size).text == streamed(TEXT, 10**6).text


WORDS = st.sampled_from(
    [
        *("word", "**bold**", "`code`", "# ", "- ", "1. ", "> ", "| a | b |", "|---|---|", "```"),
        *("\n", "\n\n", " ", "    ", "***", "---", "longwordlongwordlongword", "é", "日本", "=="),
    ]
)


@given(words=st.lists(WORDS, max_size=40), size=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
@example(words=["word", "\n", "***", "word"], size=1)
def test_any_markdown_looks_the_same_however_it_comes(words: list[str], size: int) -> None:
    text = "".join(words)
    assert streamed(text, size, rows=60).text == streamed(text, 10**6, rows=60).text


def test_a_block_higher_than_the_screen_scrolls_and_is_drawn_once() -> None:
    text = "```\n" + "\n".join(f"line {i}" for i in range(30)) + "\n```\n"
    file = streamed(text, 5, rows=10)
    shown = [line.strip() for line in file.lines if line.strip()]
    assert shown == [f"line {i}" for i in range(30)]


def test_a_terminal_that_gets_narrower_meanwhile_keeps_one_copy() -> None:
    """The terminal wraps what is drawn, so more rows have to be taken away than were drawn."""
    file = Screen(40, 30)
    console = console_of(file)
    stream = MarkdownStream(console)
    stream.feed("one two three four five six seven")
    file.truncate(0)
    console.width = 20
    stream.feed(" eight")
    # 33 columns are two rows of 20: the cursor goes up once.
    assert file.getvalue().count("\x1b[1A") == 1
    stream.finish()


def test_finished_blocks_are_those_that_no_text_can_change() -> None:
    assert split_blocks("One") == ([], "One")
    assert split_blocks("One\n\n- a\n\n- b") == (["One\n"], "- a\n\n- b")
    blocks, rest = split_blocks("A\u2028B\n\nC\n\nD", is_end=True)
    assert (blocks, rest) == (["A\u2028B\n", "C\n"], "D")


@given(text=st.lists(WORDS).map("".join))
@settings(max_examples=100, deadline=None)
def test_blocks_are_the_whole_text(text: str) -> None:
    blocks, rest = split_blocks(text)
    assert "\n".join([*blocks, rest]) == text


def test_colours_reach_the_terminal_and_no_color_takes_them_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = pointed(f"**See** {box('cat')}", [])
    red, green, blue = COLORS[0]
    file = Screen(60, 10)
    console_of(file).print(Markdown(shown))
    assert f"48;2;{red};{green};{blue}" in file.getvalue()
    assert "cat(1,2),(3,4)" in file.text and not COLOURS.search(file.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Screen(60, 10)
    console_of(plain).print(Markdown(shown))
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", plain.getvalue())
    assert "cat(1,2),(3,4)" in plain.text


@pytest.mark.parametrize(
    "form", ["# {}", "- {}", "| {} | b |\n|---|---|\n| {} | c |", "```\n{}\n```", "`{}`"]
)
def test_colours_in_any_block_end_with_it(form: str) -> None:
    shown = pointed(form.replace("{}", box("cat")) + "\n\nplain", [])
    file = Screen(80, 20)
    console_of(file).print(Markdown(shown))
    assert not COLOURS.search(file.getvalue()) and "cat(1,2),(3,4)" in file.text
    (plain,) = [y for y, line in enumerate(file.screen.display) if line.startswith("plain")]
    assert file.screen.buffer[plain][0].bg == "default"


@pytest.mark.parametrize("columns", [1, 2, 5, 12])
def test_narrow_terminals_break_nothing(columns: int) -> None:
    file = streamed(TEXT[:400], 20, columns=columns, rows=5)
    assert "h" in file.text
