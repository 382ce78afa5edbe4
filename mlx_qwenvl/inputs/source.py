"""Whatever names a picture -> its encoded bytes and a short name for messages.

Sizes are counted while bytes arrive; nothing is decoded here.
"""

from __future__ import annotations

import binascii
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, unquote_to_bytes

from mlx_qwenvl.errors import MediaError, OptionError
from mlx_qwenvl.inputs.rooted import open_under
from mlx_qwenvl.inputs.sniff import container_of, format_of, looks_like

if TYPE_CHECKING:
    from mlx_qwenvl.inputs.fetch import FetchLimits

__all__ = [
    "DEFAULT_LIMITS",
    "MediaBudget",
    "MediaLimits",
    "VideoLimits",
    "locate",
    "open_path",
    "read_file",
    "read_path",
    "read_text",
    "shown",
]


class MediaBudget:
    """What all pictures of one request may cost together, charged as they are opened.

    Args:
        max_bytes: Of the encoded pictures.
        max_pixels: Of the pictures as stored.
        fetch_s: For all URLs, in seconds; runs only while one is fetched.
    """

    def __init__(self, max_bytes: int, max_pixels: int, fetch_s: float) -> None:
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self.bytes_left, self.pixels_left, self.fetch_s_left = max_bytes, max_pixels, fetch_s

    def charge_bytes(self, count: int) -> None:
        """Count a picture's bytes.

        Raises:
            MediaError: They are more than is left.
        """
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise MediaError(f"the pictures have more than {self._max_bytes} bytes together")

    def charge_pixels(self, count: int) -> None:
        """Count a picture's pixels, before they are decoded.

        Raises:
            MediaError: They are more than is left.
        """
        self.pixels_left -= count
        if self.pixels_left < 0:
            raise MediaError(f"the pictures have more than {self._max_pixels} pixels together")


@dataclass(frozen=True)
class VideoLimits:
    """What one video may cost beside what its frames cost as pictures.

    Attributes:
        max_bytes: Size of the encoded video, in bytes; a file on disk is read as it is decoded.
        max_seconds: Of it, whatever its header says.
        max_frames: Of it, whether they are taken or not.
        max_pixels: Width times height of a frame as stored.
        work_s: For reading and decoding it, in seconds.
    """

    max_bytes: int = 8 * 2**30
    max_seconds: float = 4 * 3600.0
    max_frames: int = 1_000_000
    max_pixels: int = 8192 * 4320
    work_s: float = 900.0

    def __post_init__(self) -> None:
        """Refuses limits that no video can meet."""
        for name, value in vars(self).items():
            if not value > 0:
                raise OptionError(f"{name} is {value}, expected a number above 0")


@dataclass(frozen=True)
class MediaLimits:
    """What one picture may cost, and where it may come from.

    Attributes:
        max_bytes: Size of the encoded picture, in bytes.
        max_pixels: Width times height, in pixels; Pillow holds 4 bytes for each.
        local_files: Whether text may name a file. A path object always may: the program made it.
        urls: Whether text may name an http(s) URL.
        fetch: Limits for URLs, beside max_bytes; None takes ``FetchLimits()``.
        root: Folder in which every file that text names has to lie, and where relative paths
            start; None for the whole disk, from the current folder.
        files_hint: Said where text names a file that is not opened: how to have it opened.
        budget: Shared by the pictures of one request; None for no limit beside those of each.
        video: What one video may cost.
    """

    max_bytes: int = 256 * 2**20  # bytes
    max_pixels: int = 128_000_000  # pixels; photos have up to 102 million; Pillow stops at 179
    local_files: bool = True
    urls: bool = True
    fetch: FetchLimits | None = None
    root: Path | None = None
    files_hint: str = ""
    budget: MediaBudget | None = None
    video: VideoLimits = VideoLimits()

    def __post_init__(self) -> None:
        """Refuses limits that no picture can meet."""
        if self.max_bytes < 1 or self.max_pixels < 1:
            got = f"{self.max_bytes} and {self.max_pixels}"
            raise OptionError(f"max_bytes and max_pixels must be positive, got {got}")


DEFAULT_LIMITS = MediaLimits()


def read_text(text: str, limits: MediaLimits) -> tuple[bytes, str]:
    """Reads what text names: a URL, a path that exists or base64, in this order.

    Where a root is set, text comes from a stranger, and base64 is tried before a path.
    """
    found, name = locate(text, limits)
    return (read_path(found, limits) if isinstance(found, str) else found), name


