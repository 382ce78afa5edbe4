"""The generator of training and test samples: pictures with questions and exact answers.

Tests and evaluation use `held_out`; training uses `make_sample`. Nothing here needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from examples.train_demo import boxes, scenes
from examples.train_demo.about_others import about_pair, about_text
from examples.train_demo.about_shapes import about_shapes
from examples.train_demo.asking import Asker, Question
from examples.train_demo.marks import MARK, plain
from examples.train_demo.scenes import Box, Picture
from examples.train_demo.talk import INTENTS

_SHAPE_FAMILIES: Final = """
    describe_1 describe_2 describe_3 describe_4 caption count_all background
    color_it shape_it where_it color shape where color_of_none where_of_none
    box box_all box_of_none
    count count_color exist exist_color exist_named is_color relation at
"""
_TEXT_FAMILIES: Final = """
    read_1_digits read_2_digits read_3_digits read_word
    name_1_digits name_2_digits name_3_digits name_word
    caption_text describe_text text_color
"""
_PAIR_FAMILIES: Final = "which ith count_images each same_shape same_color"
# Family of questions to the kind of sample that holds it; describe_4 is four and five shapes.
FAMILIES: Final[dict[str, str]] = {
    **dict.fromkeys(_SHAPE_FAMILIES.split(), "shapes"),
    **dict.fromkeys(_TEXT_FAMILIES.split(), "text"),
    **dict.fromkeys(_PAIR_FAMILIES.split(), "pair"),
    "talk": "talk",
}


@dataclass(frozen=True)
class Sample:
    """Pictures (none for small talk) and the questions that they can answer."""

    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]


def held_out(family: str, seed: int, n: int) -> list[tuple[list[Image.Image], str, str]]:
    """`n` questions of one family that training never saw, with trained phrasings.

    Training draws its seeds below 2**40; evaluation and tests draw theirs above. Numbers to read
    come from the strings that training leaves out.

    Args:
        family: a name out of `FAMILIES`.
        seed: any integer >= 0; the same seed gives the same pictures.
        n: how many.

    Returns:
        (pictures as drawn, question, expected answer before any box) per sample.
    """
    return [
        ([picture.image for picture in sample.pictures], plain(q.question), before_boxes(q))
        for sample, q in held_out_samples(family, seed, n)
    ]


def before_boxes(question: Question) -> str:
    """What the answer says in words, without the boxes that may follow."""
    return boxes.in_words(plain(question.answer))


def held_out_boxes(
    seed: int, n: int, *, family: str = "where", new_phrasing: bool = False
) -> list[tuple[Image.Image, str, tuple[Box, ...]]]:
    """`n` questions that training never saw, whose answers hold boxes.

    Args:
        seed: any integer >= 0; the same seed gives the same pictures.
        n: how many.
        family: "where", "box" or "box_all".
        new_phrasing: ask in phrasings never trained.

    Returns:
        (picture as drawn, question, the true boxes as fractions of the picture) per sample.
    """
    return [
        (
            sample.pictures[0].image,
            plain(question.question),
            tuple(sample.pictures[0].box(i) for i in boxed_things(question)),
        )
        for sample, question in held_out_samples(family, seed, n, new_phrasing=new_phrasing)
    ]


def boxed_things(question: Question) -> tuple[int, ...]:
    """The things that the boxes of an answer surround, in order."""
    return tuple(int(match[2]) for match in MARK.finditer(question.answer) if match[3][:1] == "(")


def held_out_samples(
    family: str,
    seed: int,
    n: int,
    *,
    new_phrasing: bool = False,
    fonts: Sequence[str] = scenes.TRAINED_FONTS,
) -> list[tuple[Sample, Question]]:
    """As `held_out`, with the drawn truth; `new_phrasing` asks in phrasings never trained."""
    rng = random.Random(2**40 + seed)
    found: list[tuple[Sample, Question]] = []
    kind = FAMILIES[family]
    while len(found) < n:
        sample = make_sample(rng, kind, new_phrasing=new_phrasing, unseen_text=True, fonts=fonts)
        mine = [q for q in sample.questions if q.family == family]
        if mine:
            found.append((sample, rng.choice(mine)))
    return found


def make_sample(
    rng: random.Random,
    kind: str,
    *,
    new_phrasing: bool = False,
    unseen_text: bool = False,
    easy: bool = False,
    fonts: Sequence[str] = scenes.TRAINED_FONTS,
) -> Sample:
    """Draw pictures and ask about them.

    Args:
        rng: source of every choice.
        kind: "shapes", "text", "pair" or "talk".
        new_phrasing: ask with held-out phrasings.
        unseen_text: show numbers that training never shows.
        easy: one to three shapes, all different.
        fonts: fonts of a text picture.
    """
    ask = Asker(rng, new_phrasing)
    if kind == "shapes":
        count = rng.choices(
            (1, 2, 3, 4, 5), (18, 32, 30, 10, 10) if not easy else (10, 50, 40, 0, 0)
        )[0]
        picture = scenes.draw_shapes(rng, count, distinct=easy)
        return Sample((picture,), tuple(about_shapes(rng, ask, picture)))
    if kind == "text":
        unseen = unseen_text and rng.random() < 0.6
        text = scenes.random_text(rng, held_out=unseen)
        picture = scenes.draw_text(rng, text, fonts=fonts)
        return Sample((picture,), tuple(about_text(ask, picture)))
    if kind == "pair":
        pictures = _pair(rng)
        return Sample(pictures, tuple(about_pair(rng, ask, pictures)))
    assert kind == "talk", kind
    return Sample((), tuple(small_talk(rng, new_phrasing) for _ in range(6)))


def small_talk(rng: random.Random, new_phrasing: bool) -> Question:
    """A line of small talk; questions about a missing picture are among them."""
    trained, unseen, answer = rng.choice(INTENTS)
    if new_phrasing:
        return Question("talk", rng.choice(unseen), answer)
    question = rng.choice(trained)
    if rng.random() < 0.12:
        question = question.rstrip("?!.")
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return Question("talk", question, answer)


def _pair(rng: random.Random) -> tuple[Picture, Picture]:
    """Two pictures, mostly of one shape each; two fair coins decide on same shape, same colour."""
    counts = (1, 1) if rng.random() < 0.75 else (rng.choice((1, 2)), rng.choice((1, 2)))
    first = scenes.draw_shapes(rng, counts[0], canvases=scenes.SMALL_CANVASES)
    thing = first.things[0]
    second = scenes.draw_shapes(
        rng,
        counts[1],
        canvases=scenes.SMALL_CANVASES,
        shape=thing.shape if rng.random() < 0.5 else None,
        color=thing.color if rng.random() < 0.5 else None,
    )
    return first, second
