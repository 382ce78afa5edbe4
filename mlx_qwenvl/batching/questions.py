"""The messages of one question about one picture."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, without_marks


@dataclass(frozen=True)
class Question:
    """What is asked about every picture.

    Attributes:
        text: The question.
        system: A system message; None for the model's own.
        comes_first: Whether the question stands before the picture. It is then computed once for
            all pictures, but models were trained with pictures first.
    """

    text: str
    system: str | None = None
    comes_first: bool = False

    def about(self, picture: ImagePatches) -> list[Message]:
        """The question about a picture, as a conversation."""
        parts = without_marks([ImagePart(picture), TextPart(self.text)])
        if self.comes_first:
            parts = parts[::-1]
        turns = [] if self.system is None else [Message("system", (TextPart(self.system),))]
        return [*turns, Message("user", parts)]
