"""A file that is asked about: what is in it, and what the model sees of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlx_qwenvl.batching.named import Named
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.inputs.media import DEFAULT_LIMITS, decode, read_encoded
from mlx_qwenvl.inputs.messages import ImagePart
from mlx_qwenvl.inputs.processor import digest_of
from mlx_qwenvl.inputs.video import Seen
from mlx_qwenvl.inputs.video_file import open_video
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.vlm import QwenVL


@dataclass(frozen=True)
class Read:
    """A file that was read.

    Attributes:
        content: SHA-256 of its bytes.
        seen_by: Opens it as a model takes it, while the file is open.
    """

    content: bytes
    seen_by: Callable[[QwenVL, Options], Seen]


@contextmanager
def reading(named: Named) -> Iterator[Read]:
    """Read a picture or a video. A picture is read once, and a video of any length held nowhere.

    Raises:
        MediaError: There is none, or `seen_by` cannot open it.
        FetchError: A URL cannot be opened.
    """
    if named.kind == "video":
        with open_video(named.name, DEFAULT_LIMITS) as (file, _):
            video = VideoPart(file)
            yield Read(digest_of(file), lambda vlm, options: vlm.open_video(video, options))
        return
    encoded = read_encoded(named.name)
    assert encoded is not None, "a name leads to bytes"
    content = hashlib.sha256(encoded[0]).digest()
    yield Read(content, lambda vlm, options: vlm.open(ImagePart(decode(*encoded)), options))
