"""Every kind of question that a picture of one to five shapes can answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from examples.train_demo import boxes, scenes
from examples.train_demo.asking import (
    COUNTS,
    Asker,
    Question,
    article,
    counted,
    listed,
    plural,
)
from examples.train_demo.marks import ANCHOR, known, seen, twin
from examples.train_demo.scenes import COLORS, SHAPES, Picture, Thing

OPPOSITE: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
# Nothing that the generator draws; the answer is always no.
STRANGERS: Final = (
    "dog",
    "cat",
    "person",
    "car",
    "house",
    "tree",
    "flower",
    "bird",
    "face",
    "word",
)


def about_shapes(rng: random.Random, ask: Asker, picture: Picture) -> list[Question]:
    """Every kind of question that a picture of shapes can answer."""
    things = picture.things
    shapes, colors = [t.shape for t in things], [t.color for t in things]
    names = [t.name for t in things]
    lone_shape = [i for i in range(len(things)) if shapes.count(shapes[i]) == 1]
    lone_color = [i for i in range(len(things)) if colors.count(colors[i]) == 1]
    lone_name = [i for i in range(len(things)) if names.count(names[i]) == 1]
    everything = list(range(len(things)))
    out = [
        Question(f"describe_{min(len(things), 4)}", ask("describe"), describe(picture)),
        Question("caption", ask("caption"), caption(things)),
        Question(
            "count_all",
            ask("count_all"),
            f"I see {seen(everything, counted(len(things), 'shape'))}.",
        ),
        Question("background", ask("background"), f"The background is {picture.background}."),
    ]

    def called(i: int) -> str:
        choices = (
            [names[i]]
            + [shapes[i]] * 3 * (i in lone_shape)
            + [f"{colors[i]} shape"] * (i in lone_color)
        )
        return rng.choice(choices)

    if len(things) == 1:
        thing = things[0]
        out += [
            Question("color_it", ask("color_it"), f"It is {seen([0], thing.color)}."),
            Question("shape_it", ask("shape_it"), f"It is {seen([0], article(thing.shape))}."),
            Question("where_it", ask("where_it"), f"It is {seen([0], thing.position)}."),
        ]
    for i in rng.sample(lone_shape, min(2, len(lone_shape))):
        k = known([i], shapes[i])
        out.append(
            Question(
                "color", ask("color", k=k), f"{seen([i], 'The')} {k} is {seen([i], colors[i])}."
            )
        )
    for i in rng.sample(lone_color, min(2, len(lone_color))):
        name = known([i], f"{colors[i]} shape")
        answer = f"{seen([i], 'The')} {name} is {seen([i], article(shapes[i]))}."
        out.append(Question("shape", ask("shape", c=known([i], colors[i])), answer))
    for i in rng.sample(lone_name, min(3, len(lone_name))):
        x = known([i], called(i))
        said = f"{seen([i], 'The')} {x} is {seen([i], things[i].position)}."
        out.append(Question("where", ask("where", x=x), f"{said} {boxed(picture, i, x)}"))
    if len(things) < 4 and rng.random() < 0.25:
        absent = known([], rng.choice([s for s in SHAPES if s not in shapes]))
        family, slot = rng.choice((("color", "k"), ("where", "x")))
        question = ask(family, **{slot: absent})
        out.append(Question(f"{family}_of_none", question, f"{seen([], 'There')} is no {absent}."))
    out += _counts(rng, ask, shapes, colors)
    out += [_existence(rng, ask, picture) for _ in range(3)]
    if lone_shape:
        i = rng.choice(lone_shape)
        truth = rng.random() < 0.5
        wrong = [c for c in set(colors) if c != colors[i]] if rng.random() < 0.6 else []
        c = (
            colors[i]
            if truth
            else rng.choice(sorted(wrong) or [c for c in COLORS if c != colors[i]])
        )
        k = known([i], shapes[i])
        agreeing = [i] if truth else []
        verdict = seen(agreeing, "Yes" if truth else "No")
        answer = f"{verdict}, the {k} is {seen([i], colors[i])}."
        out.append(Question("is_color", ask("is_color", k=k, c=known(agreeing, c)), answer))
    if len(lone_name) > 1:
        out += [q for _ in range(2) for q in _relation(rng, ask, things, lone_name, lone_shape)]
    out.append(_at(rng, ask, picture))
    return out + _pointing(ask, picture, lone_name)


def boxed(picture: Picture, i: int, phrase: str) -> str:
    """The box of thing `i` under a marked phrase; every coordinate has to be found in the thing."""
    return boxes.grounded(phrase, seen([i], boxes.corners(picture.box(i))))


def _pointing(ask: Asker, picture: Picture, lone_name: list[int]) -> list[Question]:
    """Questions that are answered by boxes alone.

    They have a source of choices of their own, so that a seed draws the pictures that it drew
    before there were such questions.
    """
    rng = random.Random(repr(picture.things))
    ask = Asker(rng, ask.new_phrasing)
    things = picture.things
    shapes, colors = [t.shape for t in things], [t.color for t in things]
    out = []
    for i in rng.sample(lone_name, min(2, len(lone_name))):
        called = [things[i].name]
        called += [shapes[i]] * 2 * (shapes.count(shapes[i]) == 1)
        called += [f"{colors[i]} shape"] * (colors.count(colors[i]) == 1)
        x = known([i], rng.choice(called))
        out.append(Question("box", ask("box", x=x), boxed(picture, i, x)))
    if rng.random() < 0.15:
        absent = known([], rng.choice([s for s in SHAPES if s not in shapes]))
        answer = f"{seen([], 'There')} is no {absent}."
        out.append(Question("box_of_none", ask("box", x=absent), answer))
    if len(things) <= 3:
        parts = [boxed(picture, i, seen([i], t.name)) for i, t in enumerate(things)]
        out.append(Question("box_all", ask("box_all"), ", ".join(parts)))
    return out


def describe(picture: Picture) -> str:
    """The answer to "Describe this image.": number, background and, up to three, each shape."""
    things = picture.things
    everything = list(range(len(things)))
    text = (
        f"The image shows {seen(everything, counted(len(things), 'shape'))} "
        f"on {article(picture.background)} background."
    )
    if len(things) <= 3:
        for i, thing in enumerate(things):
            where = seen([i], thing.position)
            text += f" There is {seen([i], article(thing.name))} {where}."
    return text


def caption(things: Sequence[Thing]) -> str:
    """The answer to "What is shown in this image?": up to three shapes by name, else a number."""
    if len(things) > 3:
        return f"The image shows {seen(list(range(len(things))), counted(len(things), 'shape'))}."
    return f"The image shows {listed(things, 0)}."


def _counts(rng: random.Random, ask: Asker, shapes: list[str], colors: list[str]) -> list[Question]:
    out = []
    options: list[tuple[str, str, str, list[int]]] = []
    k = rng.choice(shapes) if rng.random() < 0.85 else rng.choice(SHAPES)
    options.append(("count", k, plural(k), [i for i, s in enumerate(shapes) if s == k]))
    if len(shapes) > 1:
        c = rng.choice(colors)
        ids = [i for i, color in enumerate(colors) if color == c]
        options.append(("count_color", f"{c} shape", f"{c} shapes", ids))
    for family, one, many, ids in options:
        n = len(ids)
        noun = known(ids, one if n == 1 else many)
        answer = f"I see {seen(ids, COUNTS[n])} {noun}."
        out.append(Question(family, ask("count", ks=known(ids, many)), answer))
    return out


def _existence(rng: random.Random, ask: Asker, picture: Picture) -> Question:
    """Yes and no in equal parts; most wrong pairs mix a colour and a shape that are there."""
    things = picture.things
    names = {t.name for t in things}
    yes = rng.random() < 0.5
    thing = rng.choice(things)
    form = rng.choices(("exist", "exist_color", "exist_named"), (40, 25, 35))[0]
    if form == "exist":
        noun = thing.shape
        if not yes:
            absent: Sequence[str] = [s for s in SHAPES if s not in {t.shape for t in things}]
            noun = rng.choice(absent if rng.random() < 0.9 else STRANGERS)
    elif form == "exist_color":
        noun = f"{thing.color} shape"
        if not yes:
            here = {t.color for t in things} | {picture.background}
            noun = f"{rng.choice([c for c in COLORS if c not in here])} shape"
    else:
        noun = thing.name
        if not yes:
            crossed = sorted({f"{a.color} {b.shape}" for a in things for b in things} - names)
            if not crossed or rng.random() < 0.4:
                half = [f"{thing.color} {s}" for s in SHAPES]
                half += [f"{c} {thing.shape}" for c in COLORS if c != picture.background]
                crossed = [name for name in half if name not in names]
            noun = rng.choice(crossed)
    ids = [i for i, t in enumerate(things) if yes and noun in (t.shape, t.name, f"{t.color} shape")]
    question = ask("exist", v=known(ids, article(noun)))
    if yes:
        return Question(
            form, question, f"{seen(ids, 'Yes')}, there is {known(ids, article(noun))}."
        )
    return Question(form, question, f"{seen(ids, 'No')}, there is no {known(ids, noun)}.")


def _relation(
    rng: random.Random,
    ask: Asker,
    things: Sequence[Thing],
    lone_name: list[int],
    lone_shape: list[int],
) -> list[Question]:
    i, j = rng.sample(lone_name, 2)
    a, b = things[i], things[j]
    true = []
    if a.column != b.column:
        true.append("left of" if a.column < b.column else "right of")
    if a.row != b.row:
        true.append("above" if a.row < b.row else "below")
    fact = rng.choice(true)
    asked = fact if rng.random() < 0.5 else OPPOSITE[fact]
    x = known([i], a.shape if i in lone_shape and rng.random() < 0.7 else a.name)
    y = known([j], b.shape if j in lone_shape and rng.random() < 0.7 else b.name)
    said = _relation_words(asked, ANCHOR)
    if asked.endswith("of") and not ask.new_phrasing:
        said = rng.choice((said, said, f"to the {said}"))
    verdict = "yes" if fact == asked else "no"
    word = fact.split()[0]
    shown = _relation_words(fact, twin(fact == asked)).replace(word, seen([i, j], word), 1)
    question = ask("relation", a=x, b=y, r=said)
    return [Question("relation", question, f"The {x} is {shown} the {y}, so {verdict}.")]


def _relation_words(relation: str, mark: str) -> str:
    """A relation such as "left of" with a mark behind its first word."""
    word, _, of = relation.partition(" ")
    return f"{word}{mark} {of}" if of else f"{word}{mark}"


def _at(rng: random.Random, ask: Asker, picture: Picture) -> Question:
    places = {(t.row, t.column): i for i, t in enumerate(picture.things)}
    if rng.random() < 0.78:
        row, column = rng.choice(sorted(places))
    else:
        row, column = rng.choice([c for c in (divmod(i, 3) for i in range(9)) if c not in places])
    name = said = scenes.position_name(row, column)
    if not ask.new_phrasing:
        if rng.random() < 0.3:
            said = said.replace("at the", "in the")
        if rng.random() < 0.3:
            said = said.replace("center", "middle")
    if (row, column) not in places:
        return Question(
            "at", ask("at", p=known([], said)), f"There is {seen([], 'nothing')} {name}."
        )
    i = places[row, column]
    thing = picture.things[i]
    answer = f"There is {seen([i], article(thing.name))} {name}."
    return Question("at", ask("at", p=known([i], said)), answer)
