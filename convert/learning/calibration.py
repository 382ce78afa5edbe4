"""Prompts that a quantization is learned from, and their answers.

The prompts are the built-in drawings or a folder of pictures. The answers are a plainly quantized
model's: it fits wherever the result is to run, and what counts is that the decoder sees tokens of
answers behind the pictures, not that every one is right.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mlx_qwenvl.errors import MediaError, OptionError
from mlx_qwenvl.inputs.media import open_image
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.prompt import ChatTemplate
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.vlm import QwenVL
from mlx_qwenvl.weights.bundle import Bundle
from mlx_qwenvl.weights.load import load_model
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import read_recipe

from ..pictures import Drawn, builtin_pictures, builtin_question

log = logging.getLogger(__name__)

BUILTIN = "builtin"
ANSWERING = "4bit"  # recipe of the decoder that answers
QUESTIONS_FILE = "prompts.txt"
MOST_QUESTIONS = 4  # asked about one picture
MAX_SIDE = 448  # px, 256 tokens; larger pictures are shrunk, as activations of all prompts are held


def calibration_prompts(source: str | Path, seed: int, count: int) -> list[Drawn]:
    """Prompts to learn from.

    Args:
        source: "builtin", or a folder of pictures in any format that a question takes. Its file
            `prompts.txt`, if there is one, holds the questions, one a line.
        seed: Chooses the drawings, or the order of the pictures and who gets which question.
        count: How many; a folder gives at most four for each of its pictures.

    Raises:
        OptionError: The folder is none, or no picture in it can be read.
    """
    if source == BUILTIN:
        return builtin_pictures(seed, count)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise OptionError(f"{source} is no folder; expected {BUILTIN!r} or a folder of pictures")
    rng = random.Random(seed)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    rng.shuffle(files)
    questions = _questions(folder / QUESTIONS_FILE)
    pictures: list[Image.Image] = []
    for file in files:
        if len(pictures) == count:
            break
        picture = None if file.name == QUESTIONS_FILE else _opened(file)
        if picture is not None:
            pictures.append(picture)
    if not pictures:
        raise OptionError(f"{folder} holds no picture that can be read")
    asked = [pictures[n % len(pictures)] for n in range(min(count, MOST_QUESTIONS * len(pictures)))]
    return [
        Drawn(rng.choice(questions) if questions else builtin_question(rng), (picture,))
        for picture in asked
    ]


def answers_of(
    bundle: Bundle, config: Config, prompts: Sequence[Drawn], limit: int
) -> list[list[int]]:
    """Tokens of greedy answers.

    Args:
        bundle: The dense source.
        config: Its shape.
        prompts: What is asked.
        limit: Most tokens of an answer.

    Raises:
        CheckpointError: The weights are no dense Qwen2-VL.
        MediaError: A picture cannot be read.
    """
    processor = Processor.from_folder(bundle.folder)
    plan = make_plan(config, read_recipe(ANSWERING))
    vlm = QwenVL(
        str(bundle.folder),
        load_model(bundle.tensors, config, processor.normalization, plan=plan),
        Tokenizer.from_folder(bundle.folder),
        ChatTemplate.from_folder(bundle.folder),
        processor,
        generation={},
        load_s=0.0,
    )
    answers = []
    for prompt in prompts:
        chunks = vlm.stream(prompt.question, images=prompt.images, temperature=0, max_tokens=limit)
        answers.append([token for chunk in chunks for token in chunk.token_ids])
    return answers


def _opened(file: Path) -> Image.Image | None:
    try:
        image = open_image(file)
    except MediaError as error:
        log.warning("left out: %s", error)
        return None
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    return image


def _questions(file: Path) -> list[str]:
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise OptionError(f"{file} cannot be read as text") from None
    return [line.strip() for line in lines if line.strip()]
