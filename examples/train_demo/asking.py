"""A question in one of its phrasings, and the small words that questions and answers share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from examples.train_demo.marks import seen
from examples.train_demo.phrasings import PHRASINGS
from examples.train_demo.scenes import Thing

COUNTS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ORDINALS: Final = ("first", "second")


@dataclass(frozen=True)
class Question:
    """One question and its answer, both with marks; `family` names the skill."""

    family: str
    question: str
    answer: str


class Asker:
    """Fills a phrasing of a family; adds the small variations of people who type."""

    def __init__(self, rng: random.Random, new_phrasing: bool) -> None:
        self.rng = rng
        self.new_phrasing = new_phrasing

    def __call__(self, family: str, **slots: str) -> str:
        """One phrasing of a family, its slots filled."""
        rng = self.rng
        trained, unseen = PHRASINGS[family]
        slots = {"img": rng.choice(("image", "picture")), "hue": _hue(rng), **slots}
        if self.new_phrasing:
            return rng.choice(unseen).format(**slots)
        taboo = _taboo(family)
        while True:
            question = rng.choice(trained).format(**slots)
            if _bare(question, slots) not in taboo:
                return untidy(rng, question)


def untidy(rng: random.Random, question: str) -> str:
    """A quarter of the questions get a polite start, or lose the capital or the final mark."""
    chance = rng.random()
    if chance < 0.06:
        start = rng.choice(
            (
                "Please tell me: ",
                "Can you tell me: ",
                "Look at the image. ",
                "Hi! ",
                "Question: ",
                "Now tell me: ",
            )
        )
        return start + question
    if chance < 0.08:
        return question + rng.choice((" Thank you.", " Please.", " Thanks!"))
    if chance < 0.14:
        return question[:-1]
    if chance < 0.18:
        return question[0].lower() + question[1:]
    if chance < 0.22:
        return question[0].lower() + question[1:-1]
    return question


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{a_or_an(words)} {words}"


def a_or_an(words: str) -> str:
    """The article that fits the words."""
    return "an" if words[0] in "aeiou" else "a"


def plural(noun: str) -> str:
    """The plural of a shape's name."""
    return noun + ("es" if noun.endswith("s") else "s")


def counted(n: int, noun: str) -> str:
    """A number in words with its noun, such as "two circles"."""
    return f"{COUNTS[n]} {noun if n == 1 else plural(noun)}"


def listed(things: Sequence[Thing], base: int) -> str:
    """All things by colour and shape, with marks that count from `base`."""
    parts = [seen([base + i], article(t.name)) for i, t in enumerate(things)]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _hue(rng: random.Random) -> str:
    return "color" if rng.random() < 0.75 else "colour"


def _bare(question: str, slots: dict[str, str]) -> str:
    """The question with its open slots masked, to be compared with held-out phrasings."""
    for name, value in slots.items():
        if name not in ("img", "hue"):
            question = question.replace(value, f"<{name}>")
    return question


def _taboo(family: str) -> set[str]:
    unseen = PHRASINGS[family][1]
    names = ("k", "c", "x", "p", "ks", "v", "a", "b", "r", "o", "i")
    return {
        text.format(img=img, hue=hue, **{n: f"<{n}>" for n in names})
        for text in unseen
        for img in ("image", "picture")
        for hue in ("color", "colour")
    }
