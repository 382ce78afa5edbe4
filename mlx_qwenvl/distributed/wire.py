"""Values as bytes, between processes of one version of this package, and as words of a connection.

JSON says how a value is built and NumPy's bytes follow it. Only dataclasses of this package are
made again, and only of modules that are imported already, so that a peer can have nothing run.
A word is a value behind its length; one of no bytes is a sign of life.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from mlx_qwenvl.errors import QwenVLError

PACKAGE = "mlx_qwenvl."
MAX_FRAME = 2**31  # bytes of one word; a question with its pictures
_LENGTH = struct.Struct("<I")
BEAT = _LENGTH.pack(0)
_NO_VALUE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError),
    struct.error,
)


class WireError(QwenVLError):
    """Bytes that are no value of this package."""


def pack(value: Any) -> bytes:
    """A value as bytes: None, numbers, text, bytes, arrays, collections and our dataclasses."""
    blobs: list[bytes] = []
    head = json.dumps(_plain(value, blobs)).encode()
    lengths = json.dumps([len(blob) for blob in blobs]).encode()
    sizes = _LENGTH.pack(len(head)) + _LENGTH.pack(len(lengths))
    return b"".join([sizes, head, lengths, *blobs])


def unpack(raw: bytes) -> Any:
    """The value that `pack` was given.

    Raises:
        WireError: They are not such bytes.
    """
    try:
        (head,), (lengths,) = _LENGTH.unpack_from(raw), _LENGTH.unpack_from(raw, _LENGTH.size)
        begin = 2 * _LENGTH.size
        plain = json.loads(raw[begin : begin + head])
        at = begin + head + lengths
        blobs = []
        for length in json.loads(raw[begin + head : at]):
            blobs.append(memoryview(raw)[at : at + length])
            at += length
        return _built(plain, blobs)
    except _NO_VALUE as error:
        raise WireError(f"a peer sent what is no value: {error}") from None


def _plain(value: Any, blobs: list[bytes]) -> Any:
    """What JSON can say; whatever is not a single value is a list that begins with its kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        blobs.append(bytes(value))
        return ["bytes", len(blobs) - 1]
    if isinstance(value, np.ndarray):
        blobs.append(np.ascontiguousarray(value).tobytes())
        return ["array", value.dtype.str, value.shape, len(blobs) - 1]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_plain(item, blobs) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([_plain(k, blobs), _plain(v, blobs)] for k, v in value.items())]
    if is_dataclass(value) and type(value).__module__.startswith(PACKAGE):
        held = {f.name: _plain(getattr(value, f.name), blobs) for f in fields(value) if f.init}
        return ["made", type(value).__module__, type(value).__qualname__, held]
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _built(plain: Any, blobs: list[memoryview]) -> Any:
    if not isinstance(plain, list):
        return plain
    kind, *rest = plain
    if kind == "bytes":
        return bytes(blobs[rest[0]])
    if kind == "array":
        dtype, shape, index = rest
        return np.frombuffer(blobs[index], np.dtype(dtype)).reshape(shape)
    if kind == "list":
        return [_built(item, blobs) for item in rest]
    if kind == "tuple":
        return tuple(_built(item, blobs) for item in rest)
    if kind == "dict":
        return {_built(k, blobs): _built(v, blobs) for k, v in rest}
    if kind == "made":
        module, name, held = rest
        made = getattr(sys.modules[module], name)
        if module.startswith(PACKAGE) and isinstance(made, type) and is_dataclass(made):
            return made(**{key: _built(item, blobs) for key, item in held.items()})
    raise ValueError(f"unknown kind {kind!r}")


def word_bytes(word: Any) -> bytes:
    """A word as it is sent: its length, and itself."""
    packed = pack(word)
    return _LENGTH.pack(len(packed)) + packed


def read_word(
    sock: socket.socket, note: Callable[[], None] = lambda: None, most: int = MAX_FRAME
) -> Any:
    """The next word that comes.

    Args:
        sock: Where from.
        note: Called whenever something has come, if only a sign of life.
        most: Bytes that it may have.

    Raises:
        OSError: The connection has ended.
        WireError: It is no word.
    """
    while True:
        (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size, note))
        if length > most:
            raise WireError(f"a word of {length} bytes")
        if length:
            return unpack(_exactly(sock, length, note))


def _exactly(sock: socket.socket, count: int, note: Callable[[], None]) -> bytes:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise OSError("the connection was closed")
        view = view[got:]
        note()
    return bytes(buffer)
