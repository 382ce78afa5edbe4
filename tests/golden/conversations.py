"""What is recorded: the conversations, and the pictures shown in them."""

from __future__ import annotations

from tests.golden.cases import Message, Part

BRIEF = "Answer briefly, please."
WHAT = "What is in this picture?"

# Seed, width, height: small, since every image token costs 2 KiB of logits; none a multiple of 28.
SHOWN = {
    "one_image": [(1, 120, 90)],
    "two_images": [(1, 120, 90), (2, 61, 130)],
    "wide_image": [(3, 1800, 40)],
    "tall_image": [(4, 30, 1000)],
    "image_in_second_turn": [(5, 100, 70)],
    "three_images_in_two_turns": [(6, 75, 60), (7, 130, 50), (8, 64, 90)],
    "own_system_message": [(9, 90, 64)],
    "text_before_image": [(10, 60, 60), (11, 80, 110)],
}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _image(index: int) -> Part:
    return {"type": "image", "image": index}


def _said(role: str, content: str | list[Part]) -> Message:
    return {"role": role, "content": content}


CONVERSATIONS: dict[str, list[Message]] = {
    "text": [_said("user", "How many circles are there? Don't count the squares.")],
    "one_image": [_said("user", [_image(0), _text("Describe this image.")])],
    "two_images": [_said("user", [_image(0), _image(1), _text("Which one is wider?")])],
    "wide_image": [_said("user", [_image(0), _text(WHAT)])],
    "tall_image": [_said("user", [_image(0), _text(WHAT)])],
    "image_in_second_turn": [
        _said("user", "Hello! 你好"),
        _said("assistant", "What is in the picture?"),
        _said("user", [_image(0), _text("Look at this one.")]),
    ],
    "three_images_in_two_turns": [
        _said("user", [_image(0), _image(1), _text("Compare these pictures.")]),
        _said("assistant", "The first is red."),
        _said("user", [_image(2), _text("And this?")]),
    ],
    "own_system_message": [
        _said("system", BRIEF),
        _said("user", [_image(0), _text("Read the words.")]),
    ],
    "text_before_image": [
        _said(
            "user",
            [_text("The first: "), _image(0), _text("\nthe second: "), _image(1), _text(" Why?")],
        )
    ],
}
