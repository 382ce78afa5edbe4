"""One question about many pictures, for a notebook: `ask_all`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlx_qwenvl.batching.questions import Question
from mlx_qwenvl.batching.together import Asked, Prepared, Together
from mlx_qwenvl.engine.options import CallOptions, read_options
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.engine.scheduler import MAX_RUNNING
from mlx_qwenvl.errors import PromptError, QwenVLError
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import ImagePart
from mlx_qwenvl.vlm import QwenVL

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Answer:
    """What became of a picture; either a reply or an error.

    Attributes:
        image: The picture as it was given.
        reply: The answer. It keeps the picture as the model saw it, 3 MB for a megapixel.
        error: Why there is none.
    """

    image: ImageSource
    reply: Reply | None = None
    error: QwenVLError | None = None


def ask_all(
    vlm: QwenVL,
    images: Iterable[ImageSource],
    prompt: str,
    *,
    system: str | None = None,
    prompt_first: bool = False,
    max_running: int = MAX_RUNNING,
    **options: Unpack[CallOptions],
) -> Iterator[Answer]:
    """Ask one question about each of many pictures.

    Pictures are opened by threads a few ahead, and answered side by side. A picture that cannot be
    opened or answered costs the others nothing. Nothing is kept of what was given out, so memory
    does not grow with the number of pictures.

    Args:
        vlm: The model.
        images: Pictures, each in any form that `QwenVL.generate` takes; read as far as needed.
        prompt: The question.
        system: A system message; by default the model's own.
        prompt_first: Put the question before the picture, so that it is computed once for all.
            Models were trained with pictures first.
        max_running: Answers decoded together at most.
        **options: See `Options` and `Sampling` in `engine/options.py`.

    Returns:
        The answers, in order of completion. Whoever stops listening ends the work.

    Raises:
        OptionError: An option is unknown or outside its range, or a grammar cannot be followed.
        PromptError: Nothing was asked, or `images` is one picture.
    """
    read = read_options(options, vlm.sampling)
    if read.grammar is not None:
        vlm.grammars.compile(read.grammar)
    if isinstance(images, (str, bytes, os.PathLike)):
        raise PromptError(f"images is a {type(images).__name__}, expected a list of images")
    question = Question(prompt, system, prompt_first)

    def prepare(image: ImageSource) -> list[Prepared[ImageSource]]:
        patches = vlm.open(ImagePart(image), read)
        return [(Asked(image), vlm.prompt(question.about(patches), read))]

    return _answers(Together(vlm, images, prepare, read, max_running))


def _answers(together: Together[ImageSource]) -> Iterator[Answer]:
    for outcome in together.outcomes():
        if outcome is None:
            continue
        asked, result = outcome
        if isinstance(result, Reply):
            yield Answer(asked.item, reply=replace(result, sources=(asked.item,)))
        else:
            yield Answer(asked.item, error=result)
