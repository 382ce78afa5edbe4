"""One conversation and all that can be done with it; nothing here is printed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from PIL import Image

from mlx_qwenvl.arguments import DEFAULT_QUESTION, DEFAULT_VIDEO_QUESTION
from mlx_qwenvl.chatting.picture import Picture
from mlx_qwenvl.chatting.settings import for_retry
from mlx_qwenvl.dialogue import Chat
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.engine.reply import Chunk, Timings, Usage, as_given, boxes_of
from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.grounding.boxes import Box
from mlx_qwenvl.grounding.draw import draw_boxes
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import ImagePart, MediaPart, Message, TextPart
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.inputs.video_part import VideoPart, VideoSource
from mlx_qwenvl.vlm import QwenVL

DESCRIBE_ALL = "Describe these images."  # where several come without a question


@dataclass
class Totals:
    """Figures of the session.

    Attributes:
        answers: Answers that came to their end.
        stopped: Answers that were stopped on the way.
        prompt_tokens: Tokens of all prompts.
        cached_tokens: Those of them that were not computed.
        completion_tokens: Tokens of all answers.
        vision_s: Seconds for pictures.
        prefill_s: Seconds for prompts.
        decode_s: Seconds for answers.
    """

    answers: int = 0
    stopped: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def add(self, usage: Usage, timings: Timings) -> None:
        """Count an answer."""
        self.answers += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.vision_s += timings.vision_s
        self.prefill_s += timings.prefill_s
        self.decode_s += timings.decode_s


@dataclass
class Session:
    """A conversation with a model.

    Attributes:
        vlm: The model.
        options: What answers are drawn with.
        system: The system message that it begins with, or None for the model's own.
        chat: The turns.
        totals: Figures of the session.
        last: The last chunk of the last answer; None where there is none or it was stopped.
        originals: Pictures as they were given, by the digests of their patches.
    """

    vlm: QwenVL
    options: CallOptions
    system: str | None = None
    totals: Totals = field(default_factory=Totals)
    last: Chunk | None = None
    originals: dict[bytes, Picture] = field(default_factory=dict)
    _attempts: int = 1

    def __post_init__(self) -> None:
        """Begin."""
        self.chat: Chat = self.vlm.chat(self.system)

    # --- Questions ------------------------------------------------------------------------------

    def ask(
        self,
        text: str,
        pictures: Sequence[Picture | ImagePatches] = (),
        options: CallOptions | None = None,
        videos: Sequence[VideoSource | VideoPatches] = (),
    ) -> Iterator[Chunk]:
        """Ask; arguments and errors are those of `Chat.stream`.

        What fails, or is stopped before its first word, leaves the conversation as it was.
        """
        self._attempts = 1
        return self._asked(text, pictures, options, videos, replaces=False)

    def retry(self, options: CallOptions | None = None) -> tuple[Iterator[Chunk], bool]:
        """Ask the last question again, for another answer in place of the last one.

        Args:
            options: Changes to the options, for this answer alone.

        Returns:
            The answer, and whether it is drawn although the settings say the likeliest word.

        Raises:
            PromptError: Nothing was asked.
        """
        question = self.last_question()
        text, pictures = parts_of(question)
        drawing, is_forced = for_retry(self.options, self.vlm.sampling, self._attempts)
        self._attempts += 1
        merged = cast(CallOptions, {**drawing, **(options or {})})
        videos = videos_of([question])
        return self._asked(text, pictures, merged, videos, replaces=True), is_forced

    def replace(
        self, text: str, pictures: Sequence[Picture] = (), options: CallOptions | None = None
    ) -> Iterator[Chunk]:
        """Ask something else in place of the last question; its pictures stay.

        Raises:
            PromptError: Nothing was asked.
        """
        question = self.last_question()
        kept, videos = parts_of(question)[1], videos_of([question])
        self._attempts = 1
        return self._asked(text, [*kept, *pictures], options, videos, replaces=True)

    def _asked(
        self,
        text: str,
        pictures: Sequence[Picture | ImagePatches],
        options: CallOptions | None,
        videos: Sequence[VideoSource | VideoPatches],
        *,
        replaces: bool,
    ) -> Generator[Chunk, None, None]:
        """Ask, and give the conversation back as it was where nothing comes of it."""
        if not text and videos and not pictures:
            text = DEFAULT_VIDEO_QUESTION
        elif not text and pictures:
            text = DEFAULT_QUESTION if len(pictures) == 1 else DESCRIBE_ALL
        before = list(self.chat.messages)
        if replaces:
            self._take_back()
        known = len(self.chat.messages)
        chunk: Chunk | None = None
        try:
            # What is cut already is taken too, which the types of the sources do not say.
            images = cast("list[ImageSource]", list(pictures))
            films = cast("list[VideoSource]", list(videos))
            merged = cast(CallOptions, {**self.options, **(options or {})})
            with closing_iterator(
                self.chat.stream(text, images=images, videos=films, **merged)
            ) as chunks:
                for chunk in chunks:
                    yield chunk
        finally:
            if len(self.chat.messages) == known:
                self.chat.messages[:] = before
            else:
                self._remember(pictures, known)
                self._count(chunk)

    def _remember(self, pictures: Sequence[Picture | ImagePatches], known: int) -> None:
        cut = pictures_of(self.chat.messages[known:])
        for picture, patches in zip(pictures, cut, strict=True):
            if isinstance(picture, Picture):
                self.originals[patches.digest] = picture

    def _count(self, chunk: Chunk | None) -> None:
        self.last = chunk if chunk is not None and chunk.finish_reason else None
        if self.last is None or self.last.usage is None or self.last.timings is None:
            self.totals.stopped += 1
        else:
            self.totals.add(self.last.usage, self.last.timings)

    # --- What was said --------------------------------------------------------------------------

    def last_question(self) -> Message:
        """The question that was asked last.

        Raises:
            PromptError: Nothing was asked.
        """
        for message in reversed(self.chat.messages):
            if message.role == "user":
                return message
        raise PromptError("nothing was asked yet")

    def last_answer(self) -> str:
        """The last answer, its marks spelled out; "" where there is none."""
        for message in reversed(self.chat.messages):
            if message.role == "assistant":
                return self.text_of(message)
        return ""

    def text_of(self, message: Message) -> str:
        """What a message says."""
        return "".join(
            part.text
            if isinstance(part, TextPart)
            else self.vlm.tokenizer.decode([*part.token_ids])
            for part in message.parts
            if not isinstance(part, MediaPart)
        )

    def pictures(self) -> list[tuple[ImagePatches, Picture | None]]:
        """The conversation's pictures in order, as the model saw them and as they were given."""
        cut = pictures_of(self.chat.messages)
        return [(patches, self.originals.get(patches.digest)) for patches in cut]

    def videos(self) -> list[VideoPatches]:
        """The conversation's videos in order, as the model saw them."""
        return videos_of(self.chat.messages)

    def systems(self) -> list[str]:
        """The system messages in force."""
        return [self.text_of(m) for m in self.chat.messages if m.role == "system"]

    def boxes(self) -> tuple[Box, ...]:
        """What the last answer points at."""
        seen = [patches for patches, _ in self.pictures()]
        return boxes_of(self.last_answer(), seen, self.vlm.model.points_in)

    def drawn(self) -> Image.Image:
        """The picture that the last answer points at, its boxes drawn in.

        Raises:
            PromptError: The conversation has no picture.
        """
        pictures, boxes = self.pictures(), self.boxes()
        if not pictures:
            raise PromptError("there is no picture to draw on")
        seen, given = pictures[boxes[-1].image if boxes else -1]
        return draw_boxes(as_given(seen, given), boxes)

    # --- What changes it ------------------------------------------------------------------------

    def clear(self) -> None:
        """Begin anew, as at the start."""
        self.resume(self.vlm.chat(self.system).messages, {})

    def instruct(self, text: str) -> None:
        """Add a system message at this point."""
        self.chat.messages.append(Message("system", (TextPart(text),)))

    def resume(self, messages: Iterable[Message], originals: dict[bytes, Picture]) -> None:
        """Go on with another conversation."""
        self.chat.messages[:] = messages
        self.originals = dict(originals)
        self.last, self._attempts = None, 1

    def move_to(
        self, vlm: QwenVL, messages: Iterable[Message], originals: dict[bytes, Picture]
    ) -> None:
        """Go on with another model, which `moving.py` has told the conversation."""
        self.vlm = vlm
        self.chat = vlm.chat()
        self.resume(messages, originals)

    def _take_back(self) -> None:
        """Take back the last question and its answer; system messages after it stay."""
        messages = self.chat.messages
        at = max(index for index, message in enumerate(messages) if message.role == "user")
        messages[at:] = [message for message in messages[at:] if message.role == "system"]


def pictures_of(messages: Iterable[Message]) -> list[ImagePatches]:
    """The pictures of turns that were asked, in order."""
    parts = (part for message in messages for part in message.parts)
    sources = (part.source for part in parts if isinstance(part, ImagePart))
    return [source for source in sources if isinstance(source, ImagePatches)]


def videos_of(messages: Iterable[Message]) -> list[VideoPatches]:
    """The videos of turns that were asked, in order."""
    parts = (part for message in messages for part in message.parts)
    sources = (part.source for part in parts if isinstance(part, VideoPart))
    return [source for source in sources if isinstance(source, VideoPatches)]


def parts_of(question: Message) -> tuple[str, list[ImagePatches]]:
    """A question's text and pictures."""
    text = "".join(part.text for part in question.parts if isinstance(part, TextPart))
    return text, pictures_of([question])


@contextmanager
def closing_iterator(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """An answer that is remembered as soon as nobody listens to it any more."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, Generator):
            chunks.close()
