"""What a caller says, in OpenAI's form or as a string, becomes a list of `Message`.

The server, the notebook and the command line all come through here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.inputs.fields import shown_value, whole
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.video_part import VIDEO_KINDS, VideoPart, VideoSource, read_video_part

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
DETAILS = ("auto", "low", "high")

# Clients of other programs write a picture's mark before the question. Here a picture's place is
# where its part stands, and the mark would be read as text.
_KIND = "(?:image|video)"
_MARK = rf"<\|{_KIND}(?:_\d+)?\|>|(?:<\|vision_start\|>)?<\|{_KIND}_pad\|>(?:<\|vision_end\|>)?"
_MARKS = re.compile(rf"\s*(?:(?:{_MARK})\n?)+")


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


MediaPart = ImagePart | VideoPart
Part = TextPart | MediaPart | TokensPart


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asked for in an earlier turn.

    Attributes:
        name: The function's.
        arguments: JSON text of its arguments.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user", "assistant", or "tool" for what a function returned.
        parts: What it holds, in order.
        tool_calls: What an assistant's turn asked for, behind its parts.
    """

    role: str
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass
class Waiting:
    """Pictures and videos for the parts that name none, which are taken from it.

    Attributes:
        images: The pictures that are left.
        videos: The videos that are left.
    """

    images: list[ImageSource] = field(default_factory=list)
    videos: list[VideoSource] = field(default_factory=list)

    def __len__(self) -> int:
        """How many are left."""
        return len(self.images) + len(self.videos)

    def parts(self) -> list[Part]:
        """All that are left, pictures first."""
        return [*map(ImagePart, self.images), *map(VideoPart, self.videos)]


def user_message(
    text: str, images: Sequence[ImageSource], videos: Sequence[VideoSource] = ()
) -> Message:
    """A question, its pictures before its text, its videos between them."""
    parts = Waiting(list(images), list(videos)).parts()
    if text:
        parts.append(TextPart(text))
    return Message("user", without_marks(parts))


def sources_of(messages: Iterable[Message]) -> tuple[ImageSource | None, ...]:
    """What was given for each picture, in order; None where only its patches are there.

    Videos are not among them: nothing is drawn on one.
    """
    parts = [part for turn in messages for part in turn.parts if isinstance(part, ImagePart)]
    return tuple(None if isinstance(p.source, ImagePatches) else p.source for p in parts)


