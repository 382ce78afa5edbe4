"""Messages become token ids with slots for pictures, through the checkpoint's chat template.

The template never sees what people wrote. It is rendered with a fresh random mark in place of
every piece of content; its own text may then hold special tokens, and the pieces put back at the
marks may not. A picture's slots stand where the template wrote its placeholder.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mlx_qwenvl.errors import CheckpointError, ContextError, PromptError
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import (
    ImagePart,
    MediaPart,
    Message,
    Part,
    TextPart,
    TokensPart,
)
from mlx_qwenvl.inputs.pieces import (
    IMAGE_PAD,
    VIDEO_PAD,
    Piece,
    Place,
    Special,
    append_text,
    filled,
)
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.inputs.turns import said_plainly
from mlx_qwenvl.inputs.video import Seen, VideoPatches, View
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.json_file import read_json

if TYPE_CHECKING:
    import jinja2

# The family's dialogue form, for folders that come without a template of their own.
BUILT_IN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}"
    "{{ message.content }}"
    "{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ImageSlot:
    """Where a picture or a video stands in a prompt.

    Attributes:
        start: Index of its first slot; it fills `image.n_tokens` of them.
        image: Its patches.
        starts: The same of each temporal patch, where text lies between them; else empty.
    """

    start: int
    image: Seen
    starts: tuple[int, ...] = ()

    @property
    def views(self) -> list[tuple[int, View]]:
        """What the vision tower looks at on its own, each with the index of its first slot."""
        if self.starts:
            return list(zip(self.starts, self.image.views, strict=True))
        placed, start = [], self.start
        for view in self.image.views:
            placed.append((start, view))
            start += view.n_tokens
        return placed

    @property
    def runs(self) -> list[tuple[int, Seen | View]]:
        """What fills slots without a gap, each with the index of its first slot."""
        return [*self.views] if self.starts else [(self.start, self.image)]


@dataclass(frozen=True)
class Prompt:
    """What the model is given.

    Attributes:
        token_ids: [L] int32, every slot holding the image token or the video token.
        slots: Its pictures and videos in order.
        counts_seconds: Whether the model places the frames of a video by seconds.
    """

    token_ids: np.ndarray
    slots: tuple[ImageSlot, ...]
    counts_seconds: bool = False

    @property
    def image_tokens(self) -> int:
        """Slots that pictures fill."""
        return sum(s.image.n_tokens for s in self.slots if isinstance(s.image, ImagePatches))

    @property
    def video_tokens(self) -> int:
        """Slots that videos fill."""
        return sum(s.image.n_tokens for s in self.slots if isinstance(s.image, VideoPatches))

    @property
    def seen_tokens(self) -> int:
        """Slots that either fill."""
        return sum(slot.image.n_tokens for slot in self.slots)


class ChatTemplate:
    """A chat template, compiled in a sandbox.

    Args:
        source: Jinja text, from a checkpoint or built in.

    Raises:
        CheckpointError: The text is no template.
    """

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse_messages
        try:
            self._template: jinja2.Template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"the chat template does not compile: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder, or the family's own where it has none."""
        if (folder / "chat_template.jinja").exists():
            return cls(_read_text(folder / "chat_template.jinja"))
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (folder / name).exists():
                source = read_json(folder / name).get("chat_template")
                if isinstance(source, list):  # several, by name
                    named = {entry.get("name"): entry.get("template") for entry in source}
                    source = named.get("default")
                if isinstance(source, str):
                    return cls(source)
        return cls(BUILT_IN_TEMPLATE)

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Render messages whose contents are marks.

        Raises:
            PromptError: The template refuses them.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise PromptError(f"the chat template refused the messages: {reason}") from None


def build_prompt(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    open_image: Callable[[ImagePart], ImagePatches],
    open_video: Callable[[VideoPart], VideoPatches] | None = None,
    *,
    add_generation_prompt: bool = True,
    tells_times: bool = False,
) -> Prompt:
    """Make a prompt of messages.

    Args:
        messages: At least one. Where the assistant's turn is opened, a last message of the
            assistant's is its beginning, which the model goes on with.
        template: The checkpoint's.
        tokenizer: The checkpoint's.
        open_image: Turns a picture into patches.
        open_video: Turns a video into patches; None where none may come.
        add_generation_prompt: Whether the assistant's turn is opened.
        tells_times: Whether each temporal patch of a video stands behind its time.

    Raises:
        MediaError: A picture or a video cannot be read.
        PromptError: Nothing was asked, or the template lost something.
    """

    def opened(part: MediaPart) -> Seen:
        if isinstance(part, ImagePart):
            return open_image(part)
        if open_video is None:
            raise PromptError("a video came where only pictures are taken", "messages")
        return open_video(part)

    if not any(_has_content(message) for message in messages):
        raise PromptError("the prompt is empty; expected some text or an image", "messages")
    begun: Message | None = None
    if add_generation_prompt and messages[-1].role == "assistant":
        *messages, begun = messages
        if not any(_has_content(message) for message in messages):
            raise PromptError("an answer was begun, but nothing was asked before it", "messages")
        if begun.tool_calls:
            raise PromptError(
                "the last message calls tools; expected what they returned", "messages"
            )
    messages = said_plainly(messages)
    marked = _Marked.of(messages)
    rendered = template.render(marked.messages, add_generation_prompt=add_generation_prompt)
    media = [part for m in messages for part in m.parts if isinstance(part, MediaPart)]
    pieces = marked.restore(rendered, tokenizer)
    if begun is not None:
        # Not joined to the template's text: the model's own answer would not be either.
        pieces += [_as_generated(part, tokenizer) for part in begun.parts]
    shown = [opened(part) for part in media]
    return _tokens(filled(pieces, shown, tells_times=tells_times), tokenizer)


