"""A path that a stranger sent -> a file under one folder, or one and the same refusal."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mlx_qwenvl.errors import MediaError

__all__ = ["open_under"]

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # a FIFO would wait for a writer


def open_under(root: Path, path: str, name: str) -> BinaryIO:
    """Opens a regular file in a folder or below it; links are followed as long as they stay there.

    Args:
        root: The folder.
        path: Relative to it, or absolute and inside.
        name: Of the file, for messages.

    Raises:
        MediaError: There is no such file in there. The message does not tell missing files from
            those outside, so that nobody learns what else is on the disk.
    """
    try:
        base = root.resolve(strict=True)
        inside = (base / path).resolve().relative_to(base)
        descriptor = os.open(base, FOLDER)
        # Step by step without links: what was resolved cannot be swapped for something else.
        for i, part in enumerate(inside.parts):
            flags = FILE if i == len(inside.parts) - 1 else FOLDER
            try:
                below = os.open(part, flags, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links, a name that is too long
        pass
    raise MediaError(f"{name}: is no file in the folder that was given by --image-root")
