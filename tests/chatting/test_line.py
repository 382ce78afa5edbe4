r"""What typed lines mean. The first table is what mistral.rs 0.3.4 held its `\image` to."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwenvl.chatting.line import Command, NoPicture, Question, read_line
from mlx_qwenvl.chatting.paths import escaped, unescaped

URL = "https://example.org/a/mountain-18-108.jpg"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, and the current one."""
    for name in ("cat.png", "my cat.png", "it's.PNG", "dog.jpg", "notes.txt", "cat(1).png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "pictures", "text"),
    [
        (r"\image image.jpg What is this?", ["image.jpg"], "What is this?"),
        (r'\image "an image.jpg" What is this?', ["an image.jpg"], "What is this?"),
        (r"\image image.jpg", ["image.jpg"], ""),
        (r'\image "an image.jpg"', ["an image.jpg"], ""),
        (r"\image    image.jpg    What is this?   ", ["image.jpg"], "What is this?"),
        (r'\image    "an image.jpg"    What is this?', ["an image.jpg"], "What is this?"),
        (rf"\image {URL} What mountain is this?", [URL], "What mountain is this?"),
        (r"\image image.jpg 这是什么", ["image.jpg"], "这是什么"),
        (r"\image path/to/image.jpg Describe it.", ["path/to/image.jpg"], "Describe it."),
    ],
)
def test_image_reads_as_in_mistral_rs(line: str, pictures: list[str], text: str) -> None:
    assert read_line(line) == Question(text, tuple(pictures))
    assert read_line(line.replace("\\", "/", 1)) == Question(text, tuple(pictures))


@pytest.mark.parametrize("line", [r"\image", r"\image ", "/image", r"\image a.png \image"])
def test_image_without_a_picture_is_an_error(line: str) -> None:
    with pytest.raises(NoPicture):
        read_line(line)


def test_another_word_is_another_command() -> None:
    assert read_line(r"\img image.jpg") == Command("img", "image.jpg")
    assert read_line("/Stats") == Command("stats", "")
    assert read_line("\\system Be brief.\nVery.") == Command("system", "Be brief.\nVery.")


@pytest.mark.parametrize(
    ("line", "pictures", "text"),
    [
        # Several pictures in one line
        (r"\image cat.png \image dog.jpg Compare.", ["cat.png", "dog.jpg"], "Compare."),
        (r"\image cat.png dog.jpg Compare.", ["cat.png", "dog.jpg"], "Compare."),
        (rf"\image cat.png {URL} Compare.", ["cat.png", URL], "Compare."),
        ("cat.png dog.jpg Compare.", ["cat.png", "dog.jpg"], "Compare."),
        # Dropped into the terminal
        (r"{folder}/my\ cat.png What is it?", ["{folder}/my cat.png"], "What is it?"),
        ("'{folder}/my cat.png' What is it?", ["{folder}/my cat.png"], "What is it?"),
        (r"'{folder}/it'\''s.PNG' Hm?", ["{folder}/it's.PNG"], "Hm?"),
        ('"{folder}/my cat.png" What is it?', ["{folder}/my cat.png"], "What is it?"),
        ("file://{folder}/my%20cat.png What is it?", ["{folder}/my cat.png"], "What is it?"),
        ("file://localhost{folder}/cat.png Hm?", ["{folder}/cat.png"], "Hm?"),
        (r"{folder}/cat\(1\).png", ["{folder}/cat(1).png"], ""),
        ("What is it? {folder}/cat.png ", ["{folder}/cat.png"], "What is it?"),
        (r"What is it? {folder}/my\ cat.png", ["{folder}/my cat.png"], "What is it?"),
        # Without quotes
        ("{folder}/my cat.png What is it?", ["{folder}/my cat.png"], "What is it?"),
        (r"\image my cat.png What is it?", ["my cat.png"], "What is it?"),
        (r"\image my\ cat.png What is it?", ["my cat.png"], "What is it?"),
        # In a sentence the name is a part of it
        ("What is in cat.png?", ["cat.png"], "What is in cat.png?"),
        ("What is in my cat.png", ["my cat.png"], "What is in my cat.png"),
        ("Is {folder}/cat.png a cat?", ["{folder}/cat.png"], "Is {folder}/cat.png a cat?"),
        (f"Is it in {URL}, or not?", [URL], f"Is it in {URL}, or not?"),
        (f"{URL}?size=200 What is it?", [f"{URL}?size=200"], "What is it?"),
        (f"Do you know ({URL})?", [URL], f"Do you know ({URL})?"),
        # No pictures
        ("What is in bird.png?", [], "What is in bird.png?"),
        ("cat.png.txt", [], "cat.png.txt"),
        ("notes.txt", [], "notes.txt"),
        ("`cat.png` is a good name", [], "`cat.png` is a good name"),
        ("https://example.org/page", [], "https://example.org/page"),
        ("/etc/hosts is what?", [], "/etc/hosts is what?"),
        ("/tmp", [], "/tmp"),
        (r"\frac{1}{2} + 1?", [], r"\frac{1}{2} + 1?"),
        (r" \stats is a command", [], r"\stats is a command"),
        ("a\0.png b.png", [], "a\0.png b.png"),
    ],
)
def test_pictures_are_found_in_a_line(
    folder: Path, line: str, pictures: list[str], text: str
) -> None:
    def filled(pattern: str) -> str:
        return pattern.replace("{folder}", str(folder))

    expected = Question(filled(text), tuple(map(filled, pictures)))
    assert read_line(filled(line)) == expected


