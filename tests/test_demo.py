"""The embedded model: what its card promises, on pictures drawn with seeds that training never saw.

A family's floor is what the card reports less what chance may take from 40 questions.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from examples.train_demo.boxes import in_words
from examples.train_demo.evaluate_boxes import GOOD, overlaps
from examples.train_demo.questions import FAMILIES, held_out
from examples.train_demo.scenes import SHAPES, TRAINED_FONTS, Thing, load_font, paint
from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.weights.resolve import DEMO_FOLDER

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"
QUESTIONS = 40  # of each family
POINTED_AT = 60  # pictures to point at
TURNS = (-0.25, 0.25)  # rad, of a star
MAX_FOLDER_BYTES = 8 * 1024**2

FLOORS = {
    "color_it": 0.95,
    "shape_it": 0.95,
    "where_it": 0.95,
    "describe_1": 0.95,
    "color": 0.92,
    "shape": 0.92,
    "where": 0.92,
    "at": 0.92,
    "background": 0.92,
    "count_all": 0.92,
    "count": 0.8,
    "count_color": 0.85,
    "caption": 0.85,
    "describe_2": 0.9,
    "describe_3": 0.88,
    "exist": 0.95,
    "exist_color": 0.92,
    "exist_named": 0.92,
    "is_color": 0.92,
    "relation": 0.92,
    "which": 0.92,
    "ith": 0.92,
    "same_shape": 0.92,
    "same_color": 0.92,
    "count_images": 0.95,
    "talk": 0.95,
    "read_1_digits": 0.92,
    "read_2_digits": 0.85,
    "read_3_digits": 0.75,
    "read_word": 0.88,
}

# The README's picture and its neighbours, with what they show.
SHOWN = {
    "shapes.png": (
        "Describe this image.",
        "The image shows two shapes on a white background. There is a red circle at the top left. "
        "There is a blue square at the right.",
    ),
    "three.png": (
        "What is shown in this image?",
        "The image shows a green triangle, a yellow star and a purple heart.",
    ),
    "star.png": ("What is in this image?", "The image shows a green star."),
    "number.png": ("What number is this?", "The number is 328."),
    "word.png": ("Read the text.", 'The text says "STOP".'),
}


def right(vlm: QwenVL, family: str) -> float:
    """Share of held-out questions that are answered word for word, boxes apart."""
    asked = held_out(family, seed=2026, n=QUESTIONS)
    answers = [
        in_words(vlm.generate(question, images=images, temperature=0, max_tokens=80).text)
        for images, question, _ in asked
    ]
    return sum(a == e for a, (_, _, e) in zip(answers, asked, strict=True)) / QUESTIONS


def needs_dejavu() -> None:
    """Skip where the fonts that the card's figures were measured with are not installed."""
    try:
        load_font(TRAINED_FONTS[0], 20, strict=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("family", FLOORS)
def test_held_out_questions_are_answered_as_the_card_says(demo: QwenVL, family: str) -> None:
    if FAMILIES[family] == "text":
        needs_dejavu()
    assert right(demo, family) >= FLOORS[family]


@pytest.mark.parametrize(("recipe", "floor"), [("8bit", 0.92), ("4bit", 0.85)])
def test_quantized_it_still_finds_things(recipe: str, floor: float) -> None:
    assert right(load("demo", quantize=recipe), "where") >= floor


@pytest.mark.parametrize(("family", "floor"), [("where", 0.9), ("box", 0.9)])
def test_its_boxes_fit_what_was_drawn(demo: QwenVL, family: str, floor: float) -> None:
    measured = overlaps(demo, family, POINTED_AT, seed=2026)
    assert sum(min(question) >= GOOD for question in measured) >= floor * POINTED_AT


def test_the_true_boxes_are_those_of_the_drawn_pixels() -> None:
    black, rng = (0, 0, 0), random.Random(3)
    for shape in SHAPES:
        x, y, radius, turn = (rng.uniform(*span) for span in ((45, 55), (45, 55), (15, 40), TURNS))
        thing = Thing(shape, "white", 1, 1, x, y, radius, turn, (255, 255, 255))
        image = paint([thing], (100, 100), black)
        drawn = image.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
        assert drawn == pytest.approx(thing.bounds, abs=1.5), shape


def test_what_is_not_there_gets_no_box(demo: QwenVL) -> None:
    assert right(demo, "box_of_none") >= 0.9


@pytest.mark.parametrize("name", SHOWN)
def test_the_examples_are_answered_as_the_readme_says(demo: QwenVL, name: str) -> None:
    question, expected = SHOWN[name]
    reply = demo.generate(question, images=[EXAMPLES / name], temperature=0)
    assert (reply.text, reply.finish_reason) == (expected, "stop")


def test_it_fits_into_the_package() -> None:
    files = [file for file in DEMO_FOLDER.iterdir() if file.is_file()]
    assert {"config.json", "model.safetensors", "MODEL_CARD.md"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < MAX_FOLDER_BYTES


def test_it_says_what_it_is(demo: QwenVL) -> None:
    assert "demo model" in demo.generate("Who are you?", temperature=0).text
