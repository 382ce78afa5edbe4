"""Which pictures a request may name, and what all of them together may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_qwenvl.errors import OptionError, PromptError
from mlx_qwenvl.inputs.fetch import FetchLimits
from mlx_qwenvl.inputs.messages import ImagePart, Message
from mlx_qwenvl.inputs.processor import TOKEN_PIXELS
from mlx_qwenvl.inputs.source import MediaBudget, MediaLimits

from .addresses import check_public
from .settings import Settings

PORTS = frozenset({80, 443})
MAX_RESIZED_PIXELS = 16384 * TOKEN_PIXELS  # pixels; what the family's checkpoints allow
FILES_HINT = "local files are opened only in a folder that the server was given by --image-root"


@dataclass(frozen=True)
class MediaPolicy:
    """What the operator lets requests do with pictures.

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
            PromptError: Too many messages or pictures, or a picture that is asked to be too large.
        """
        most = self.settings.max_messages
        if len(messages) > most:
            raise PromptError(f"{len(messages)} messages came, at most {most} pass", "messages")
        pictures = [part for m in messages for part in m.parts if isinstance(part, ImagePart)]
        most = self.settings.max_images
        if len(pictures) > most:
            raise PromptError(f"{len(pictures)} pictures came, at most {most} pass", "messages")
        for part in pictures:
            if not isinstance(part.source, str):
                kind = type(part.source).__name__
                raise PromptError(f"a picture is named by a {kind}, expected a string", "messages")
            asked = max(part.min_pixels or 0, part.max_pixels or 0)
            if asked > MAX_RESIZED_PIXELS:
                most = MAX_RESIZED_PIXELS
                raise PromptError(f"a picture of {asked} pixels, at most {most} pass", "messages")
        return tuple(messages)

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
        )