@pytest.mark.parametrize("line", ["", "  ", "\n\t"])
def test_an_empty_line_says_nothing(line: str) -> None:
    assert read_line(line) is None


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert read_line("~/cat.png Hm?") == Question("Hm?", ("~/cat.png",))


# --- Nothing is lost ----------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("bird.png", "my bird.png", "'my bird.png'", r"my\ bird.png", "file:///x.png", "http://["),
        *("don't", "it's", '"', "'", "`", "\\", "?", "(", ")", "\n", " ", "\\img", "/imag", "//"),
        *("What", ".png", "\u00a0", "\0", "~/", "é", "data:", "/etc/hosts", "C:\\x.png"),
    ]
)
LINES = st.one_of(st.text(), st.lists(PIECES).map("".join), st.lists(PIECES).map(" ".join))


@given(line=LINES)
@settings(max_examples=300, deadline=None)
def test_where_no_picture_is_named_all_that_was_typed_is_asked(line: str) -> None:
    meant = read_line(line)
    if isinstance(meant, Command):
        sign, name, rest = line[0], line[1 : 1 + len(meant.name)], line[1 + len(meant.name) :]
        assert sign in "\\/" and name.lower() == meant.name and rest.strip() == meant.argument
    else:
        assert meant == (Question(line.strip()) if line.strip() else None)


TYPED = {
    "'my cat.png'": "my cat.png",
    r"my\ cat.png": "my cat.png",
    "cat.png": "cat.png",
    "dog.jpg": "dog.jpg",
    URL: URL,
}
WORDS = st.lists(st.sampled_from(["What", "is", "it?", "é", "(a)", "1.5", "don't"]), min_size=1)


@given(
    command=st.sampled_from(["", r"\image ", "/image "]),
    before=st.lists(st.sampled_from(sorted(TYPED)), unique=True, min_size=1),
    words=WORDS,
    after=st.sampled_from(["", "'my cat.png'", URL]),
    gap=st.sampled_from([" ", "  ", "\t"]),
)
@settings(max_examples=200, deadline=None)
def test_pictures_around_a_question_take_nothing_of_it(
    command: str, before: list[str], words: list[str], after: str, gap: str
) -> None:
    meant = read_line(command + gap.join([*before, *words, after]))
    pictures = [TYPED[typed] for typed in [*before, *([after] if after else [])]]
    assert meant == Question(gap.join(words), tuple(dict.fromkeys(pictures)))


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0\n"), min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_name_survives_being_dropped(name: str) -> None:
    assert unescaped(escaped(name)) == name
    assert unescaped(shlex.quote(name)) == name
    assert shlex.split(shlex.quote(name)) == [name]


def test_a_long_text_is_read_at_once(folder: Path) -> None:
    text = "It's a text about cat.png 'and' more. " * 1000
    assert read_line(text) == Question(text.strip(), ("cat.png",))
