"""What Tab offers: commands, paths and models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Final

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mlx_qwenvl.chatting.commands import ALIASES, COMMANDS
from mlx_qwenvl.chatting.paths import ENDINGS, escaped, unescaped
from mlx_qwenvl.clean import clean_line
from mlx_qwenvl.weights.resolve import DEMO
from mlx_qwenvl.weights.short_names import SHORT_NAMES

_NAME: Final = re.compile(r"[\\/](\w*)")
_COMMAND: Final = re.compile(r"[\\/](\w+)\s")
_LAST_WORD: Final = re.compile(r"(?:\\.|[^\s\\])*\Z", re.DOTALL)
_LOOKS_LIKE_PATH: Final = re.compile(r"[~/.]")


class LineCompleter(Completer):
    """Completes the line before the cursor."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Commands at the beginning of a line, then what they take, and paths anywhere."""
        text = document.text_before_cursor
        name = _NAME.fullmatch(text)
        if name is not None:
            yield from _commands(text[0], name[1])
        command = _COMMAND.match(text)
        known = ALIASES.get(command[1], command[1]) if command else ""
        takes = COMMANDS[known].takes if known in COMMANDS else "picture"
        found = _LAST_WORD.search(text)
        word = found[0] if found else ""
        if takes == "model":
            models = [DEMO, *SHORT_NAMES]
            yield from (Completion(m, -len(word)) for m in models if m.startswith(word))
        if takes and (command or _LOOKS_LIKE_PATH.match(word)):
            yield from _paths(word, pictures_only=takes == "picture", folders_only=takes == "model")


def _commands(sign: str, begun: str) -> Iterator[Completion]:
    for name, entry in COMMANDS.items():
        if name.startswith(begun.lower()):
            yield Completion(f"{sign}{name}", -len(begun) - 1, display_meta=entry.purpose)


def _paths(word: str, *, pictures_only: bool, folders_only: bool) -> Iterator[Completion]:
    folder, begun = os.path.split(unescaped(word))
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder or ".")), key=lambda e: e.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if not entry.name.startswith(begun) or (entry.name.startswith(".") and not begun):
            continue
        if not entry.name.isprintable():  # it would have to be typed raw
            continue
        is_folder = entry.is_dir()
        is_picture = entry.name.lower().endswith(tuple(f".{ending}" for ending in ENDINGS))
        if not is_folder and (folders_only or (pictures_only and not is_picture)):
            continue
        slash = "/" if is_folder else ""
        tilde = folder.startswith("~")
        whole = os.path.join(folder, entry.name)
        typed = ("~" + escaped(whole[1:]) if tilde else escaped(whole)) + slash
        yield Completion(typed, -len(word), display=clean_line(entry.name) + slash)
