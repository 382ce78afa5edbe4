"""The messages of one question about one picture or video."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, without_marks
from mlx_qwenvl.inputs.video import Seen
from mlx_qwenvl.inputs.video_part import VideoPart


@dataclass(frozen=True)
class Question:
    """What is asked about every picture or video.

    Attributes:
        text: The question.
        system: A system message; None for the model's own.
        comes_first: Whether the question stands before what is shown. It is then computed once for
            all, but models were trained with pictures first.
    """

    text: str
    system: str | None = None
    comes_first: bool = False

    def about(self, shown: Seen) -> list[Message]:
        """The question about a picture or a video, as a conversation."""
        part = ImagePart(shown) if isinstance(shown, ImagePatches) else VideoPart(shown)
        parts = without_marks([part, TextPart(self.text)])
        if self.comes_first:
            parts = parts[::-1]
        turns = [] if self.system is None else [Message("system", (TextPart(self.system),))]
        return [*turns, Message("user", parts)]
