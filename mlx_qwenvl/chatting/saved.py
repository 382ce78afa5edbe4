"""A conversation in one file: JSON with its turns, tokens, settings and pictures.

A picture is kept twice: as it was given, for drawing and for other models, and as the model saw
it, so that the next answer does not depend on how pictures are resized elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from PIL import Image

from mlx_qwenvl.chatting.picture import Picture
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.settings import KEPT
from mlx_qwenvl.clean import clean_line
from mlx_qwenvl.engine.options import CallOptions, read_options
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.grounding.boxes import MARKS
from mlx_qwenvl.inputs.frames import VideoBudget
from mlx_qwenvl.inputs.image import ImagePatches, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import decode
from mlx_qwenvl.inputs.messages import (
    ImagePart,
    MediaPart,
    Message,
    Part,
    TextPart,
    TokensPart,
)
from mlx_qwenvl.inputs.source import shown
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.inputs.video import Seen, VideoPatches, listed_frames
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.vlm import QwenVL
from mlx_qwenvl.whole_file import written_whole

FORMAT: Final = "mlx-qwenvl chat"
VERSION: Final = 1
HEAD: Final = f'{{"format": "{FORMAT}"'
MOST_BYTES: Final = 2 * 2**30  # of a file; a photo of 5 MB takes 7 in base64


@dataclass(frozen=True)
class Saved:
    """A conversation out of a file.

    Attributes:
        model: Name of the model that it was held with.
        options: Its settings.
        messages: Its turns.
        originals: Its pictures as they were given, by the digests of their patches.
    """

    model: str
    options: CallOptions
    messages: tuple[Message, ...]
    originals: dict[bytes, Picture]


def save(session: Session, path: Path) -> int:
    """Write a conversation as a whole, or leave what was there, and give the bytes written.

    Only another saved conversation is written over.

    Raises:
        QwenVLError: The file is something else, or cannot be written.
    """
    try:
        if path.exists() and not _is_ours(path):
            raise QwenVLError(
                f"{_named(path)} is there already and is no saved conversation; take another name"
            )
        text = json.dumps(_as_json(session), ensure_ascii=False)
        with written_whole(path, 0o600) as file:  # for its owner alone
            return file.write(f"{text}\n".encode("utf-8", "replace"))
    except OSError as error:
        raise QwenVLError(f"{_named(path)} cannot be written: {error.strerror}") from None


def check_saved(path: Path) -> None:
    """See whether a file seems to be a conversation, before anything else is done for it.

    Raises:
        QwenVLError: It is none, or cannot be read.
    """
    try:
        if not path.is_file():
            raise QwenVLError(f"{_named(path)}: no such file")
        if not _is_ours(path):
            raise QwenVLError(f"{_named(path)} is no saved conversation")
        if path.stat().st_size > MOST_BYTES:
            raise QwenVLError(f"{_named(path)} has more than {MOST_BYTES} bytes")
    except OSError as error:
        raise QwenVLError(f"{_named(path)} cannot be read: {error.strerror}") from None


def read_saved(path: Path, vlm: QwenVL) -> Saved:
    """Read a conversation for a model.

    Raises:
        QwenVLError: The file cannot be read, is another one, or is damaged.
    """
    check_saved(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["version"]
        if version != VERSION:
            raise QwenVLError(
                f"{_named(path)} has version {clean_line(str(version))[:20]} of the format; "
                f"expected {VERSION}"
            )
        return _of_json(raw, vlm)
    except OSError as error:
        raise QwenVLError(f"{_named(path)} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError, OptionError):
        raise QwenVLError(f"{_named(path)} is damaged: not all of it is a conversation") from None


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD.encode()


def _named(path: Path) -> str:
    return shown(str(path))


# --- To JSON --------------------------------------------------------------------------------------


def _as_json(session: Session) -> dict[str, Any]:
    options = cast("dict[str, Any]", session.options)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": session.vlm.name,
        "options": {name: options[name] for name in KEPT if options.get(name) is not None},
        "messages": [
            {"role": turn.role, "parts": [_part_as_json(part, session) for part in turn.parts]}
            for turn in session.chat.messages
        ],
    }


def _part_as_json(part: Part, session: Session) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, TokensPart):
        text = session.vlm.tokenizer.decode([*part.token_ids])
        return {"type": "tokens", "text": text, "ids": [*part.token_ids]}
    seen = part.source
    assert isinstance(seen, Seen), "what was shown in a turn that was asked is cut"
    if isinstance(seen, VideoPatches):
        return {
            "type": "video",
            "source_size": [*seen.source_size],
            "seconds_per_grid": seen.seconds_per_grid,
            "times": [*seen.frame_times],
            "seen": [_base64(_png(frame)) for frame in seen.to_images()],
        }
    given = session.originals.get(seen.digest)
    return {
        "type": "image",
        "name": "picture" if given is None else given.name,
        "source_size": [*seen.source_size],
        "orientation": seen.orientation,
        "seen": _base64(_png(seen.to_image())),
        "given": None if given is None else _base64(given.getvalue()),
    }


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- From JSON ------------------------------------------------------------------------------------


def _of_json(raw: dict[str, Any], vlm: QwenVL) -> Saved:
    originals: dict[bytes, Picture] = {}
    messages = tuple(
        Message(
            _one_of(turn["role"], ("system", "user", "assistant")),
            tuple(_part_of_json(part, vlm, originals) for part in turn["parts"]),
        )
        for turn in raw["messages"]
    )
    _check_order(messages)
    options = {name: value for name, value in raw["options"].items() if name in KEPT}
    read_options(options, vlm.sampling)
    return Saved(_text(raw["model"]), cast(CallOptions, options), messages, originals)


def _part_of_json(raw: dict[str, Any], vlm: QwenVL, originals: dict[bytes, Picture]) -> Part:
    kind = _one_of(raw["type"], ("text", "tokens", "image", "video"))
    if kind == "text":
        return TextPart(_text(raw["text"]))
    if kind == "tokens":
        return _tokens(_text(raw["text"]), raw["ids"], vlm.tokenizer)
    if kind == "video":
        return _video_of_json(raw, vlm)
    name = shown(_text(raw["name"]))
    given = None if raw["given"] is None else Picture(_bytes(raw["given"]), name)
    seen = decode(_bytes(raw["seen"]), name)
    width, height = (_whole(side) for side in raw["source_size"])
    orientation = _one_of(raw["orientation"], tuple(range(1, 9)))
    patches = replace(_as_seen(seen, vlm), source_size=(width, height), orientation=orientation)
    if given is not None:
        originals[patches.digest] = given
    return ImagePart(patches)


def _video_of_json(raw: dict[str, Any], vlm: QwenVL) -> VideoPart:
    frames = [decode(_bytes(frame), "a frame") for frame in raw["seen"]]
    times = tuple(float(moment) for moment in raw["times"])
    if len(times) != len(frames) or not frames:
        raise ValueError("each frame has its time")
    pixels = frames[0].width * frames[0].height
    # Nothing is resized: least and most are the size that the model took.
    budget = VideoBudget(min_pixels=pixels, max_pixels=pixels)
    width, height = (_whole(side) for side in raw["source_size"])
    video = listed_frames(frames, vlm.processor.geometry, budget)
    seconds = float(raw["seconds_per_grid"])
    return VideoPart(
        replace(video, frame_times=times, seconds_per_grid=seconds, source_size=(width, height))
    )


def _as_seen(picture: Image.Image, vlm: QwenVL) -> ImagePatches:
    """Patches of a picture that has the size which a model took: nothing is resized."""
    pixels = picture.width * picture.height
    return image_patches(picture, vlm.processor.geometry, PixelBudget(pixels, pixels))


def _tokens(text: str, ids: list[Any], tokenizer: Tokenizer) -> Part:
    """An answer as it was drawn, where this model spells it so; otherwise its words.

    Tokens that no answer holds, as those of a picture, are not taken from a file.
    """
    known = {_whole(index) for index in ids}
    special = {index for name, index in tokenizer.special_ids.items() if name not in MARKS}
    if known & special or tokenizer.decode(ids) != text:
        return TextPart(text)
    return TokensPart(tuple(ids))


def _check_order(messages: Sequence[Message]) -> None:
    """Questions and answers take turns, or it is no conversation of ours."""
    roles = [message.role for message in messages if message.role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("questions and answers do not take turns")
    for message in messages:
        if message.role != "user" and any(isinstance(p, MediaPart) for p in message.parts):
            raise ValueError("only a question has pictures")


def _one_of(value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise ValueError("unknown value")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError("expected a whole number")
    return value


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None
