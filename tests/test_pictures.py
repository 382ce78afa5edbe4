"""The built-in drawings and calibration prompts made of folders."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.learning.calibration import (
    MAX_SIDE,
    MOST_QUESTIONS,
    QUESTIONS_FILE,
    calibration_prompts,
)
from convert.pictures import Drawn, builtin_pictures
from mlx_qwenvl import QwenVL
from mlx_qwenvl.errors import OptionError

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


def pixels(drawn: Drawn) -> list[bytes]:
    return [image.tobytes() for image in drawn.images]


def test_a_seed_names_the_pictures() -> None:
    first, again = builtin_pictures(3, 12), builtin_pictures(3, 12)
    assert [(d.question, pixels(d)) for d in first] == [(d.question, pixels(d)) for d in again]


def test_more_prompts_begin_with_the_same_ones() -> None:
    few, many = builtin_pictures(3, 5), builtin_pictures(3, 20)
    assert [pixels(d) for d in few] == [pixels(d) for d in many[:5]]


def test_no_picture_of_one_seed_is_drawn_by_another() -> None:
    drawn = [{p for d in builtin_pictures(seed, 48) for p in pixels(d)} for seed in (0, 1)]
    assert not drawn[0] & drawn[1]


def test_one_turn_holds_every_kind_of_prompt() -> None:
    drawn = builtin_pictures(0, 12)
    assert {len(d.images) for d in drawn} == {0, 1, 2}
    sides = [max(image.size) for d in drawn for image in d.images]
    assert min(sides) <= 112 and 224 <= max(sides) <= 448
    assert all(image.mode == "RGB" for d in drawn for image in d.images)
    assert all(d.question for d in drawn)


def test_the_demo_model_recognizes_what_is_drawn(demo: QwenVL) -> None:
    asked = [d for d in builtin_pictures(0, 60) if d.question == "Describe this image."]
    answers = [
        demo.generate(d.question, images=d.images, temperature=0).text
        for d in asked
        if max(d.images[0].size) <= 168
    ]
    assert len(answers) >= 3
    assert all(answer.startswith("The image shows") for answer in answers)


def test_builtin_is_a_source() -> None:
    [drawn] = calibration_prompts("builtin", seed=5, count=1)
    [expected] = builtin_pictures(5, 1)
    assert (drawn.question, pixels(drawn)) == (expected.question, pixels(expected))


def test_a_folder_gives_each_picture_with_a_question(tmp_path: Path) -> None:
    for name in ("star.png", "word.png"):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    prompts = calibration_prompts(tmp_path, seed=0, count=100)
    assert len(prompts) == 2 * MOST_QUESTIONS
    assert len({pixels(p)[0] for p in prompts}) == 2
    assert len(calibration_prompts(str(tmp_path), seed=0, count=3)) == 3


def test_a_folder_may_bring_its_questions(tmp_path: Path) -> None:
    (tmp_path / "star.png").write_bytes((EXAMPLES / "star.png").read_bytes())
    (tmp_path / QUESTIONS_FILE).write_text("What shines?\n\n  How many rays?  \n")
    asked = {p.question for s in range(8) for p in calibration_prompts(tmp_path, s, 4)}
    assert asked == {"What shines?", "How many rays?"}


def test_large_pictures_of_a_folder_are_shrunk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    [prompt] = calibration_prompts(tmp_path, seed=0, count=1)
    assert prompt.images[0].size == (MAX_SIDE, MAX_SIDE // 4)


def test_what_is_no_picture_is_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "star.png").write_bytes((EXAMPLES / "star.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((EXAMPLES / "word.png").read_bytes()[:300])
    (tmp_path / "notes.md").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        prompts = calibration_prompts(tmp_path, seed=0, count=2)
    assert len({pixels(p)[0] for p in prompts}) == 1
    assert sorted(r.getMessage().count("cut.png") for r in caplog.records) == [0, 1]


@pytest.mark.parametrize("make", ["empty", "unreadable", "missing", "file"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "pictures"
    if make == "file":
        folder.write_text("")
    elif make != "missing":
        folder.mkdir()
    if make == "unreadable":
        (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(OptionError, match="pictures"):
        calibration_prompts(folder, seed=0, count=4)


def test_questions_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "star.png").write_bytes((EXAMPLES / "star.png").read_bytes())
    (tmp_path / QUESTIONS_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match=r"prompts\.txt cannot be read as text"):
        calibration_prompts(tmp_path, seed=0, count=1)
