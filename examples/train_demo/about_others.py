"""Questions about a line of text, and about two pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.train_demo.asking import ORDINALS, Asker, Question, article, listed
from examples.train_demo.marks import ANCHOR, GLYPHS, known, seen, twin
from examples.train_demo.scenes import Picture


def about_text(ask: Asker, picture: Picture) -> list[Question]:
    """Questions about a picture of one line of text."""
    text = "".join(f"⟦>{GLYPHS + i}|{c}⟧" for i, c in enumerate(picture.text))
    is_number = picture.text.isdigit()
    suffix = f"{len(picture.text)}_digits" if is_number else "word"
    hue, background = picture.text_color, picture.background
    named = f"The number is {text}." if is_number else f'The word is "{text}".'
    return [
        Question(f"read_{suffix}", ask("read"), f'The text says "{text}".'),
        Question(f"name_{suffix}", ask("number" if is_number else "word"), named),
        Question("caption_text", ask("caption"), f'The image shows the text "{text}".'),
        Question(
            "describe_text",
            ask("describe"),
            f"The image shows {hue} text on {article(background)} background. "
            f'The text says "{text}".',
        ),
        Question("text_color", ask("text_color"), f"The text is {hue}."),
        Question("background", ask("background"), f"The background is {background}."),
    ]


def about_pair(rng: random.Random, ask: Asker, pictures: Sequence[Picture]) -> list[Question]:
    """Questions about two pictures of one or two shapes each."""
    out = []
    things = [p.things for p in pictures]
    shows = [
        f"The {o} image shows {listed(p, 10 * i)}."
        for i, (o, p) in enumerate(zip(ORDINALS, things, strict=True))
    ]
    for key in (lambda t: t.shape, lambda t: t.name, lambda t: f"{t.color} shape"):
        owners: dict[str, list[int]] = {}
        for i, group in enumerate(things):
            for j, thing in enumerate(group):
                owners.setdefault(key(thing), []).append(10 * i + j)
        lone = sorted(v for v, ids in owners.items() if len({i // 10 for i in ids}) == 1)
        if lone:
            v = rng.choice(lone)
            marked = known(owners[v], article(v))
            answer = f"The {seen(owners[v], ORDINALS[owners[v][0] // 10])} image shows {marked}."
            out.append(Question("which", ask("which", v=marked), answer))
    for i in (0, 1):
        ids = [10 * i + j for j in range(len(things[i]))]
        o, number = known(ids, ORDINALS[i]), known(ids, str(i + 1))
        out.append(Question("ith", ask("ith", o=o, i=number), shows[i]))
    out.append(Question("count_images", ask("count_images"), "There are two images."))
    out.append(Question("each", ask("each"), " ".join(shows)))
    if all(len(p) == 1 for p in things):
        (a,), (b,) = things
        # The facts come before the verdict: a model this small compares what it has said, and
        # guesses what it has not.
        verdict = "yes" if a.shape == b.shape else "no"
        answer = (
            f"The first image shows {seen([0], article(a.shape))}{ANCHOR} "
            f"and the second image shows {seen([10], article(b.shape))}"
            f"{twin(a.shape == b.shape)}, so {verdict}."
        )
        out.append(Question("same_shape", ask("same_shape"), answer))
        verdict = "yes" if a.color == b.color else "no"
        answer = (
            f"The first shape is {seen([0], a.color)}{ANCHOR} "
            f"and the second shape is {seen([10], b.color)}"
            f"{twin(a.color == b.color)}, so {verdict}."
        )
        out.append(Question("same_color", ask("same_color"), answer))
    return out
