"""A conversation told to another model: its words read anew, its pictures shown anew."""

from __future__ import annotations

from dataclasses import replace

from mlx_qwenvl.chatting.picture import Picture
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.engine.options import Options, read_options
from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.frames import VideoWishes
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import ImagePart, Message, Part, TextPart, TokensPart
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.vlm import QwenVL


def moved(session: Session, vlm: QwenVL) -> tuple[list[Message], dict[bytes, Picture]]:
    """The turns as another model takes them, and the originals of their pictures.

    Args:
        session: The conversation.
        vlm: The other model.
    """
    options = read_options(session.options, vlm.sampling)
    same_words = vlm.tokenizer.vocabulary == session.vlm.tokenizer.vocabulary
    originals: dict[bytes, Picture] = {}

    def part_of(part: Part) -> Part:
        if isinstance(part, TokensPart) and not same_words:
            return TextPart(session.vlm.tokenizer.decode([*part.token_ids]))
        if isinstance(part, VideoPart) and isinstance(part.source, VideoPatches):
            return VideoPart(_video_to(vlm, part.source, options))
        if not isinstance(part, ImagePart) or not isinstance(part.source, ImagePatches):
            return part
        given = session.originals.get(part.source.digest)
        cut = _shown_to(vlm, part.source, given, options)
        if given is not None:
            originals[cut.digest] = given
        return ImagePart(cut)

    messages = [
        Message(turn.role, tuple(part_of(part) for part in turn.parts), turn.tool_calls)
        for turn in session.chat.messages
    ]
    return messages, originals


def _video_to(vlm: QwenVL, seen: VideoPatches, options: Options) -> VideoPatches:
    """A video as a model takes it, of the frames that the other one saw."""
    depth = seen.geometry.temporal_patch_size
    again = VideoPart(seen.to_images(), VideoWishes(fps=depth / seen.seconds_per_grid))
    return replace(
        vlm.open_video(again, options),
        source_size=seen.source_size,
        frame_times=seen.frame_times,
    )


def _shown_to(
    vlm: QwenVL, seen: ImagePatches, given: Picture | None, options: Options
) -> ImagePatches:
    """A picture as a model takes it, from the original where there is one."""
    if given is not None:
        try:
            return vlm.open(ImagePart(given), options)
        except MediaError:  # as of a saved file that somebody has changed
            pass
    return vlm.open(ImagePart(seen.to_image()), options)
