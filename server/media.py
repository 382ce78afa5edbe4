"""Which pictures and videos a request may name, and what all of them together may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwenvl.errors import OptionError, PromptError
from mlx_qwenvl.inputs.fetch import FetchLimits
from mlx_qwenvl.inputs.messages import ImagePart, Message
from mlx_qwenvl.inputs.processor import TOKEN_PIXELS
from mlx_qwenvl.inputs.source import MediaBudget, MediaLimits, VideoLimits
from mlx_qwenvl.inputs.video_part import VideoPart

from .addresses import check_public
from .settings import Settings

PORTS = frozenset({80, 443})
MAX_RESIZED_PIXELS = 16384 * TOKEN_PIXELS  # pixels; what the family's checkpoints allow
FILES_HINT = "local files are opened only in a folder that the server was given by --image-root"


@dataclass(frozen=True)
class MediaPolicy:
    """What the operator lets requests do with pictures and videos.

    Attributes:
        settings: The operator's.
    """

    settings: Settings

    @classmethod
    def of(cls, settings: Settings) -> MediaPolicy:
        """The policy of a server.

        Raises:
            OptionError: The folder for pictures is none.
        """
        root = settings.image_root
        if root is not None and not root.is_dir():
            raise OptionError(f"--image-root is {str(root)!r}, which is no folder")
        return cls(settings)

    def admit(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Messages within the operator's counts; nothing of them is opened.

        Raises:
            PromptError: Too many messages, pictures or videos, or one that shall be too large.
        """
        most = self.settings.max_messages
        if len(messages) > most:
            raise PromptError(f"{len(messages)} messages came, at most {most} pass", "messages")
        pictures = [part for m in messages for part in m.parts if isinstance(part, ImagePart)]
        most = self.settings.max_images
        if len(pictures) > most:
            raise PromptError(f"{len(pictures)} pictures came, at most {most} pass", "messages")
        for part in pictures:
            _check("a picture", part.source, part.min_pixels, part.max_pixels)
        videos = [part for m in messages for part in m.parts if isinstance(part, VideoPart)]
        most = self.settings.max_videos
        if len(videos) > most:
            raise PromptError(f"{len(videos)} videos came, at most {most} pass", "messages")
        for video in videos:
            wishes = video.wishes
            frames = max(wishes.n_frames or 0, wishes.max_frames or 0, wishes.min_frames or 0)
            most = self.settings.max_sampled_frames
            if frames > most:
                raise PromptError(f"{frames} frames of a video, at most {most} pass", "messages")
            if isinstance(video.source, list):
                self._check_frames(video.source, len(pictures))
            else:
                _check("a video", video.source, wishes.min_pixels, wishes.max_pixels)
        return tuple(messages)

    def _check_frames(self, frames: list[Any], pictures: int) -> None:
        """A video as a list of frames is as many pictures."""
        most = self.settings.max_images - pictures
        if len(frames) > most:
            raise PromptError(
                f"a video of {len(frames)} pictures came, {max(most, 0)} more pass", "messages"
            )
        for frame in frames:
            _check("a frame", frame, None, None)

    def limits(self) -> MediaLimits:
        """What opening the pictures of one request may cost; each request needs its own."""
        s = self.settings
        return MediaLimits(
            max_bytes=s.max_image_bytes,
            max_pixels=s.max_image_pixels,
            local_files=s.image_root is not None,
            urls=s.remote_images,
            fetch=FetchLimits(
                deadline_s=s.fetch_timeout_s,
                max_bytes=s.max_image_bytes,
                use_proxy=False,
                check_address=check_public,
                ports=PORTS,
            ),
            root=s.image_root,
            files_hint=FILES_HINT,
            budget=MediaBudget(s.max_total_bytes, s.max_total_pixels, s.fetch_timeout_s),
            video=VideoLimits(
                max_bytes=s.max_video_bytes,
                max_seconds=s.max_video_seconds,
                max_frames=s.max_video_frames,
                max_pixels=s.max_video_pixels,
                work_s=s.video_work_s,
            ),
        )


def _check(what: str, source: object, least: int | None, most: int | None) -> None:
    if not isinstance(source, str):
        kind = type(source).__name__
        raise PromptError(f"{what} is named by a {kind}, expected a string", "messages")
    asked = max(least or 0, most or 0)
    if asked > MAX_RESIZED_PIXELS:
        limit = MAX_RESIZED_PIXELS
        raise PromptError(f"{what} of {asked} pixels, at most {limit} pass", "messages")
