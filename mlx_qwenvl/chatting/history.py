"""What was typed, kept for the next time in a file for its owner alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

MOST_LETTERS: Final = 4000  # of a line that is kept; a picture in base64 is not
MOST_LINES: Final = 2000  # that are read again


def history_file() -> Path:
    """`mlx-qwenvl/chat_history` in the user's folder for state."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "mlx-qwenvl/chat_history"


def open_history(path: Path | None) -> History:
    """What was typed before, and what will be.

    Args:
        path: The file; None keeps nothing. One that cannot be written is as none.
    """
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        os.chmod(path, 0o600)
    except OSError:
        return InMemoryHistory()
    return PrivateHistory(path)


class PrivateHistory(FileHistory):
    """prompt_toolkit's file of lines, which never breaks a conversation.

    Args:
        path: The file, which is there.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """The lines, newest first."""
        try:
            return list(super().load_history_strings())[:MOST_LINES]
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Keep a line."""
        if len(string) > MOST_LETTERS:
            return
        try:
            super().store_string(string)
        except OSError:  # a full disk, say; the line is still known while the chat goes on
            return
