"""A conversation that goes on: its turns, kept as they were read and answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from mlx_qwenvl.engine import shown
from mlx_qwenvl.engine.answer import Stopwatch
from mlx_qwenvl.engine.options import CallOptions, Options, read_options
from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.grounding.boxes import without_marks
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import (
    ImagePart,
    Message,
    Part,
    TextPart,
    TokensPart,
    user_message,
)
from mlx_qwenvl.inputs.video import Seen
from mlx_qwenvl.inputs.video_part import VideoPart, VideoSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlx_qwenvl.vlm import QwenVL


class Chat:
    """A conversation. Make one with `QwenVL.chat`.

    Args:
        vlm: The model.
        system: A system message, or None for the model's own.
    """

    def __init__(self, vlm: QwenVL, system: str | None) -> None:
        self._vlm = vlm
        self.messages = [] if system is None else [Message("system", (TextPart(system),))]

    def __repr__(self) -> str:
        """How long it is, and whom it is with."""
        questions = sum(message.role == "user" for message in self.messages)
        return f"Chat({self._vlm.name!r}, {questions} question{'s' * (questions != 1)})"

    def _repr_markdown_(self) -> str:
        """The conversation as a notebook shows it, with its pictures."""
        return shown.joined([block for turn in self.messages for block in self._shown(turn)])

    def ask(
        self,
        prompt: str,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        **options: Unpack[CallOptions],
    ) -> Reply:
        """Ask the next question; arguments and errors are those of `QwenVL.generate`."""
        chunks = list(self.stream(prompt, images=images, videos=videos, **options))
        return self._reply(chunks, images)

    def stream(
        self,
        prompt: str,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        **options: Unpack[CallOptions],
    ) -> Iterator[Chunk]:
        """Ask the next question and hear the answer piece by piece.

        An answer that is broken off stays in the conversation as far as it went. A question that
        fails leaves the conversation as it was.
        """
        watch = Stopwatch(self._vlm.load_s)
        read = read_options(options, self._vlm.sampling)
        question = self._opened(user_message(prompt, images, videos), read)
        built = self._vlm.prompt([*self.messages, question], read)
        chunks = self._vlm._answer(built, read, watch)
        return self._remembered(chunks, question, stops=bool(read.stop))

    async def aask(
        self,
        prompt: str,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        **options: Unpack[CallOptions],
    ) -> Reply:
        """Ask the next question without holding up the event loop; otherwise as `ask`."""
        chunks = [
            chunk async for chunk in self.astream(prompt, images=images, videos=videos, **options)
        ]
        return self._reply(chunks, images)

    async def astream(
        self,
        prompt: str,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """Ask the next question and hear the answer piece by piece, for `async for`.

        A conversation has one question at a time: of two that are asked at once, neither knows of
        the other. An answer that is cancelled stays as far as it went.
        """
        watch = Stopwatch(self._vlm.load_s)
        read = read_options(options, self._vlm.sampling)
        import asyncio  # for those who wait in a loop

        asked = user_message(prompt, images, videos)
        question = await asyncio.to_thread(self._opened, asked, read)
        turns = [*self.messages, question]
        heard: list[Chunk] = []
        try:
            async with aclosing(self._vlm._hear(turns, read, watch)) as chunks:
                async for chunk in chunks:
                    heard.append(chunk)
                    yield chunk
        finally:
            self._remember(question, heard, stops=bool(read.stop))

    def _shown(self, turn: Message) -> list[str]:
        seen, text = list[Seen](), ""
        for part in turn.parts:
            if isinstance(part, TextPart):
                text += part.text
            elif isinstance(part, TokensPart):
                text += self._vlm.tokenizer.decode(list(part.token_ids))
            elif isinstance(part.source, Seen):
                seen.append(part.source)
        return [
            f"**{turn.role}**",
            shown.views_markdown(seen),
            shown.safe_markdown(without_marks(text)),
        ]

    def _opened(self, message: Message, options: Options) -> Message:
        """The message with its pictures as patches: a file may change, the past may not."""

        def opened(part: Part) -> Part:
            if isinstance(part, ImagePart):
                return ImagePart(self._vlm.open(part, options))
            if isinstance(part, VideoPart):
                return VideoPart(self._vlm.open_video(part, options))
            return part

        return Message(message.role, tuple(map(opened, message.parts)))

    def _reply(self, chunks: Sequence[Chunk], images: Sequence[ImageSource]) -> Reply:
        # Earlier pictures are known by their patches alone.
        count = len(chunks[-1].pictures) - len(images)
        return Reply.of(chunks, self._vlm.name, [*[None] * count, *images])

    def _remembered(
        self,
        chunks: Iterator[Chunk],
        question: Message,
        *,
        stops: bool,
    ) -> Iterator[Chunk]:
        heard: list[Chunk] = []
        try:
            for chunk in chunks:
                heard.append(chunk)
                yield chunk
        finally:
            self._remember(question, heard, stops=stops)

    def _remember(self, question: Message, heard: Sequence[Chunk], *, stops: bool) -> None:
        if heard:
            # The tokens themselves go back, so that the cache fits. Only a stop text, which is cut
            # out of the text but not out of the tokens, makes the text speak.
            tokens = tuple(i for chunk in heard for i in chunk.token_ids)
            text = "".join(chunk.text for chunk in heard)
            # Thoughts are no part of a conversation: the next turn is asked without them.
            thought = any(chunk.thinking for chunk in heard)
            reply = TextPart(text) if stops or thought else TokensPart(tokens)
            self.messages += [question, Message("assistant", (reply,))]
