"""Pictures that a line names: paths as people type and terminals drop them, and URLs.

A path counts only where the file exists, so that text is never taken for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

ENDINGS: Final = ("png", "jpg", "jpeg", "gif", "bmp", "webp", "tif", "tiff", "heic", "heif")
MOST_WORDS: Final = 24  # words that a path without quotes may have
MOST_LETTERS: Final = 4096  # of a path
_ENDING: Final = re.compile(rf"\.(?:{'|'.join(ENDINGS)})(?![\w\\/-]|\.\w)", re.IGNORECASE)
_URL: Final = re.compile(r"(?:https?|file)://[^\s\"'<>`]+|data:image/[\w.+-]+;base64,[\w+/=-]+")
_START: Final = re.compile(r"(?<![^\s(\[{])(?=[^\s(\[{])")  # behind a space or a bracket
_QUOTED: Final = re.compile(r"\"(?P<double>[^\"\n]+)\"|'(?P<single>[^'\n]+)'")
_GAP: Final = re.compile(r"\s+")
_WORD: Final = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
# One word of a shell, as terminals drop it: 'it'\''s.png' and my\ cat.png.
_SHELL: Final = re.compile(r"(?:'[^'\n]*'|\"[^\"\n]*\"|\\.|[^\s\\'\"])+")
_PIECE: Final = re.compile(r"'([^']*)'|\"([^\"]*)\"|\\(.)|([^\\'\"]+)", re.DOTALL)
_BEHIND: Final = ".,;:!?)]}"  # what may follow a URL without being part of it


@dataclass(frozen=True)
class Found:
    """A picture in a line.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        source: What names it, without quotes and backslashes.
        is_dropped: Whether it stands there as a picture, rather than as a word of a sentence.
    """

    start: int
    end: int
    source: str
    is_dropped: bool = True


def exists(path: str) -> bool:
    """Whether there is such a file or folder; a leading tilde is the home folder."""
    return os.path.exists(os.path.expanduser(path)) if "\0" not in path else False


def unescaped(word: str) -> str:
    """A word without a shell's quotes and backslashes."""
    return "".join(
        "".join(part or "" for part in match.groups()) for match in _PIECE.finditer(word)
    )


def escaped(path: str) -> str:
    """A path as a terminal drops it."""
    return re.sub(r"([\s\\'\"()&;|<>$`*?\[\]{}!#])", r"\\\1", path)


def pictures_in(line: str) -> list[Found]:
    """All pictures of a line, in order."""
    found: list[Found] = []
    end = 0
    if not _ENDING.search(line) and "data:" not in line:
        return found
    for start in (match.start() for match in _START.finditer(line)):
        picture = _picture_at(line, start) if start >= end else None
        if picture is not None and line.count("`", 0, start) % 2 == 0:
            found.append(picture)
            end = picture.end
    return found


def word_at(line: str, start: int) -> Found | None:
    r"""What `\image` names at a place: a picture that is there, or the next word."""
    picture = _picture_at(line, start)
    if picture is not None:
        return picture
    quoted = _QUOTED.match(line, start)
    if quoted is not None:
        return Found(start, quoted.end(), quoted["double"] or quoted["single"])
    word = _WORD.match(line, start)
    if word is None:
        return None
    plain = unescaped(word[0])
    return Found(start, word.end(), plain if exists(plain) else word[0])


def _picture_at(line: str, start: int) -> Found | None:
    """The picture that begins exactly there."""
    url = _URL.match(line, start)
    if url is not None:
        return _url(url)
    # What a terminal drops is one word of a shell.
    word = _SHELL.match(line, start, start + MOST_LETTERS)
    if word is not None:
        typed = word[0].rstrip(_BEHIND) if word[0][0] not in "'\"" else word[0]
        if typed != unescaped(typed) and _is_picture(unescaped(typed)):
            return Found(start, start + len(typed), unescaped(typed))
    for end in _ends(line, start):
        path = line[start:end]
        if _is_picture(path):
            return Found(start, end, path, path.startswith(("/", "~")))
    return None


def _ends(line: str, start: int) -> Iterator[int]:
    """Where a path may end that begins at a place, the furthest first."""
    limit = len(line)
    for words, gap in enumerate(_GAP.finditer(line, start), start=1):
        if words == MOST_WORDS or "\n" in gap[0]:
            limit = gap.start()
            break
    yield from reversed([match.end() for match in _ENDING.finditer(line, start, limit)])


def _url(match: re.Match[str]) -> Found | None:
    text = match[0].rstrip(_BEHIND) if not match[0].startswith("data:") else match[0]
    end = match.start() + len(text)
    if text.startswith("data:"):
        return Found(match.start(), end, text)
    try:
        path = urlsplit(text).path
    except ValueError:  # brackets that are no IPv6 address
        return None
    if not _ENDING.search(path[-6:]):
        return None
    if text.startswith("file:"):
        path = unquote(path)
        return Found(match.start(), end, path) if _is_picture(path) else None
    return Found(match.start(), end, text)


def _is_picture(path: str) -> bool:
    is_named_so = path.lower().endswith(tuple(f".{ending}" for ending in ENDINGS))
    return is_named_so and "\0" not in path and os.path.isfile(os.path.expanduser(path))
