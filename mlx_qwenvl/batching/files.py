"""Which files are meant: patterns, folders, files, URLs and lists become names in one order."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlx_qwenvl.batching.named import Kind, Named
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.source import shown

STDIN = "-"
# What a folder is searched for. A file that is named itself may be called anything.
_ENDINGS: dict[Kind, re.Pattern[str]] = {
    "image": re.compile(
        r"\.(?:avif|bmp|gif|hei[cf]|jfif|jpe|jpe?g|jxl|png|tiff?|webp)", re.IGNORECASE
    ),
    "video": re.compile(r"\.(?:3gp|avi|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ts|webm)", re.IGNORECASE),
}
_WORDS: dict[Kind, str] = {"image": "picture", "video": "video"}
_URL = re.compile(r"(?:https?://|data:|file:)", re.IGNORECASE)


def find_named(
    kind: Kind, asked: Sequence[str], lists: Sequence[str] = (), *, ends_with_nul: bool = False
) -> list[Named]:
    """Pictures or videos, each once, in the order in which they were asked for.

    Args:
        kind: What they are meant to be.
        asked: Files, folders, patterns as `photos/**/*.jpg`, URLs, or `-` for a list on standard
            input. What a folder or a pattern leads to is sorted.
        lists: Files that hold names line by line, or `-`. What they name is taken as it is.
        ends_with_nul: Whether names in lists end with a NUL instead of a line's end.

    Raises:
        OptionError: A name leads to none, or a list cannot be read.
    """
    found: dict[str, None] = {}
    for name in asked:
        named = _listed(kind, STDIN, ends_with_nul) if name == STDIN else _expanded(kind, name)
        found.update(dict.fromkeys(named))
    for name in lists:
        found.update(dict.fromkeys(_listed(kind, name, ends_with_nul)))
    return [Named(kind, name) for name in found]


def check_stdin(names: Sequence[str]) -> None:
    """See that standard input is named no more than once.

    Raises:
        OptionError: It is.
    """
    if names.count(STDIN) > 1:
        raise OptionError("standard input was named more than once; it holds one list")


def _expanded(kind: Kind, name: str) -> Iterable[str]:
    if _URL.match(name):
        return [name]
    path = os.path.expanduser(name)
    # A file may be called [1].jpg; only what does not exist is a pattern.
    if os.path.isdir(path):
        return _in_folder(kind, path)
    if os.path.lexists(path):
        return [path]
    matches = sorted(glob.iglob(path, recursive=True))
    files = [match for match in matches if not os.path.isdir(match)]
    if set(os.path.basename(path)) == {"*"}:  # "everything" means every picture
        files = [file for file in files if _has_ending(kind, file)]
    if not files:
        what = f"{_WORDS[kind]} matches" if glob.has_magic(path) else "such file:"
        raise OptionError(f"no {what} {shown(name)!r}; a question goes to --prompt")
    return files


def _in_folder(kind: Kind, folder: str) -> list[str]:
    """The pictures or videos of a folder, not those of folders in it, and no hidden ones."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise OptionError(f"the folder {folder}: {error.strerror}") from None
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    files = [path for path in paths if _has_ending(kind, path) and os.path.isfile(path)]
    if not files:
        deeper = os.path.join(folder, "**")
        raise OptionError(f"the folder {folder} holds no {_WORDS[kind]}; {deeper!r} looks deeper")
    return files


def _has_ending(kind: Kind, path: str) -> bool:
    return _ENDINGS[kind].fullmatch(os.path.splitext(path)[1]) is not None


def _listed(kind: Kind, name: str, ends_with_nul: bool) -> Iterator[str]:
    try:
        if name != STDIN:
            data = Path(name).expanduser().read_bytes()
        elif sys.stdin is None:
            what = f"the list of {_WORDS[kind]}s"
            raise OptionError(f"{what} was to come on standard input, which is closed")
        else:
            data = sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise OptionError(f"the list {name}: {reason}") from None
    for line in data.split(b"\0" if ends_with_nul else b"\n"):
        if entry := line if ends_with_nul else line.rstrip(b"\r"):
            yield os.fsdecode(entry)
