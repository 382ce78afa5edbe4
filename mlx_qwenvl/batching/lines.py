"""Lines of JSON that are appended one by one: to a file that survives what ends us, or to a stream.

A line is written whole or not at all, as far as we live: a write that fails is taken back. What a
killed process leaves of a line is cut off when the file is opened again. The file is locked while
somebody writes to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from mlx_qwenvl.batching.named import KINDS, Named
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.whole_file import written_whole

STARTS = tuple(f'{{"{kind}": "'.encode() for kind in KINDS)  # of every line written here
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)  # some network file systems have none
Entry = dict[str, Any]


class Lines(Protocol):
    """Where lines go."""

    def append(self, entry: Entry) -> object:
        """Write a line and give its place."""

    def at(self, place: Any) -> Entry:
        """A line that was written, by its place."""


class StreamLines:
    """Lines on a stream, which cannot be read again; they are kept in memory as well.

    Args:
        stream: Where they go; each is flushed.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, entry: Entry) -> bytes:
        """Write a line and give it."""
        line = encoded(entry)
        self._stream.write(line)
        self._stream.flush()
        return line

    def at(self, place: bytes) -> Entry:
        """A line that was written."""
        entry: Entry = json.loads(place)
        return entry


class FileLines:
    """Lines of a file of our own.

    Args:
        path: The file; it is made where there is none, and goes again if nothing is written.

    Raises:
        OptionError: It is a folder, or holds something else than our lines.
        QwenVLError: Somebody else is writing to it.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.is_dir():
            raise OptionError(f"{path} is a folder; expected a file for the answers")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock(self._file)
        except BaseException:
            os.close(self._file)
            raise
        self._end = 0  # of the lines that are ours
        self._is_read = False
        self._obsolete: list[int] = []

    def __enter__(self) -> FileLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take out what was said to be obsolete, and let the file go."""
        try:
            if os.fstat(self._file).st_size == 0:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            elif self._obsolete:
                self._without_obsolete()
        finally:
            os.close(self._file)

    def read(self) -> Iterator[tuple[int, Entry]]:
        """The lines that are there, by place; what a killed process left of a last one is cut off.

        To be read to the end before anything is appended.

        Raises:
            OptionError: One is none of ours.
        """
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                entry = _decoded(line)
                if entry is None:
                    if not _is_cut(line):
                        raise OptionError(
                            f"{self.path}, line {number}: is no answer of this command; give "
                            "another file for the answers"
                        )
                    os.ftruncate(self._file, self._end)
                    break
                yield self._end, entry
                self._end += len(line)
                if not line.endswith(b"\n"):
                    self._write(b"\n")
        self._is_read = True

    def append(self, entry: Entry) -> int:
        """Write a line and give its place.

        Raises:
            OSError: It could not be written; the file is as before.
        """
        assert self._is_read, "or it would write over what is there"
        place = self._end
        self._write(encoded(entry))
        return place

    def at(self, place: int) -> Entry:
        """A line, by its place."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(place)
            entry: Entry = json.loads(file.readline())
            return entry

    def drop(self, place: int) -> None:
        """Say that a line is obsolete: it goes when the file is left."""
        self._obsolete.append(place)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QwenVLError(
                f"another run is writing to {self.path}; wait for it, or give another file"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        # Who was here before may have put another file in its place.
        if not self.path.exists() or not os.path.samestat(os.fstat(file), self.path.stat()):
            raise QwenVLError(f"another run on {self.path} has just ended; look at what it wrote")

    def _without_obsolete(self) -> None:
        """Write the file anew without some of its lines; where that fails they stay."""
        with (
            contextlib.suppress(OSError),
            written_whole(self.path) as aside,
            os.fdopen(os.dup(self._file), "rb") as file,
        ):
            begin = 0
            for place in sorted(self._obsolete):
                file.seek(begin)
                _copy(file, aside, place - begin)
                file.seek(place)
                begin = place + len(file.readline())
            file.seek(begin)
            shutil.copyfileobj(file, aside)


def encoded(entry: Entry) -> bytes:
    """An entry as a line; names that are no UTF-8 are escaped, as JSON allows."""
    try:
        return f"{json.dumps(entry, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(entry)}\n".encode()


def _decoded(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(entry, dict) and Named.of_line(entry) is not None
    return entry if is_ours else None


def _is_cut(line: bytes) -> bool:
    """Whether a line is what a killed process, or a machine without power, left of one of ours."""
    begin = line.rstrip(b"\0")
    is_begun = any(start.startswith(begin) or begin.startswith(start) for start in STARTS)
    return is_begun and not line.endswith(b"\n")


def _copy(source: BinaryIO, target: Any, count: int) -> None:
    while count > 0:
        data = source.read(min(count, 2**20))
        target.write(data)
        count -= len(data)