def locate(text: str, limits: MediaLimits, what: str = "picture") -> tuple[bytes | str, str]:
    """What text names, and a name for messages: the bytes that it holds or leads to, or a path.

    Args:
        text: As of `read_text`.
        limits: What it may cost and where it may come from.
        what: Is looked for.
    """
    stripped = text.strip()
    if not stripped:
        raise MediaError("the text is empty; expected a path, a URL or base64")
    scheme = stripped[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _read_url(stripped, limits)
    if scheme.startswith("data:"):
        return _read_data_url(stripped, limits), "the data: URL"
    if scheme.startswith("file:"):
        if not limits.local_files:
            hint = limits.files_hint and f"; {limits.files_hint}"
            raise MediaError(f"a file: URL names a local file, which is not opened here{hint}")
        path = re.sub(r"^//(localhost(?=/))?", "", unquote(stripped[5:]))
        return path, shown(path)
    if limits.local_files and limits.root is None:
        for path in (text, stripped):
            if _exists(path):
                return path, shown(path)
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]{1,20})://", stripped):
        raise MediaError(f"{match[1]}: URLs are not opened; expected http, https, data or file")
    data = _from_base64(stripped, limits)
    if data and (format_of(data) or container_of(data) or looks_like(data)):
        return data, "the base64 text"
    if limits.local_files and len(stripped) <= 1024:
        if limits.root is not None:
            return stripped, shown(stripped)
        if len(stripped) <= 256:
            raise MediaError(f"{shown(text)}: no such file")
    expected = "a file, a URL or base64" if limits.local_files else "a URL or base64"
    hint = "" if limits.local_files or not limits.files_hint else f"; {limits.files_hint}"
    raise MediaError(f"text of {len(text)} characters names no {what}; expected {expected}{hint}")


def _read_url(url: str, limits: MediaLimits) -> tuple[bytes, str]:
    if not limits.urls:
        raise MediaError("an http(s) URL was given, and those are not opened here")
    # Imported late: the HTTP client costs a tenth of a second that most runs do not need.
    from mlx_qwenvl.inputs.fetch import FetchLimits, fetch, shown_url

    fetching = limits.fetch or FetchLimits()
    fetching = replace(fetching, max_bytes=min(fetching.max_bytes, limits.max_bytes))
    if (budget := limits.budget) is None:
        return fetch(url, limits=fetching), shown_url(url)
    if budget.fetch_s_left <= 0:
        raise MediaError(f"{shown_url(url)}: the time for fetching pictures is used up")
    fetching = replace(
        fetching,
        max_bytes=max(min(fetching.max_bytes, budget.bytes_left), 1),
        deadline_s=min(fetching.deadline_s, budget.fetch_s_left),
    )
    begin = time.monotonic()
    try:
        return fetch(url, limits=fetching), shown_url(url)
    finally:
        budget.fetch_s_left -= time.monotonic() - begin


def _read_data_url(url: str, limits: MediaLimits) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise MediaError("the data: URL has no comma; expected data:image/png;base64,...")
    if not header.rstrip().lower().endswith(";base64"):
        # JSON can hold half of a surrogate pair, which is no UTF-8 and no picture either.
        return unquote_to_bytes(payload.encode("utf-8", "surrogatepass"))
    data = _from_base64(unquote(payload), limits)
    if data is None:
        raise MediaError(f"the data: URL holds {len(payload)} characters that are no valid base64")
    return data


def _from_base64(text: str, limits: MediaLimits) -> bytes | None:
    """Decodes base64 of either alphabet, with or without padding; None where the text is none."""
    if len(text) > 2 * limits.max_bytes:
        raise MediaError(f"base64 of {len(text)} characters; at most {limits.max_bytes} bytes pass")
    compact = "".join(text.split()).replace("-", "+").replace("_", "/")
    digits = compact.rstrip("=")
    if len(compact) - len(digits) > 2 or not re.fullmatch(r"[A-Za-z0-9+/]*", digits):
        return None
    if len(digits) % 4 == 1:
        return None
    return binascii.a2b_base64(digits + "=" * (-len(digits) % 4))


def _exists(path: str) -> bool:
    try:
        Path(path).expanduser().stat()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL or a user that does not exist
        return False
    return True


def read_path(path: str, limits: MediaLimits) -> bytes:
    """Reads a file; errors as of `open_path`."""
    with open_path(path, limits) as file:
        return read_file(file, shown(path), limits)


@contextmanager
def open_path(path: str, limits: MediaLimits, what: str = "picture") -> Iterator[BinaryIO]:
    """Opens a file; a leading tilde is the home folder, unless a root is set.

    Raises:
        MediaError: There is none that may be opened.
    """
    name = shown(path)
    if limits.root is not None:
        with open_under(limits.root, path, name) as file:
            yield file
        return
    try:
        file = Path(path).expanduser().open("rb")
    except (FileNotFoundError, ValueError, RuntimeError):  # as in `_exists`
        raise MediaError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MediaError(f"{name}: is a folder; expected a {what} file") from None
    except OSError as error:
        raise MediaError(f"{name}: {error.strerror or 'cannot be opened'}") from None
    with file:
        yield file


def read_file(file: Any, name: str, limits: MediaLimits) -> bytes:
    """Reads from the start, at most one byte beyond the limit: a pipe may never end."""
    data = bytearray()
    try:
        if file.seekable():
            file.seek(0)
        while part := file.read(min(2**20, limits.max_bytes + 1 - len(data))):
            data += part
    except Exception as error:  # a file object of any make, or one opened in text mode
        raise MediaError(f"{name}: cannot be read as a binary file") from error
    return bytes(data)


def shown(text: str) -> str:
    """Returns a path as one short printable line."""
    line = "".join(c if c.isprintable() else "?" for c in text[:4096])
    return line if len(line) <= 100 else f"{line[:60]}...{line[-37:]}"
