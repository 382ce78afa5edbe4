"""What is asked. No two rounds ask the same, so that nothing but the case itself is reused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.plans import Plan
from mlx_qwenvl.inputs.tokenizer import Tokenizer

MEGAPIXEL = (1008, 980)  # pixels; not resized by a real checkpoint
SYSTEM_TOKENS, SHORT_TOKENS, NEXT_TOKENS = 8, 8, 8  # of text
AT_ONCE = 8
COARSE = 14  # pixels between the random points of a picture
WORDS = ("red", "blue", "green", "small", "large", "the", "is", "a", "of", "circle", "square")


@dataclass(frozen=True)
class Case:
    """One kind of question.

    Attributes:
        title: What a reader calls it.
        unit: "s" to the first token, or "tokens/s".
    """

    title: str
    unit: str = "s"


CASES = {
    "cold": Case("cold start to the first token, whole command"),
    "decode": Case("decode", "tokens/s"),
    "prefill": Case("prefill of text"),
    "picture": Case("a picture and text"),
    "megapixel": Case(f"a picture of {MEGAPIXEL[0]}x{MEGAPIXEL[1]}"),
    "three": Case("three pictures"),
    "another": Case("another question about the same picture"),
    "another-best": Case("another question about the same picture, with its API's caches"),
    "next": Case("next turn of a chat about a picture"),
    "next-best": Case("next turn of a chat about a picture, with its API at best"),
    "batch": Case(f"{AT_ONCE} questions at once", "tokens/s"),
}


def picture(place: Path, number: int, size: tuple[int, int]) -> str:
    """Path of a smooth random picture of its own for each number."""
    width, height = size
    path = place / f"{number}-{width}x{height}.png"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        shape = (height // COARSE, width // COARSE, 3)
        coarse = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


class Writer:
    """Writes the jobs of a round.

    Args:
        tokenizer: The model's.
        plan: How much is asked.
        pictures: Where pictures are kept.
    """

    def __init__(self, tokenizer: Tokenizer, plan: Plan, pictures: Path) -> None:
        self._tokenizer = tokenizer
        self._plan = plan
        self._pictures = pictures

    def text(self, seed: str, tokens: int, begin: Sequence[str] = ()) -> str:
        """Words that make exactly so many tokens."""
        drawn = random.Random(seed)
        words = list(begin)
        while (count := len(self._tokenizer.encode(" ".join(words)))) != tokens:
            if count > tokens:
                del words[-2:]
            words.append(drawn.choice(WORDS))
        return " ".join(words)

    def job(self, case: str, number: int) -> dict[str, Any]:
        """The job of one measurement.

        Args:
            case: One of `CASES`, not "cold".
            number: Of the round.
        """
        seed, plan = f"{case} {number}", self._plan
        # Another system message each time: what prompts begin with is not to be found in a cache.
        first = (list(CASES).index(case) * 100 + number + 1) * 10
        system = self.text(f"{seed} system", SYSTEM_TOKENS, begin=[str(first)])
        short, long = self.text(seed, SHORT_TOKENS), self.text(seed, plan.long_tokens)
        small = [picture(self._pictures, first + more, plan.small) for more in range(3)]
        if case == "decode":
            return _answer(system, short, (), plan.decoded)
        if case == "prefill":
            return _answer(system, long, (), 1)
        if case == "picture":
            return _answer(system, long, [picture(self._pictures, first, plan.picture)], 1)
        if case == "megapixel":
            return _answer(system, short, [picture(self._pictures, first, MEGAPIXEL)], 1)
        if case == "three":
            return _answer(system, short, small, 1)
        if case == "batch":
            questions = [self.text(f"{seed} {row}", SHORT_TOKENS) for row in range(AT_ONCE)]
            return {"kind": "batch", "questions": questions, "max_tokens": plan.decoded}
        kind, _, best = case.partition("-")
        question = self.text(f"{seed} next", NEXT_TOKENS)
        job = {"kind": kind, "best": bool(best), "question": question}
        return _answer(system, short, small[:1], 1) | job


def figure(case: str, found: dict[str, Any]) -> float:
    """The case's figure in its unit, from what a driver told."""
    if case == "batch":
        return float(found["n_tokens"] / found["seconds"])
    if case == "decode":
        return float((found["n_tokens"] - 1) / found["decode_s"])
    return float(found["first_s"])


def _answer(system: str, text: str, images: Sequence[str], max_tokens: int) -> dict[str, Any]:
    turns = [
        {"role": "system", "text": system, "images": []},
        {"role": "user", "text": text, "images": list(images)},
    ]
    return {"kind": "answer", "turns": turns, "max_tokens": max_tokens}
