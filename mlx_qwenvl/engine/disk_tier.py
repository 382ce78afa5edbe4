"""Arrays that outlive the process: one file for each, in a folder that only its owner can read.

A file is a safetensors file whose name and header say what it is for: the form of this tier, the
model, the kind and the key. Its header holds a SHA-256 over all of that and over the arrays, so a
file that is damaged, foreign or of another version is never an answer; it is removed. Files appear
by renaming and are read through one descriptor, so processes need no lock between them. Nothing
here fails an answer: what cannot be read is computed, what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import OptionError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of the files; others are never read
DISK_BYTES = 2 * 2**30  # kept on disk by default
FOLDER = "mlx-qwenvl"  # made in the given one, so that no one else's permissions are changed
SUFFIX, DRAFT = ".safetensors", ".draft"
ABANDONED = 3600.0  # seconds after which a draft belongs to nobody
_HEADER_LIMIT = 2**20  # bytes; ours have some hundred
_DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "U8": mx.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Damaged(Exception):
    """A file that does not hold what its name promises."""


class DiskTier:
    """Files of one model in a folder that several models and processes share.

    Args:
        parent: The folder to make ours in.
        limit: Bytes of all files at most, whichever model's; the least recently used go first.
        identity: What the arrays depend on beside their keys (`weights/identity.py`).

    Raises:
        OptionError: The folder cannot be made or belongs to someone else.
    """

    def __init__(self, parent: Path, limit: int, identity: str) -> None:
        self.folder = _private_folder(parent.expanduser() / FOLDER)
        self._limit = limit
        self._identity = identity
        self._writes = True

    def get(self, kind: str, key: bytes) -> list[mx.array] | None:
        """The arrays of a key, or None where there are none."""
        file = self.folder / self._name(kind, key)
        try:
            arrays = _decode(_read(file), self._statement(kind, key))
            os.utime(file)  # used now
        except FileNotFoundError:
            return None
        except (OSError, _Damaged) as error:
            log.warning("%s is not used and removed: %s", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        return arrays

    def has(self, kind: str, key: bytes) -> bool:
        """Whether there is a file of a key, sound or not."""
        return (self.folder / self._name(kind, key)).exists()

    def put(self, kind: str, key: bytes, arrays: Sequence[mx.array]) -> None:
        """Write the arrays of a key, unless there is a file of it, and remove what is too much."""
        name = self._name(kind, key)
        if not self._writes or (self.folder / name).exists():
            return
        parts = _encode(arrays, self._statement(kind, key))
        if sum(map(len, parts)) > self._limit:
            return
        draft = self.folder / f".{secrets.token_hex(8)}{DRAFT}"
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.writelines(parts)
            draft.replace(self.folder / name)
            self._shrink()
        except OSError as error:
            # A full disk would fail again and again, each time after writing.
            self._writes = False
            log.warning("nothing more is kept in %s: %s", self.folder, error.strerror)
            with contextlib.suppress(OSError):
                draft.unlink()

    def _shrink(self) -> None:
        """Remove the least recently used files beyond the limit, and drafts nobody writes to."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(SUFFIX):
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
                    elif entry.name.endswith(DRAFT) and time.time() - status.st_mtime > ABANDONED:
                        os.unlink(entry.path)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _statement(self, kind: str, key: bytes) -> dict[str, str]:
        return {
            "format": "mlx-qwenvl cache",
            "format_version": str(FORMAT_VERSION),
            "model": self._identity,
            "kind": kind,
            "key": key.hex(),
        }

    def _name(self, kind: str, key: bytes) -> str:
        statement = json.dumps(self._statement(kind, key), sort_keys=True)
        return hashlib.sha256(statement.encode()).hexdigest() + SUFFIX


def _private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can enter, or see that it is one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise OptionError(f"{folder} is no folder of yours, so nothing is kept in it")
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise OptionError(f"{folder} cannot be used: {error.strerror}") from None
    return folder


def _read(file: Path) -> bytes:
    """All bytes of a plain file of ours; one that is replaced meanwhile stays what it was."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise _Damaged("it is no plain file of yours")
        return opened.read()


def _encode(arrays: Sequence[mx.array], statement: dict[str, str]) -> list[bytes]:
    """A safetensors file in pieces: length, header, arrays."""
    header: dict[str, Any] = {}
    blobs, end = [], 0
    for index, array in enumerate(arrays):
        blobs.append(np.array(mx.contiguous(array).reshape(-1).view(mx.uint8)).tobytes())
        begin, end = end, end + len(blobs[-1])
        header[str(index)] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    checksum = _checksum(statement, header, blobs)
    header["__metadata__"] = statement | {"sha256": checksum}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *blobs]


def _decode(data: bytes, statement: dict[str, str]) -> list[mx.array]:
    """The arrays of a file that states what is expected of it."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(_HEADER_LIMIT, len(data) - 8):
        raise _Damaged("it has no header")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        stated = metadata.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise _Damaged("its header is not one of this cache") from None
    payload = memoryview(data)[8 + length :]
    if metadata != statement or stated != _checksum(statement, header, [payload]):
        raise _Damaged("it is damaged, or of something else")
    # The checksum holds from here on, so what follows is as it was written.
    arrays = []
    for entry in header.values():
        begin, end = entry["data_offsets"]
        raw = mx.array(np.frombuffer(payload[begin:end], dtype=np.uint8))
        arrays.append(raw.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"]))
    return arrays


def _checksum(
    statement: dict[str, str], header: dict[str, Any], blobs: Sequence[bytes | memoryview]
) -> str:
    sha = hashlib.sha256(json.dumps([statement, header], sort_keys=True).encode())
    for blob in blobs:
        sha.update(blob)
    return sha.hexdigest()