def check_length(texts: Sequence[str], tokenizer: Tokenizer, context: int) -> None:
    """Refuse text that is beyond the model's context whatever its tokens are.

    Args:
        texts: Of one prompt.
        tokenizer: The checkpoint's.
        context: Tokens that a prompt may have.

    Raises:
        ContextError: It is.
    """
    least = sum(tokenizer.least_tokens(text) for text in texts)
    if least > context:
        raise ContextError(
            f"the prompt has at least {least} tokens, the model's context {context}; shorten it"
        )


def text_prompt(text: str | Sequence[int], tokenizer: Tokenizer, context: int) -> Prompt:
    """A prompt of bare text, or of its tokens, without a template.

    Args:
        text: What to go on with; nothing in it is special. Token ids are taken as they are.
        tokenizer: The checkpoint's.
        context: Tokens that a prompt may have.

    Raises:
        ContextError: The text is far longer.
        PromptError: There is no text, or a token that the vocabulary has not or that only a
            picture may have.
    """
    if isinstance(text, str):
        check_length([text], tokenizer, context)
    ids = tokenizer.encode(text) if isinstance(text, str) else list(text)
    if not ids:
        raise PromptError("the prompt is empty; expected some text", "prompt")
    pads = {tokenizer.special_ids.get(pad) for pad in (IMAGE_PAD, VIDEO_PAD)}
    for index in ids:
        if index in pads or not tokenizer.token_bytes(index):
            raise PromptError(f"the prompt has token {index}, which stands for no text", "prompt")
    return Prompt(np.array(ids, dtype=np.int32), ())


def _has_content(message: Message) -> bool:
    return message.role != "system" and (
        bool(message.tool_calls)
        or any(not isinstance(part, TextPart) or part.text.strip() for part in message.parts)
    )


def _as_generated(part: Part, tokenizer: Tokenizer) -> TokensPart:
    if isinstance(part, TokensPart):
        return part
    if isinstance(part, TextPart):
        return TokensPart(tuple(tokenizer.encode(part.text)))
    what = "an image" if isinstance(part, ImagePart) else "a video"
    raise PromptError(f"the answer was begun with {what}; expected text", "messages")


@dataclass(frozen=True)
class _Marked:
    """Messages for the template and what their marks stand for."""

    messages: list[dict[str, Any]]
    contents: dict[str, TextPart | TokensPart]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> _Marked:
        nonce = secrets.token_hex(8)
        contents: dict[str, TextPart | TokensPart] = {}

        def mark(part: TextPart | TokensPart) -> str:
            name = f"\x02{nonce}:{len(contents)}\x03"
            contents[name] = part
            return name

        plain = []
        for message in messages:
            content: str | list[dict[str, str]]
            if any(isinstance(part, MediaPart) for part in message.parts):
                content = [
                    {"type": "image" if isinstance(part, ImagePart) else "video"}
                    if isinstance(part, MediaPart)
                    else {"type": "text", "text": mark(part)}
                    for part in message.parts
                ]
            else:
                content = "".join(
                    mark(part) for part in message.parts if not isinstance(part, MediaPart)
                )
            plain.append({"role": message.role, "content": content})
        return cls(plain, contents, re.compile(f"(\x02{nonce}:[0-9]+\x03)"))

    def restore(self, rendered: str, tokenizer: Tokenizer) -> list[Piece]:
        """The rendered text in pieces; what people wrote is joined to the text around it."""
        pieces: list[Piece] = []
        unused = set(self.contents)
        for literal in self.pattern.split(rendered):
            part = self.contents.get(literal)
            unused.discard(literal)
            if isinstance(part, TextPart):
                append_text(pieces, part.text)
            elif isinstance(part, TokensPart):
                pieces.append(part)
            else:
                for piece in tokenizer.split_special(literal):
                    if piece in tokenizer.special_ids:
                        pieces.append(Special(piece))
                    else:
                        append_text(pieces, piece)
        if unused:
            raise PromptError("the chat template left out a part of the messages")
        return pieces


def _tokens(pieces: list[Piece], tokenizer: Tokenizer) -> Prompt:
    ids: list[int] = []
    shown: list[tuple[Seen, list[int]]] = []
    for piece in pieces:
        if isinstance(piece, TokensPart):
            ids += piece.token_ids
        elif isinstance(piece, str):
            ids += tokenizer.encode(piece)
        elif isinstance(piece, Place):
            if piece.part == 0:
                shown.append((piece.seen, []))
            shown[-1][1].append(len(ids))
            ids += [tokenizer.token_id(piece.pad)] * piece.n_tokens
        else:
            ids.append(tokenizer.token_id(piece.content))
    slots = [
        ImageSlot(starts[0], seen, tuple(starts) if len(starts) > 1 else ())
        for seen, starts in shown
    ]
    return Prompt(np.array(ids, dtype=np.int32), tuple(slots))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{file} cannot be read as text") from None


def _refuse_messages(reason: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(reason)
