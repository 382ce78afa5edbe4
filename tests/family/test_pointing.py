"""Where answers of the younger siblings point: JSON, in pixels of what they saw or thousandths."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.reply import boxes_of
from mlx_qwenvl.grounding.boxes import find_boxes
from mlx_qwenvl.grounding.frame import Frame, Unit
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import open_image
from mlx_qwenvl.models.families import MEMBERS
from tests.golden.tiny import picture

# 300 x 100 pixels become 308 x 112, 11 x 4 tokens.
SEEN = image_patches(picture(5, 300, 100), ImageGeometry(14, 2, 2), PixelBudget(784, 10**6))


def said(*objects: object) -> str:
    return "Here:\n```json\n" + json.dumps(list(objects)) + "\n```"


def test_the_members_count_in_what_they_were_taught() -> None:
    units = {name: member.points_in for name, member in MEMBERS.items()}
    assert units == {
        "qwen2_vl": "thousandths",
        "qwen2_5_vl": "pixels",
        "qwen3_vl": "thousandths",
        "qwen3_vl_moe": "thousandths",
    }


@pytest.mark.parametrize(
    ("unit", "box"), [("pixels", [77, 28, 154, 112]), ("thousandths", [250, 250, 500, 1000])]
)
def test_json_boxes_are_in_pixels_of_the_original_picture(unit: Unit, box: list[int]) -> None:
    assert SEEN.size == (308, 112)
    (found,) = boxes_of(said({"bbox_2d": box, "label": "cat "}), [SEEN], unit)
    assert found.label == "cat" and found.kind == "box"
    assert found.xyxy == pytest.approx((75, 25, 150, 100))
    assert found.to_dict()["points_1000"] == [[250, 250], [500, 1000]]


def test_points_and_written_text_are_read_in_order() -> None:
    text = said(
        {"point_2d": [500, 500], "label": "middle"},
        {"bbox_2d": [0, 0, 10, 10], "text_content": "EXIT {1}"},
        {"bbox_2d": [1, 2, 3, 4]},
    )
    found = find_boxes(text, [Frame((10, 10)), Frame((200, 100))])
    assert [(b.label, b.kind, b.image) for b in found] == [
        ("middle", "point", 1),
        ("EXIT {1}", "box", 1),
        ("", "box", 1),
    ]
    assert found[0].corners == ((100.0, 50.0),)


def test_an_answer_that_is_cut_off_keeps_what_was_whole() -> None:
    text = said({"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "label": "b"})
    assert [b.label for b in find_boxes(text[:-20], [Frame((10, 10))])] == ["a"]


@pytest.mark.parametrize(
    "said_so",
    [
        {"bbox_2d": [1, 2, 3]},
        {"bbox_2d": [1, 2, 3, "4"]},
        {"bbox_2d": [1, 2, True, 4]},
        {"bbox_2d": [3, 2, 1, 4]},
        {"bbox_2d": [1, 2, 3, 1001]},
        {"bbox_2d": [-1, 2, 3, 4]},
        {"bbox_2d": [1, 2, 3, float("nan")]},
        {"bbox_2d": [1, 2, 3, 10**400]},
        {"bbox_2d": {"x": 1}},
        {"point_2d": [[1, 2]]},
        {"label": "bbox_2d"},
    ],
    ids=str,
)
def test_what_is_no_box_stays_text(said_so: dict[str, object]) -> None:
    assert find_boxes(json.dumps([said_so]), [Frame((10, 10))]) == ()


def test_hostile_text_takes_no_time() -> None:
    for text in ("{" * 50_000 + '"bbox_2d"', '{"bbox_2d":' * 5_000, '{"bbox_2d":' + "[" * 50_000):
        assert find_boxes(text, [Frame((10, 10))]) == ()


def test_a_reply_draws_what_json_points_at(tiny: QwenVL) -> None:
    photo = picture(5, 400, 400)
    reply = tiny.generate("Where?", images=[photo], max_tokens=1, temperature=0)
    reply = replace(reply, text=said({"bbox_2d": [100, 100, 900, 900], "label": "it"}))
    drawn, plain = reply.draw(), open_image(photo)
    assert drawn.size == plain.size and drawn.tobytes() != plain.tobytes()
    assert reply.to_dict()["boxes"][0]["label"] == "it"
