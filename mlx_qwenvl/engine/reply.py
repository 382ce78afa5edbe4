"""What an answer is made of, for people and programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from PIL import Image

from mlx_qwenvl.engine import shown
from mlx_qwenvl.errors import MediaError, PromptError
from mlx_qwenvl.grounding.boxes import Box, find_boxes, without_marks
from mlx_qwenvl.grounding.draw import draw_boxes
from mlx_qwenvl.grounding.frame import FRAME, Frame, Unit
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import ImageSource, open_image
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.sizes import in_bytes

FinishReason = Literal["stop", "length"]


class _Figures:
    """Figures that read as attributes and, as in the JSON they become, by name."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)  # type: ignore[call-overload]

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def keys(self) -> Iterable[str]:
        """Names of the figures, so that `dict(reply.usage)` works."""
        return self.to_dict().keys()


@dataclass(frozen=True)
class Usage(_Figures):
    """Token counts of one answer.

    Attributes:
        prompt_tokens: Tokens of the whole prompt, image slots and cached ones included.
        image_tokens: Image slots among them.
        cached_tokens: Prompt tokens that did not have to be computed.
        completion_tokens: Tokens of the answer, the end token not counted.
        video_tokens: Video slots among the prompt's.
        thinking_tokens: Tokens of the answer that were thought before it, their marks included.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    video_tokens: int = 0
    thinking_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        """All counts, the total included; `thinking_tokens` only where there are some."""
        counts: dict[str, int] = super().to_dict() | {"total_tokens": self.total_tokens}
        if not self.thinking_tokens:
            del counts["thinking_tokens"]
        return counts


@dataclass(frozen=True)
class Timings(_Figures):
    """Where the time went, in seconds.

    Attributes:
        load_s: Loading the model, once.
        vision_s: Reading pictures and running the vision tower.
        prefill_s: Computing the prompt up to the first token.
        time_to_first_token_s: From the call to the first token.
        decode_s: From the first token to the last.
        prompt_tokens_per_s: Computed prompt tokens by `prefill_s`.
        completion_tokens_per_s: Tokens after the first by `decode_s`; 0 where there are none.
    """

    load_s: float
    vision_s: float
    prefill_s: float
    time_to_first_token_s: float
    decode_s: float
    prompt_tokens_per_s: float
    completion_tokens_per_s: float


@dataclass(frozen=True)
class Speculation(_Figures):
    """What verifying proposed tokens brought to one answer.

    Attributes:
        proposed_tokens: Tokens that were proposed.
        accepted_tokens: Those of them that the model chose too.
        rounds: Steps that verified them.
    """

    proposed_tokens: int = 0
    accepted_tokens: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability and its strongest alternatives, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it comes.

    Attributes:
        text: New text; may be empty.
        token_ids: Tokens that came with this chunk.
        logprobs: One for each of them where asked for.
        finish_reason: Why the answer ended; on the last chunk only.
        usage: Token counts; on the last chunk only.
        timings: Where the time went; on the last chunk only.
        peak_memory_bytes: Most memory MLX held during the call; on the last chunk only.
        speculation: What proposed tokens brought; on the last chunk only, None where no token
            could be proposed.
        stop_text: The stop text before which the answer ended; on the last chunk only, None where
            it ended otherwise.
        pictures: The prompt's, as the model saw them; on the last chunk only.
        videos: The same of its videos.
        unit: What the model counts in where it points at them.
        thinking: New text of what the model thinks before it answers; it is not in `text`.
        said: All new text as it came, thoughts and their marks included; None where that is `text`.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    peak_memory_bytes: int | None = None
    speculation: Speculation | None = None
    stop_text: str | None = None
    pictures: tuple[ImagePatches, ...] = field(default=(), repr=False)
    videos: tuple[VideoPatches, ...] = field(default=(), repr=False)
    unit: Unit = "thousandths"
    thinking: str = ""
    said: str | None = field(default=None, repr=False)

    @property
    def whole(self) -> str:
        """All new text as it came."""
        return self.text if self.said is None else self.said


@dataclass(frozen=True)
class Reply:
    """A whole answer; `str(reply)` is its text.

    Attributes:
        text: The answer.
        token_ids: Its tokens, the end token not counted.
        finish_reason: "stop" at an end token or stop text, "length" at `max_tokens`.
        usage: Token counts.
        timings: Where the time went.
        peak_memory_bytes: Most memory MLX held during the call.
        model: Name of the model that answered.
        logprobs: One for each token where asked for.
        speculation: What proposed tokens brought, None where no token could be proposed.
        pictures: The conversation's pictures, as the model saw them.
        sources: What the caller gave for each of them, or None where that is not known any more.
        videos: The conversation's videos, as the model saw them.
        unit: What the model counts in where it points at them.
        thinking: What the model thought before it answered, where it does so; not in `text`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    peak_memory_bytes: int
    model: str
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    speculation: Speculation | None = None
    pictures: tuple[ImagePatches, ...] = field(default=(), repr=False, compare=False)
    sources: tuple[ImageSource | None, ...] = field(default=(), repr=False, compare=False)
    videos: tuple[VideoPatches, ...] = field(default=(), repr=False, compare=False)
    unit: Unit = "thousandths"
    thinking: str = field(default="", repr=False)

    def __str__(self) -> str:
        """The answer."""
        return self.text

    @classmethod
    def of(
        cls,
        chunks: Sequence[Chunk],
        model: str,
        sources: Sequence[ImageSource | None] = (),
    ) -> Reply:
        """Join the chunks of a finished answer.

        Args:
            chunks: All of them.
            model: Name of the model that answered.
            sources: What the caller gave for each picture of the prompt, in order.
        """
        last = chunks[-1]
        assert last.finish_reason and last.usage and last.timings, "the answer is not finished"
        return cls(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(i for chunk in chunks for i in chunk.token_ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            peak_memory_bytes=last.peak_memory_bytes or 0,
            model=model,
            logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
            speculation=last.speculation,
            pictures=last.pictures,
            sources=tuple(sources),
            videos=last.videos,
            unit=last.unit,
            thinking="".join(chunk.thinking for chunk in chunks),
        )

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """What the answer points at, in pixels of the original pictures."""
        return boxes_of(self.text, self.pictures, self.unit)

    def draw(self, on: ImageSource | None = None) -> Image.Image:
        """The picture that the answer points at, upright, with its boxes drawn in.

        Args:
            on: The picture to draw on. By default the one that was given, where it can still be
                opened without a network, else the model's own view of it at its original size.

        Returns:
            A new picture of mode "RGB". One of fewer than 320 pixels a side is enlarged by a whole
            number, so that the labels can be read. Without boxes it is the last picture.

        Raises:
            PromptError: The conversation has no picture.
            MediaError: `on` cannot be opened.
        """
        if not self.pictures:
            raise PromptError("there is no picture to draw on; the question had none")
        index = self.boxes[-1].image if self.boxes else len(self.pictures) - 1
        if on is not None:
            return draw_boxes(open_image(on), self.boxes)
        return draw_boxes(self._given(index), self.boxes)

    def _given(self, index: int) -> Image.Image:
        """A picture as the caller gave it."""
        source = self.sources[index] if index < len(self.sources) else None
        return as_given(self.pictures[index], source)

    def _repr_markdown_(self) -> str:
        """The answer as a notebook shows it, below its pictures and above its figures."""
        if self.boxes:
            pictures = shown.picture_markdown(self._drawn_small(), shown.DRAWN_SIDE)
        else:
            pictures = shown.views_markdown([*self.pictures, *self.videos])
        text = shown.safe_markdown(without_marks(self.text))
        return shown.joined([pictures, text, shown.small_line(self._figures())])

    def _repr_png_(self) -> bytes | None:
        """The picture with its boxes, where the answer points at something."""
        return shown.png_of(self._drawn_small()) if self.boxes else None

    def _drawn_small(self) -> Image.Image:
        """The picture with its boxes, of a size for notebooks."""
        picture = self._given(self.boxes[-1].image).copy()  # it may be the caller's own
        picture.thumbnail((shown.DRAWN_SIDE, shown.DRAWN_SIDE))
        return self.draw(on=picture)

    def _figures(self) -> list[str]:
        usage, timings = self.usage, self.timings
        cached = f", {usage.cached_tokens} of them cached" if usage.cached_tokens else ""
        return [
            self.model,
            f"{usage.prompt_tokens} prompt tokens{cached}",
            f"{usage.completion_tokens} answer tokens",
            f"first token after {timings.time_to_first_token_s:.2f} s",
            f"{timings.completion_tokens_per_s:.1f} tokens/s",
            f"peak {in_bytes(self.peak_memory_bytes)}",
            *(["cut off at max_tokens"] if self.finish_reason == "length" else []),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The reply as `--json` prints it; `thinking` and `boxes` only where it has some."""
        thoughts = {"thinking": self.thinking} if self.thinking else {}
        boxes = {"boxes": [box.to_dict() for box in self.boxes]} if self.boxes else {}
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            **thoughts,
            **boxes,
        }


def boxes_of(text: str, pictures: Sequence[ImagePatches], unit: Unit) -> tuple[Box, ...]:
    """The boxes that an answer names, in pixels of the original pictures.

    Args:
        text: The answer.
        pictures: The conversation's, as the model saw them.
        unit: What the model counts in.
    """
    whole = (FRAME, FRAME)
    frames = [
        Frame(seen.source_size, seen.orientation, seen.size if unit == "pixels" else whole)
        for seen in pictures
    ]
    return find_boxes(text, frames)


def as_given(seen: ImagePatches, source: ImageSource | None) -> Image.Image:
    """A picture as it was given, upright, or as the model saw it where that is gone or has changed.

    Args:
        seen: The picture as the model saw it.
        source: What the caller gave; None where that is not known. No network is asked for it.

    Returns:
        The picture at its original size.
    """
    is_far = isinstance(source, str) and source.lower().startswith(("http:", "https:"))
    try:
        picture = None if source is None or is_far else open_image(source)
    except MediaError:
        picture = None
    if picture is None or picture.size != seen.source_size:
        return seen.to_image().resize(seen.source_size, Image.Resampling.BICUBIC)
    return picture
