"""What commands list: pictures, boxes, tokens and times."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_qwenvl.chatting.picture import Picture
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.settings import described
from mlx_qwenvl.grounding.boxes import Box
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.video import VideoPatches, in_words


def counted(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def pictures_table(
    pictures: Sequence[tuple[ImagePatches, Picture | None]],
    waiting: Sequence[Picture],
    videos: Sequence[VideoPatches] = (),
) -> str:
    """The pictures of a conversation, in order, and its videos."""
    rows: list[str] = []
    for seen, given in pictures:
        (wide, high), (width, height) = seen.source_size, seen.size
        name = "picture" if given is None else given.name
        rows.append(
            f"{len(rows) + 1}. {name}: {wide} x {high} pixels, read as {width} x {height}, "
            f"{counted(seen.n_tokens, 'token')}"
        )
    rows += [in_words(number, video) for number, video in enumerate(videos, start=1)]
    rows += [f"{picture.name}: waits for the next question" for picture in waiting]
    return "\n".join(rows) or "no pictures yet"


def boxes_table(boxes: Sequence[Box]) -> str:
    """What an answer points at, in pixels of the picture as its file holds it."""
    rows = []
    for number, box in enumerate(boxes, start=1):
        points = " ".join(f"({x:.0f}, {y:.0f})" for x, y in box.corners)
        rows.append(f"{number}. {box.label or 'no name'}: {box.kind} {points}")
    return "\n".join([*rows, f"in pixels of picture {boxes[-1].image + 1}"])


def stats_table(session: Session) -> str:
    """Tokens and times of the last answer and of the session."""
    rows = []
    last, totals = session.last, session.totals
    if last is not None and last.usage is not None and last.timings is not None:
        usage, timings = last.usage, last.timings
        rows += [
            f"last answer: {usage.prompt_tokens} prompt tokens ({usage.image_tokens} of pictures), "
            f"{usage.cached_tokens} of them known; {usage.completion_tokens} answer tokens",
            f"  first word after {timings.time_to_first_token_s:.2f} s: pictures "
            f"{timings.vision_s:.2f} s, prompt {timings.prefill_s:.2f} s "
            f"({timings.prompt_tokens_per_s:.0f} tokens/s)",
            f"  answer {timings.decode_s:.2f} s ({timings.completion_tokens_per_s:.1f} tokens/s)",
        ]
    elif totals.stopped:
        rows.append("last answer: stopped, so without figures")
    rows += [
        f"session: {counted(totals.answers, 'answer')}, {totals.stopped} stopped; "
        f"{totals.prompt_tokens} prompt tokens, {totals.cached_tokens} of them known; "
        f"{totals.completion_tokens} answer tokens",
        f"  pictures {totals.vision_s:.2f} s, prompts {totals.prefill_s:.2f} s, "
        f"answers {totals.decode_s:.2f} s",
        f"model: {session.vlm.name}",
        f"drawn with: {described(session.options, session.vlm.sampling)}",
    ]
    return "\n".join(rows)