def without_marks(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts without the marks for pictures that stand before a text, if there are pictures."""
    if not any(isinstance(part, MediaPart) for part in parts):
        return tuple(parts)
    return tuple(
        TextPart(_MARKS.sub("", part.text, count=1))
        if isinstance(part, TextPart) and _MARKS.match(part.text)
        else part
        for part in parts
    )


def parse_messages(
    raw: str | Sequence[Mapping[str, Any]],
    images: Sequence[ImageSource] = (),
    videos: Sequence[VideoSource] = (),
) -> list[Message]:
    """Read OpenAI-style messages.

    Args:
        raw: Mappings with `role` and `content`, the content a string or a list of parts; or the
            text of one question. An assistant's message at the end is the answer's beginning.
        images: Pictures for the parts {"type": "image"} that name none, in order. Where there is
            no such part they go before the text of the last user message.
        videos: The same for {"type": "video"}.

    Raises:
        PromptError: A role, part or count that makes no prompt.
    """
    if isinstance(raw, str):
        return [user_message(raw, images, videos)]
    if isinstance(raw, (bytes, Mapping)) or not isinstance(raw, Sequence):
        raise PromptError(
            f"messages is a {type(raw).__name__}, expected a list of messages", "messages"
        )
    if not raw:
        raise PromptError("messages is empty, expected at least one message", "messages")
    given, waiting = len(images) + len(videos), Waiting(list(images), list(videos))
    messages = [_message(index, entry, waiting) for index, entry in enumerate(raw)]
    _check_results(messages)
    messages = one_system(messages)
    if len(waiting) == given and given:
        return _before_last_question(messages, waiting)
    for kind, came, left in (
        ("image", images, waiting.images),
        ("video", videos, waiting.videos),
    ):
        if left:
            raise PromptError(
                f"{len(came)} {kind}s for {len(came) - len(left)} {kind} parts without a source"
            )
    return messages


def question_messages(
    prompt: str | None,
    images: Sequence[ImageSource],
    messages: str | Sequence[Mapping[str, Any]] | None,
    system: str | None,
    videos: Sequence[VideoSource] = (),
) -> list[Message]:
    """What a caller asks, as a whole conversation or as one question.

    Raises:
        PromptError: It is both, or makes no prompt.
    """
    for name, given in (("images", images), ("videos", videos)):
        if isinstance(given, (str, bytes, Path)):
            raise PromptError(f"{name} is a {type(given).__name__}, expected a list of {name}")
    if messages is None:
        turns = [] if system is None else [Message("system", (TextPart(system),))]
        return [*turns, user_message(prompt or "", images, videos)]
    if prompt is not None or system is not None:
        raise PromptError("give either messages or a prompt with its system message, not both")
    return parse_messages(messages, images, videos)


def _message(index: int, entry: object, waiting: Waiting) -> Message:
    where = f"messages[{index}]"
    if not isinstance(entry, Mapping):
        raise PromptError(f"{where} is a {type(entry).__name__}, expected role and content", where)
    name = entry.get("role")
    if not isinstance(name, str) or name not in ROLES:
        raise PromptError(
            f"{where} has role {shown_value(name)}, expected one of {', '.join(ROLES)}",
            f"{where}.role",
        )
    role = ROLES[name]
    calls = _tool_calls(where, entry.get("tool_calls")) if role == "assistant" else ()
    content = entry.get("content")
    if content is None and role == "assistant":
        content = entry.get("refusal") or (() if calls else None)
    return Message(role, parse_content(where, role, content, waiting), calls)


def parse_content(
    where: str, role: str, content: object, waiting: Waiting | None = None
) -> tuple[Part, ...]:
    """Read the content of one message.

    Args:
        where: How errors name the message.
        role: Of `Message`.
        content: Text or a list of parts.
        waiting: Pictures and videos for the parts that name none.

    Raises:
        PromptError: It is none, or holds pictures where there may be none.
    """
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(
            f"{where} has a {type(content).__name__} as content, expected text or a list of parts",
            f"{where}.content",
        )
    left = Waiting() if waiting is None else waiting
    parts = tuple(_part(f"{where}.content[{i}]", part, left) for i, part in enumerate(content))
    shown = next((part for part in parts if isinstance(part, MediaPart)), None)
    if role not in ("user", "tool") and shown is not None:
        what = ("an image", "images") if isinstance(shown, ImagePart) else ("a video", "videos")
        raise PromptError(
            f"{where} has {what[0]}; only user messages can hold {what[1]}", f"{where}.content"
        )
    return without_marks(parts)


def _tool_calls(where: str, raw: object) -> tuple[ToolCall, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise PromptError(
            f"{where} has a {type(raw).__name__} as tool_calls, expected a list",
            f"{where}.tool_calls",
        )
    return tuple(_tool_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(raw))


def _tool_call(where: str, raw: object) -> ToolCall:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise PromptError(f"{where} names no function", where)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise PromptError(
            f"{where} has a {type(arguments).__name__} as arguments, expected JSON text", where
        )
    return ToolCall(name, arguments)


def _check_results(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        before = messages[index - 1] if index else None
        if message.role == "tool" and not (
            before is not None and (before.role == "tool" or before.tool_calls)
        ):
            raise PromptError(
                f"messages[{index}] is a tool's result, but no tool was called before it",
                f"messages[{index}]",
            )


def one_system(messages: list[Message]) -> list[Message]:
    """Messages whose first system messages are one: models have seen one at the beginning."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    if count < 2:
        return messages
    parts: list[Part] = []
    for message in messages[:count]:
        parts += [TextPart("\n\n"), *message.parts] if parts else message.parts
    return [Message("system", tuple(parts)), *messages[count:]]


def _part(where: str, part: object, waiting: Waiting) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}, expected a part with a type", where)
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise PromptError(
                f"{where} has text of type {type(text).__name__}, expected a string", where
            )
        return TextPart(text)
    if kind in ("image", "image_url", "input_image"):
        return _image_part(where, part, waiting.images)
    if kind in VIDEO_KINDS:
        return read_video_part(where, part, waiting.videos)
    raise PromptError(
        f"{where} has type {shown_value(kind)}, expected text, image_url, image, video_url, video",
        f"{where}.type",
    )


def _image_part(where: str, part: Mapping[str, Any], waiting: list[ImageSource]) -> ImagePart:
    source: Any = next((part[k] for k in ("image_url", "image", "url", "path") if k in part), None)
    detail = part.get("detail")
    if isinstance(source, Mapping):
        detail = source.get("detail", detail)
        source = source.get("url")
    if source is None and part.get("type") == "image" and waiting:
        source = waiting.pop(0)
    if source is None:
        raise PromptError(f"{where} names no image", where)
    detail = "auto" if detail is None else detail
    if detail not in DETAILS:
        raise PromptError(
            f"{where} has detail {shown_value(detail)}, expected one of {', '.join(DETAILS)}",
            f"{where}.detail",
        )
    least, most = (whole(where, part, key) for key in ("min_pixels", "max_pixels"))
    return ImagePart(source, least, most, detail)


def _before_last_question(messages: list[Message], waiting: Waiting) -> list[Message]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            parts = (*waiting.parts(), *messages[index].parts)
            return [*messages[:index], Message("user", parts), *messages[index + 1 :]]
    what = "images" if waiting.images else "videos"
    raise PromptError(f"{what} were given but no user message that could hold them")
