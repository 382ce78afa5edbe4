"""Whatever names or holds an encoded video -> an open file.

A file on disk is read while it is decoded; only what comes as bytes or over the network is held.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, cast

from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.film import check_film
from mlx_qwenvl.inputs.source import (
    DEFAULT_LIMITS,
    MediaLimits,
    locate,
    open_path,
    read_file,
    shown,
)

__all__ = ["check_video", "open_video"]

FETCH_BYTES = 2**30  # of a video from a URL, where nobody says otherwise
FETCH_S = 300.0


@contextmanager
def open_video(source: object, limits: MediaLimits) -> Iterator[tuple[BinaryIO, str]]:
    """Open a video, and give it with a name for messages.

    Args:
        source: Text as of `source.locate`, a path, bytes, or a binary file (read from its start
            and left open).
        limits: What it may cost and where it may come from.

    Raises:
        MediaError: There is no such video, or it is too large.
        FetchError: A URL cannot be opened.
    """
    limits = replace(limits, max_bytes=limits.video.max_bytes)
    if isinstance(source, str):
        found, name = locate(source, _fetching(source, limits), "video")
    elif isinstance(source, os.PathLike):
        found = os.fsdecode(source)
        name = shown(found)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        found, name = bytes(source), "the video"
    elif hasattr(source, "read"):
        named = getattr(source, "name", None)
        name = shown(named) if isinstance(named, str) else "the video"
        yield _seekable(cast(BinaryIO, source), name, limits), name
        return
    else:
        expected = "a path, a URL, bytes, a binary file or a list of frames"
        raise MediaError(f"expected {expected} as a video, got {type(source).__name__}")
    if isinstance(found, str):
        with open_path(found, limits, "video") as file:
            yield _seekable(file, name, limits), name
    else:
        yield _charged(_Held(found, name), limits), name


class _Held(io.BytesIO):
    """A video in memory that keeps its name when it is opened again."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def check_video(text: str, limits: MediaLimits = DEFAULT_LIMITS) -> None:
    """See that text names a video, as far as that can be told without a network.

    Raises:
        MediaError: It names none, or PyAV is not installed.
    """
    if text.lstrip()[:4].lower() != "http":
        with open_video(text, limits) as (file, name):
            check_film(file, name)


def _fetching(text: str, limits: MediaLimits) -> MediaLimits:
    if limits.fetch is not None:
        return replace(limits, fetch=replace(limits.fetch, max_bytes=limits.video.max_bytes))
    if text.lstrip()[:4].lower() != "http":
        return limits
    from mlx_qwenvl.inputs.fetch import FetchLimits  # late, as in `source.py`

    return replace(limits, fetch=FetchLimits(deadline_s=FETCH_S, max_bytes=FETCH_BYTES))


def _seekable(file: BinaryIO, name: str, limits: MediaLimits) -> BinaryIO:
    """The file itself, or all of it where it can be read once only, as from a pipe."""
    try:
        if file.seekable() and isinstance(file.read(0), bytes):
            return _charged(file, limits)
    except Exception as error:  # a file object of any make
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{name}: cannot be read as a binary file") from error
    return _charged(io.BytesIO(read_file(file, name, limits)), limits)


def _charged(file: BinaryIO, limits: MediaLimits) -> BinaryIO:
    if limits.budget is not None:
        limits.budget.charge_bytes(file.seek(0, io.SEEK_END))
    return file
