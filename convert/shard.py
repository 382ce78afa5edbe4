"""A safetensors file written from front to back, so that it can be broken off and taken up again.

All shapes are known beforehand: the header comes first, then the bytes of one tensor after
another. Beside the file a journal keeps a checksum for every finished tensor. Whoever takes the
work up reads the file as far as the journal vouches for it and goes on there. The checksum of the
whole file is reckoned on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TextIO

from .tensors import Job

ALIGNMENT = 8  # bytes; readers map the data behind the header into memory
BLOCKS_WAITING = 8  # blocks that may wait to be written
READ_BYTES = 2**22  # bytes read at once when what is there already is checked
DATA_DIGEST = "data_sha256"  # key in the metadata of a file that has no index beside it
NO_DIGEST = "0" * 64  # stands there until the file is finished

_CHECKSUM = re.compile(rb"0|[1-9][0-9]{0,9}")
_STATED_DIGEST = re.compile(rb'("%b":")[0-9a-f]{64}' % DATA_DIGEST.encode())


@dataclass(frozen=True)
class Shard:
    """A file to be written.

    Attributes:
        name: Its path in the output folder.
        jobs: What goes into it, in this order.
        metadata: Free texts in its header.
        digests_itself: Whether the header states the checksum of what follows it.
    """

    name: str
    jobs: Sequence[Job]
    metadata: Mapping[str, str]
    digests_itself: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(spec.nbytes for job in self.jobs for spec in job.specs)

    def header(self, digest: str = NO_DIGEST) -> bytes:
        """The file's beginning: the length of the header, and the header."""
        metadata = dict(self.metadata) | ({DATA_DIGEST: digest} if self.digests_itself else {})
        entries: dict[str, object] = {"__metadata__": metadata}
        end = 0
        for job in self.jobs:
            for spec in job.specs:
                begin, end = end, end + spec.nbytes
                entries[spec.name] = {
                    "dtype": spec.dtype,
                    "shape": list(spec.shape),
                    "data_offsets": [begin, end],
                }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def write_shard(folder: Path, shard: Shard, on_job: Callable[[Job], None]) -> str:
    """Write a file, or finish one that was begun.

    Args:
        folder: The output folder.
        shard: The file.
        on_job: Called after every job, also after those that were done before.

    Returns:
        The SHA-256 in hexadecimal: of the whole file, or of what follows the header where the
        header states it.

    Raises:
        CheckpointError: A source tensor is bad.
        OSError: The disk is full, or something else is wrong with it.
    """
    file = folder / shard.name
    file.parent.mkdir(parents=True, exist_ok=True)
    journal = journal_of(file)
    header = shard.header()
    with open(file, "r+b" if file.exists() else "w+b") as out:
        done, digest = _vouched_for(out, shard, header, _checksums(journal))
        with open(journal, "a", encoding="ascii") as notes, _Pen(out, digest, notes) as pen:
            # Cut, not written anew, so that whoever is killed here loses none of it.
            notes.truncate(sum(len(f"{checksum}\n") for checksum in done))
            for number, job in enumerate(shard.jobs):
                if number >= len(done):
                    for block in job.blocks():
                        pen.write(block)
                    pen.end_job()
                on_job(job)
        if shard.digests_itself:
            out.seek(0)
            out.write(shard.header(digest.hexdigest()))
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def journal_of(file: Path) -> Path:
    """Where the checksums of a file's finished tensors are kept."""
    return file.with_name(f"{file.name}.journal")


class _Pen:
    """Writes blocks and vouches for finished jobs, while the next blocks are being made.

    Writing and hashing take about as long as quantizing, and leave the interpreter free.
    """

    def __init__(self, out: BinaryIO, digest: hashlib._Hash, notes: TextIO) -> None:
        self._out = out
        self._digest = digest
        self._notes = notes
        self._checksum = 0
        self._failed = False  # nothing is written behind a gap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()

    def write(self, block: memoryview) -> None:
        """Write a block soon; what went wrong with an earlier one is raised now."""
        self._later(lambda: self._write(block))

    def end_job(self) -> None:
        """Note that all blocks of a job have been written."""
        self._later(self._vouch)

    def __enter__(self) -> _Pen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for written in self._waiting:
                written.result()

    def _later(self, do: Callable[[], None]) -> None:
        def unless_failed() -> None:
            if not self._failed:
                self._failed = True  # until it is done
                do()
                self._failed = False

        self._waiting.append(self._thread.submit(unless_failed))
        while len(self._waiting) > BLOCKS_WAITING:
            self._waiting.popleft().result()

    def _write(self, block: memoryview) -> None:
        self._out.write(block)
        self._checksum = zlib.crc32(block, self._checksum)
        self._digest.update(block)

    def _vouch(self) -> None:
        self._out.flush()
        self._notes.write(f"{self._checksum}\n")
        self._notes.flush()
        self._checksum = 0


def _checksums(journal: Path) -> list[int]:
    try:
        lines = journal.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    # The last one was cut short, or is empty. A damaged one ends what can be believed.
    return [int(line) for line in takewhile(_CHECKSUM.fullmatch, lines[:-1])]


def _vouched_for(
    out: BinaryIO, shard: Shard, header: bytes, checksums: Sequence[int]
) -> tuple[list[int], hashlib._Hash]:
    """Find how far a begun file is sound, and put the pen there.

    Returns:
        Checksums of the jobs that need not be done again, and the digest up to there.
    """
    digest = hashlib.sha256() if shard.digests_itself else hashlib.sha256(header)
    sound: list[int] = []
    end = len(header)
    if _undigested(out.read(end)) != header:
        out.seek(0)
        out.truncate()
        out.write(header)
        return sound, digest
    for job, expected in zip(shard.jobs, checksums, strict=False):
        nbytes = sum(spec.nbytes for spec in job.specs)
        checksum, so_far = 0, digest.copy()
        for block in _pieces(out, nbytes):
            checksum = zlib.crc32(block, checksum)
            so_far.update(block)
        if checksum != expected:
            break
        sound.append(checksum)
        digest, end = so_far, end + nbytes
    out.seek(end)
    out.truncate()
    return sound, digest


def _undigested(header: bytes) -> bytes:
    """A header as it was before the file was finished."""
    return _STATED_DIGEST.sub(rb"\g<1>" + NO_DIGEST.encode(), header, count=1)


def _pieces(opened: BinaryIO, nbytes: int) -> Iterator[bytes]:
    while nbytes > 0:
        piece = opened.read(min(nbytes, READ_BYTES))
        if not piece:
            return
        yield piece
        nbytes -= len(piece)
