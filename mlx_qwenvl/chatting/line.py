r"""What a typed line means: a command, or a question with its pictures.

    Hello!                               a question
    \image cat.png What is it?           a question about a picture, as in mistral.rs
    /image a.png /image b.png Compare!   "/" is as good as a backslash
    /Users/me/my\ cat.png What is it?    a picture dropped into the terminal
    \stats                               a command

A line that begins with a space is text, and so is what stands between backticks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mlx_qwenvl.chatting.paths import Found, exists, pictures_in, word_at

_COMMAND: Final = re.compile(r"[\\/](?P<name>[A-Za-z]+)(?=\s|$)\s*(?P<rest>.*)", re.DOTALL)
_IMAGE: Final = re.compile(r"\s*[\\/]image(?=\s|$)\s*", re.IGNORECASE)
IMAGE: Final = "image"


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: Without its backslash, in small letters.
        argument: What stands behind it, stripped.
    """

    name: str
    argument: str


@dataclass(frozen=True)
class Question:
    """Something to ask.

    Attributes:
        text: What is said; "" where only pictures were given.
        pictures: Paths and URLs, in the order of the line.
    """

    text: str
    pictures: tuple[str, ...] = ()


class NoPicture(ValueError):
    r"""`\image` without a picture."""


def read_line(line: str) -> Command | Question | None:
    r"""What a line means; None for one that says nothing.

    Raises:
        NoPicture: `\image` stands there alone.
    """
    if not line.strip():
        return None
    if _IMAGE.match(line) and not line[0].isspace():
        return read_question(line)
    command = _COMMAND.fullmatch(line)
    # A folder that was dropped, such as /tmp, is no command.
    if command and not exists(line.split()[0]):
        return Command(command["name"].lower(), command["rest"].strip())
    return read_question(line)


def read_question(line: str) -> Question:
    r"""A question and its pictures, where the line is no command.

    Raises:
        NoPicture: `\image` stands there without a picture.
    """
    named, rest = _named(line)
    found = pictures_in(rest)
    text = _without(rest, found)
    # Whoever names a picture twice in a sentence means one.
    others = dict.fromkeys(picture.source for picture in found if picture.source not in named)
    return Question(text.strip(), (*named, *others))


def _named(line: str) -> tuple[list[str], str]:
    r"""The pictures that `\image` names at the beginning of a line, and the rest of it.

    The first word is a picture whether it exists or not, so that a wrong name is told.
    """
    named: list[str] = []
    while (begin := _IMAGE.match(line)) and (named or not line[0].isspace()):
        word = word_at(line, begin.end())
        if word is None:
            raise NoPicture(r"\image needs a picture: \image PATH-or-URL QUESTION")
        named.append(word.source)
        line = line[word.end :]
    return named, line


def _without(text: str, found: list[Found]) -> str:
    """A text without the pictures at its two ends; in a sentence their names are part of it."""
    begin, end = 0, len(text)
    for picture in found:
        if text[begin : picture.start].strip():
            break
        begin = picture.end
    for picture in reversed(found):
        if picture.start < begin or text[picture.end : end].strip() or not picture.is_dropped:
            break
        end = picture.start
    return text[begin:end]
