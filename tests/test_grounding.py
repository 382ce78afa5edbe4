"""What an answer points at: read, turned into pixels, drawn, and never a reason to fail."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from mlx_qwenvl import MediaError, PromptError, QwenVL, Reply
from mlx_qwenvl.engine.reply import boxes_of
from mlx_qwenvl.grounding.boxes import MarkFilter, find_boxes, without_marks
from mlx_qwenvl.grounding.draw import COLORS, LEAST_SIDE, draw_boxes
from mlx_qwenvl.grounding.frame import Frame
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import UPRIGHT, open_image
from tests.command_lines import SHAPES

WIDE = Frame((2000, 500))
GEOMETRY = ImageGeometry(14, 2, 2)
BUDGET = PixelBudget(56 * 56, 1280 * 28 * 28)
SHAPES_SIZE = open_image(SHAPES).size
CAT = "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(221,423),(569,886)<|box_end|>"


def boxed(points: str, mark: str = "box") -> str:
    return f"<|{mark}_start|>{points}<|{mark}_end|>"


def named(label: str) -> str:
    return f"<|object_ref_start|>{label}<|object_ref_end|>"


# --- Reading ------------------------------------------------------------------------------------


def test_a_box_has_its_label_and_pixels_of_the_picture() -> None:
    (box,) = find_boxes(f"Here is {CAT}.", [WIDE])
    assert (box.label, box.kind, box.image) == ("the cat", "box", 0)
    assert box.points == ((221, 423), (569, 886))
    assert box.xyxy == pytest.approx((442, 211.5, 1138, 443))
    assert box.upright_xyxy == box.xyxy


def test_quads_and_points_are_read() -> None:
    corners = "(100,100),(200,110),(190,220),(90,210)"
    quad, point = find_boxes(boxed(corners, "quad") + boxed("( 500 , 250.5 )"), [WIDE])
    assert (quad.kind, quad.label) == ("quad", "")
    assert np.allclose(quad.corners, [(200, 50), (400, 55), (380, 110), (180, 105)])
    assert quad.xyxy == pytest.approx((180, 50, 400, 110))
    assert point.kind == "point" and np.allclose(point.corners, [(1000, 125.25)])


def test_a_label_holds_for_every_box_up_to_the_next() -> None:
    one, two, three = "(0,0),(9,9)", "(10,0),(19,9)", "(20,0),(29,9)"
    text = f"{named('birds')}{boxed(one)}{boxed(two)} and {named('a nest')}{boxed(three)}"
    assert [box.label for box in find_boxes(text, [WIDE])] == ["birds", "birds", "a nest"]


def test_boxes_belong_to_the_last_picture() -> None:
    (box,) = find_boxes(CAT, [WIDE, Frame((100, 100))])
    assert (box.image, box.frame.size) == (1, (100, 100))


@pytest.mark.parametrize(
    "text",
    [
        "(221,423),(569,886)",
        boxed(""),
        boxed("221,423,569,886"),
        boxed("(221,423),(569"),
        boxed("(221,423),(569,886),(1,1)"),
        boxed("(569,886),(221,423)"),
        boxed("(221,423),(569,1001)"),
        boxed("(-1,423),(569,886)"),
        boxed("(221,423),(569,886)").replace("box_end", "quad_end"),
        boxed("(1,2),(3,4)", "quad"),
        "<|box_start|>(221,423),(569,886)",
        "(221,423),(569,886)<|box_end|>",
        boxed("(99999999999,1),(99999999999999,2)"),
        boxed("(nan,inf),(1e3,2)"),
    ],
)
def test_what_is_malformed_stays_text_and_hides_no_box(text: str) -> None:
    assert find_boxes(text, [WIDE]) == ()
    (box,) = find_boxes(f"{text} {CAT}", [WIDE])
    assert box.label == "the cat"


def test_without_a_picture_nothing_is_pointed_at() -> None:
    assert find_boxes(CAT, []) == ()


MARKS = ["<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|object_ref_start|>"]
PIECES = st.sampled_from([CAT, *MARKS, "(1,2)", ",", "<"])


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_no_text_fails_and_every_box_lies_in_its_picture(text: str) -> None:
    for box in find_boxes(text, [WIDE]):
        left, top, right, bottom = box.xyxy
        assert 0 <= left <= right <= 2000 and 0 <= top <= bottom <= 500


def test_long_malformed_text_is_read_in_linear_time() -> None:
    text = "<|object_ref_start|>" * 50_000 + "<|box_start|>(1,1)," * 50_000
    started = time.perf_counter()
    assert find_boxes(text, [WIDE]) == ()
    assert time.perf_counter() - started < 5  # seconds; quadratic would be an hour


def test_people_read_names_and_coordinates_without_marks() -> None:
    assert without_marks(f"Here: {CAT}.") == "Here: the cat(221,423),(569,886)."


# --- Orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_those_of_the_file_whatever_its_exif_says(orientation: int) -> None:
    stored = Image.new("RGB", (400, 200), "white")
    ImageDraw.Draw(stored).rectangle((40, 20, 119, 59), fill="red")
    exif = Image.Exif()
    exif[274] = orientation
    data = io.BytesIO()
    stored.save(data, "PNG", exif=exif)
    # Where the red is once Pillow has turned the picture upright, in thousandths.
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data.getvalue())))
    red = np.argwhere(np.asarray(upright)[:, :, 1] < 128)
    (top, left), (bottom, right) = red.min(0), red.max(0) + 1
    width, height = upright.size
    x0, x1 = (1000 * x // width for x in (left, right))
    y0, y1 = (1000 * y // height for y in (top, bottom))
    seen = image_patches(open_image(data.getvalue()), GEOMETRY, BUDGET)
    (box,) = boxes_of(boxed(f"({x0},{y0}),({x1},{y1})"), [seen], "thousandths")
    assert box.xyxy == pytest.approx((40, 20, 120, 60))
    assert box.upright_xyxy == pytest.approx((left, top, right, bottom))


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_a_picture_that_was_opened_is_not_turned_again(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = io.BytesIO()
    open_image(SHAPES).resize((64, 32)).save(data, "JPEG", exif=exif)
    once = open_image(data.getvalue())
    assert open_image(once) is once


# --- Drawing ------------------------------------------------------------------------------------


def shown(picture: Image.Image, points: str, label: str = "") -> Image.Image:
    return draw_boxes(picture, find_boxes(named(label) + boxed(points), [Frame(picture.size)]))


def test_a_box_is_drawn_in_its_place() -> None:
    drawn = np.asarray(shown(Image.new("RGB", (640, 480), "white"), "(250,250),(750,750)"))
    colored = np.argwhere((drawn == COLORS[0]).all(-1))
    (top, left), (bottom, right) = colored.min(0), colored.max(0)
    assert abs(left - 160) <= 3 and abs(right - 480) <= 3
    assert abs(top - 120) <= 3 and abs(bottom - 360) <= 3
    assert (drawn[240, 320] == 255).all()  # nothing inside


def test_labels_have_colours_of_their_own() -> None:
    picture = Image.new("RGB", (640, 480), "white")
    text = named("a") + boxed("(100,100),(300,300)") + named("b") + boxed("(500,500),(800,800)")
    drawn = np.asarray(draw_boxes(picture, find_boxes(text, [Frame(picture.size)])))
    for color in COLORS[:2]:
        assert (drawn == color).all(-1).any()
    assert not (drawn == COLORS[2]).all(-1).any()


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (3000, 16), (16, 3000), (4000, 3000)])
@pytest.mark.parametrize(
    "points", ["(0,0),(1000,1000)", "(0,0),(0,0)", "(999,999)", "(0,990),(5,1000)"]
)
def test_labels_fit_and_are_legible_at_any_size(size: tuple[int, int], points: str) -> None:
    plain = shown(Image.new("RGB", size, "white"), points)
    drawn = shown(Image.new("RGB", size, "white"), points, "a very long name " * 9)
    assert drawn.size == plain.size
    assert drawn.width % size[0] == 0 and drawn.height % size[1] == 0
    assert max(drawn.size) >= LEAST_SIDE
    # The label's plate: at least 13 pixels of text high, where the picture has them.
    added = np.argwhere((np.asarray(drawn) != np.asarray(plain)).any(-1))
    assert added.size and np.ptp(added[:, 0]) + 1 >= min(13, drawn.height)


def test_a_picture_of_its_patches_is_what_the_model_saw() -> None:
    picture = open_image(SHAPES)
    seen = image_patches(picture, GEOMETRY, BUDGET)
    expected = picture.resize(seen.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(seen.to_image()), np.asarray(expected))


# --- Replies ------------------------------------------------------------------------------------


@pytest.fixture
def pointing(demo: QwenVL, tmp_path: Path) -> Reply:
    """An answer about a picture file of its own, in which a box was put."""
    path = tmp_path / "shapes.png"
    path.write_bytes(SHAPES.read_bytes())
    reply = demo.generate("What is shown?", images=[path], max_tokens=2)
    return replace(reply, text=CAT)


def test_a_reply_draws_on_the_original(pointing: Reply) -> None:
    drawn = pointing.draw()
    assert drawn.size == SHAPES_SIZE
    assert pointing.boxes[0].frame.size == drawn.size
    assert pointing.to_dict()["boxes"] == [pointing.boxes[0].to_dict()]


def test_a_reply_draws_on_what_the_model_saw_once_the_file_is_gone(pointing: Reply) -> None:
    before = np.asarray(pointing.draw()).astype(int)
    (source,) = pointing.sources
    Path(str(source)).unlink()
    after = np.asarray(pointing.draw()).astype(int)
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 12  # of 255: it went through the model's resize


def test_a_reply_draws_on_another_picture_of_the_same_thing(pointing: Reply) -> None:
    assert pointing.draw(Image.new("RGB", (2000, 1000))).size == (2000, 1000)
    with pytest.raises(MediaError):
        pointing.draw("no such picture.png")


def test_a_reply_without_a_picture_has_nothing_to_draw_on(demo: QwenVL) -> None:
    reply = demo.generate("Hello!", max_tokens=2)
    assert reply.boxes == () and "boxes" not in reply.to_dict()
    with pytest.raises(PromptError, match="no picture"):
        reply.draw()


def test_a_conversation_points_into_its_last_picture(demo: QwenVL) -> None:
    chat = demo.chat()
    chat.ask("What is shown?", images=[SHAPES], max_tokens=2)
    reply = replace(chat.ask("And the color?", max_tokens=2), text=CAT)
    assert (reply.boxes[0].image, reply.sources) == (0, (None,))
    assert reply.draw().size == SHAPES_SIZE


@given(st.lists(PIECES | st.text(max_size=5), max_size=12), st.integers(1, 7))
def test_marks_vanish_from_a_stream_wherever_it_is_cut(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    marks = MarkFilter()
    shown = [marks.feed(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join([*shown, marks.finish()]) == without_marks(text)
