"""A video of a message."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from mlx_qwenvl.errors import OptionError, PromptError
from mlx_qwenvl.inputs.fields import real, whole
from mlx_qwenvl.inputs.frames import NO_WISHES, VideoWishes
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.video import VideoPatches

__all__ = ["VIDEO_KINDS", "VideoPart", "VideoSource", "read_video_part"]

VideoSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | np.ndarray[Any, Any]
    | Sequence[ImageSource]
)

VIDEO_KINDS = ("video", "video_url", "input_video")


@dataclass(frozen=True)
class VideoPart:
    """A video of a message.

    Attributes:
        source: Anything that `inputs/video_file.py` opens, frames as a list or an array
            [T, H, W, 3], or a video that is cut already.
        wishes: How to sample it; what it does not say is left to the call.
    """

    source: VideoSource | VideoPatches
    wishes: VideoWishes = NO_WISHES


def read_video_part(where: str, part: Mapping[str, Any], waiting: list[VideoSource]) -> VideoPart:
    """Read a part of one of `VIDEO_KINDS`, in OpenAI's manner or in Qwen's.

    Args:
        where: How errors name the part.
        part: The part.
        waiting: Videos for the parts that name none, which are taken from it.

    Raises:
        PromptError: It names no video, or a field is none.
    """
    source: Any = next((part[k] for k in ("video_url", "video", "url", "path") if k in part), None)
    fields = dict(part)
    if isinstance(source, Mapping):
        fields |= source
        source = source.get("url")
    if source is None and part.get("type") == "video" and waiting:
        source = waiting.pop(0)
    if source is None:
        raise PromptError(f"{where} names no video", where)
    counts = [whole(where, fields, key) for key in ("n_frames", "nframes", "num_frames")]
    try:
        wishes = VideoWishes(
            fps=real(where, fields, "fps"),
            min_frames=whole(where, fields, "min_frames"),
            max_frames=whole(where, fields, "max_frames"),
            n_frames=next((count for count in counts if count is not None), None),
            min_pixels=whole(where, fields, "min_pixels"),
            max_pixels=whole(where, fields, "max_pixels"),
            total_pixels=whole(where, fields, "total_pixels"),
        )
    except OptionError as error:
        raise PromptError(f"{where}: {error}", where) from None
    return VideoPart(source, wishes)
