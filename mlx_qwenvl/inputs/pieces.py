"""What a rendered conversation is made of, and how pictures and videos take their places in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import TokensPart
from mlx_qwenvl.inputs.video import Seen, VideoPatches

__all__ = ["IMAGE_PAD", "VIDEO_PAD", "Piece", "Place", "Special", "append_text", "filled"]

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"


@dataclass(frozen=True)
class Special:
    """A special token that the template wrote."""

    content: str


@dataclass(frozen=True)
class Place:
    """Slots without a gap.

    Attributes:
        pad: What they all hold.
        seen: What fills them, or a part of them where it is a video.
        n_tokens: How many they are.
        part: Which temporal patch of the video it is that begins there.
    """

    pad: str
    seen: Seen
    n_tokens: int
    part: int = 0


Piece = str | Special | TokensPart | Place

VIDEO_START, VIDEO_END = Special("<|vision_start|>"), Special("<|vision_end|>")


def append_text(pieces: list[Piece], text: str) -> None:
    """Add text; neighbouring texts are tokenized as one, as if no seam were between them."""
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] += text
    elif text:
        pieces.append(text)


def filled(pieces: Sequence[Piece], media: Sequence[Seen], *, tells_times: bool) -> list[Piece]:
    """Pieces with pictures and videos in their places.

    Args:
        pieces: As the template made them, with one pad for each picture and each video.
        media: All that is shown, in order.
        tells_times: Whether each temporal patch of a video stands behind its time.

    Raises:
        PromptError: There are more or fewer places than pictures or videos.
    """
    pictures = [seen for seen in media if isinstance(seen, ImagePatches)]
    videos = [seen for seen in media if isinstance(seen, VideoPatches)]
    _check_places(pieces, IMAGE_PAD, "images", len(pictures))
    _check_places(pieces, VIDEO_PAD, "videos", len(videos))
    stills, films = iter(pictures), iter(videos)
    made: list[Piece] = []
    for piece in _bare(pieces) if tells_times else pieces:
        if piece == Special(IMAGE_PAD):
            picture = next(stills)
            made.append(Place(IMAGE_PAD, picture, picture.n_tokens))
        elif piece == Special(VIDEO_PAD):
            video = next(films)
            if tells_times:
                _append_by_time(made, video)
            else:
                made.append(Place(VIDEO_PAD, video, video.n_tokens))
        else:
            made.append(piece)
    return made


def _bare(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces without the template's marks around videos, whose parts have marks of their own."""
    pads = {index for index, piece in enumerate(pieces) if piece == Special(VIDEO_PAD)}
    marks = {index - 1 for index in pads if pieces[index - 1 : index] == [VIDEO_START]}
    marks |= {index + 1 for index in pads if pieces[index + 1 : index + 2] == [VIDEO_END]}
    return [piece for index, piece in enumerate(pieces) if index not in marks]


def _append_by_time(pieces: list[Piece], video: VideoPatches) -> None:
    """Add a video, each temporal patch between marks of its own and behind its time."""
    for part, (view, moment) in enumerate(zip(video.views, video.timestamps, strict=True)):
        append_text(pieces, f"<{moment:.1f} seconds>")
        pieces += [VIDEO_START, Place(VIDEO_PAD, video, view.n_tokens, part), VIDEO_END]


def _check_places(pieces: Sequence[Piece], pad: str, kind: str, given: int) -> None:
    places = pieces.count(Special(pad))
    if places != given:
        raise PromptError(
            f"{given} {kind} came, but the chat template made {places} places for them"
        )
