"""What a caller says, in OpenAI's form or as a string, becomes a list of `Message`.

The server, the notebook and the command line all come through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import ImageSource

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
DETAILS = ("auto", "low", "high")


@dataclass(frozen=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture of a message.

    Attributes:
        source: Anything that `inputs/media.py` opens, or a picture that is cut already.
        min_pixels: Least pixels after resizing, or None for the call's.
        max_pixels: Most pixels after resizing, or None for the call's.
        detail: "auto", "low" or "high", as in OpenAI's API; a pixel count goes before it.
    """

    source: ImageSource | ImagePatches
    min_pixels: int | None = None
    max_pixels: int | None = None
    detail: str = "auto"


@dataclass(frozen=True)
class TokensPart:
    """Tokens that the model generated earlier, to be fed back as they were."""

    token_ids: tuple[int, ...]


Part = TextPart | ImagePart | TokensPart


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        parts: What it holds, in order.
    """

    role: str
    parts: tuple[Part, ...]


def user_message(text: str, images: Sequence[ImageSource]) -> Message:
    """A question, its pictures before its text."""
    parts: list[Part] = [ImagePart(source) for source in images]
    if text:
        parts.append(TextPart(text))
    return Message("user", tuple(parts))


def parse_messages(
    raw: Sequence[Mapping[str, Any]], images: Sequence[ImageSource] = ()
) -> list[Message]:
    """Read OpenAI-style messages.

    Args:
        raw: Mappings with `role` and `content`, the content a string or a list of parts.
        images: Pictures for the parts {"type": "image"} that name none, in order. Where there is
            no such part they go before the text of the last user message.

    Raises:
        PromptError: A role, part or count that makes no prompt.
    """
    if isinstance(raw, (str, bytes, Mapping)) or not isinstance(raw, Sequence):
        raise PromptError(f"messages is a {type(raw).__name__}, expected a list of messages")
    if not raw:
        raise PromptError("messages is empty, expected at least one message")
    waiting = list(images)
    messages = [_message(index, entry, waiting) for index, entry in enumerate(raw)]
    if len(waiting) == len(images) and waiting:
        return _before_last_question(messages, waiting)
    if waiting:
        raise PromptError(
            f"{len(images)} images for {len(images) - len(waiting)} image parts without a source"
        )
    return messages


def question_messages(
    prompt: str | None,
    images: Sequence[ImageSource],
    messages: Sequence[Mapping[str, Any]] | None,
    system: str | None,
) -> list[Message]:
    """What a caller asks, as a whole conversation or as one question.

    Raises:
        PromptError: It is both, or makes no prompt.
    """
    if isinstance(images, (str, bytes, Path)):
        raise PromptError(f"images is a {type(images).__name__}, expected a list of images")
    if messages is None:
        turns = [] if system is None else [Message("system", (TextPart(system),))]
        return [*turns, user_message(prompt or "", images)]
    if prompt is not None or system is not None:
        raise PromptError("give either messages or a prompt with its system message, not both")
    return parse_messages(messages, images)


def _message(index: int, entry: object, waiting: list[ImageSource]) -> Message:
    where = f"messages[{index}]"
    if not isinstance(entry, Mapping):
        raise PromptError(f"{where} is a {type(entry).__name__}, expected role and content")
    role = entry.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{where} has role {role!r}, expected one of {', '.join(ROLES)}")
    content = entry.get("content")
    if isinstance(content, str):
        return Message(ROLES[role], (TextPart(content),))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(
            f"{where} has a {type(content).__name__} as content, expected text or a list of parts"
        )
    parts = tuple(_part(f"{where}.content[{i}]", part, waiting) for i, part in enumerate(content))
    if ROLES[role] != "user" and any(isinstance(part, ImagePart) for part in parts):
        raise PromptError(f"{where} has an image; only user messages can hold images")
    return Message(ROLES[role], parts)


def _part(where: str, part: object, waiting: list[ImageSource]) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}, expected a part with a type")
    kind = part.get("type")
    if kind in ("text", "input_text"):
        text = part.get("text")
        if not isinstance(text, str):
            raise PromptError(f"{where} has text of type {type(text).__name__}, expected a string")
        return TextPart(text)
    if kind in ("image", "image_url", "input_image"):
        return _image_part(where, part, waiting)
    raise PromptError(f"{where} has type {kind!r}, expected text, image_url or image")


def _image_part(where: str, part: Mapping[str, Any], waiting: list[ImageSource]) -> ImagePart:
    source: Any = next((part[k] for k in ("image_url", "image", "url", "path") if k in part), None)
    detail = part.get("detail")
    if isinstance(source, Mapping):
        detail = source.get("detail", detail)
        source = source.get("url")
    if source is None and part.get("type") == "image" and waiting:
        source = waiting.pop(0)
    if source is None:
        raise PromptError(f"{where} names no image")
    detail = "auto" if detail is None else detail
    if detail not in DETAILS:
        raise PromptError(f"{where} has detail {detail!r}, expected one of {', '.join(DETAILS)}")
    least, most = (_pixels(where, part, key) for key in ("min_pixels", "max_pixels"))
    return ImagePart(source, least, most, detail)


def _pixels(where: str, part: Mapping[str, Any], key: str) -> int | None:
    value = part.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise PromptError(f"{where} has {key} {value!r}, expected a positive whole number")
    return value


def _before_last_question(messages: list[Message], images: Iterable[ImageSource]) -> list[Message]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            parts = (*(ImagePart(source) for source in images), *messages[index].parts)
            return [*messages[:index], Message("user", parts), *messages[index + 1 :]]
    raise PromptError("images were given but no user message that could hold them")
