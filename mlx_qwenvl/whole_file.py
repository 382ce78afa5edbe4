"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LONGEST_NAME = 100  # characters of a draft's name; file systems bound the whole of it


@contextmanager
def written_whole(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of another once the block has ended.

    It lies beside that one until then, so that a full disk, an error or Ctrl-C leaves what was
    there.

    Args:
        path: The file.
        mode: Its permissions; by default those of what it replaces, or of any new file.

    Raises:
        OSError: It cannot be written.
    """
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:LONGEST_NAME]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(descriptor, _usual_mode(path) if mode is None else mode)
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def _usual_mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
