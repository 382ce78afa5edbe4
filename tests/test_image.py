"""inputs/image.py against the recording of Transformers, and the properties that users rely on."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_qwenvl.errors import CheckpointError, MediaError, OptionError
from mlx_qwenvl.inputs.image import (
    ImageGeometry,
    ImagePatches,
    PixelBudget,
    image_patches,
    n_tokens_for,
    smart_resize,
)
from tests.golden.record_images import CASES, RECORDING, RESAMPLING, Case, draw, sha256

QWEN2_VL = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)
BUDGET = PixelBudget(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
RECORDED: dict[str, Any] = json.loads(RECORDING.read_text())

sides = st.integers(1, 20_000)
budgets = st.tuples(st.integers(1, 2 * 10**6), st.integers(0, 14 * 10**6)).map(
    lambda pair: PixelBudget(pair[0], pair[0] + pair[1])
)


def made(width: int, height: int, budget: PixelBudget = BUDGET) -> ImagePatches:
    return image_patches(Image.fromarray(draw(width, height, 3)), QWEN2_VL, budget)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_resized_pixels_equal_the_recording(case: Case) -> None:
    recorded = RECORDED["cases"][case.name]
    picture = case.picture()
    assert sha256(np.asarray(picture)) == recorded["source_sha256"]
    result = image_patches(picture, QWEN2_VL, PixelBudget(*case.budget))
    assert list(result.grid_thw) == recorded["grid_thw"]
    assert sha256(result.patches) == recorded["patches_sha256"][RESAMPLING]
    assert result.n_tokens == n_tokens_for(*picture.size, QWEN2_VL, PixelBudget(*case.budget))


def test_recording_and_cases_are_of_one_time() -> None:
    assert list(RECORDED["cases"]) == [case.name for case in CASES]


def test_smart_resize_equals_the_recording() -> None:
    assert len(RECORDED["smart_resize"]) > 100
    for height, width, least, most, new_height, new_width in RECORDED["smart_resize"]:
        assert smart_resize(height, width, 28, least, most) == (new_height, new_width)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((42, 70), (56, 56)),  # 1.5 and 2.5 factors: halves go to the even multiple
        ((1, 1), (56, 56)),
        ((480, 640), (476, 644)),
        ((3024, 4032), (840, 1148)),
    ],
)
def test_smart_resize_of_worked_examples(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smart_resize(*size) == expected


@given(sides, sides, budgets, st.sampled_from([28, 32, 1]))
def test_smart_resize_keeps_its_promises(
    height: int, width: int, budget: PixelBudget, factor: int
) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MediaError):
            smart_resize(height, width, factor, budget.min_pixels, budget.max_pixels)
        return
    least, most = budget.min_pixels, budget.max_pixels
    new_height, new_width = smart_resize(height, width, factor, least, most)
    assert new_height % factor == new_width % factor == 0
    assert min(new_height, new_width) >= factor
    # Growing rounds up by less than a factor a side; shrinking rounds down, but never below one.
    ideal = math.sqrt(least * max(height, width) / min(height, width))
    grown = (ideal + factor) * (least / ideal + factor)
    assert new_height * new_width <= max(most, grown, factor * max(new_height, new_width))
    assert new_height * new_width >= min(least, (math.sqrt(most / 200) - factor) ** 2)
    # The shape is kept to within one factor a side.
    if min(new_height, new_width) > factor:
        scale = math.sqrt(new_height * new_width / (height * width))
        stretch = max(new_height / height, new_width / width) / scale
        assert stretch <= 1 + 1.01 * factor / min(new_height, new_width)


@given(st.integers(1, 60), st.integers(1, 60))
def test_sizes_within_the_budget_are_left_alone(rows: int, columns: int) -> None:
    height, width = 28 * rows, 28 * columns
    assert smart_resize(height, width, 28, 784, 10**7) == (height, width)


@given(sides, sides, budgets)
def test_resizing_twice_is_resizing_once(height: int, width: int, budget: PixelBudget) -> None:
    if max(height, width) > 100 * min(height, width):
        return
    least, most = budget.min_pixels, budget.max_pixels
    once = smart_resize(height, width, 28, least, most)
    if least <= once[0] * once[1] <= most:
        assert smart_resize(*once, 28, least, most) == once


@pytest.mark.parametrize(("width", "height"), [(201, 1), (1, 201), (4000, 1), (8041, 40)])
def test_elongated_pictures_are_refused_with_both_sides(width: int, height: int) -> None:
    with pytest.raises(MediaError, match=rf"{width} x {height} .*200 times"):
        n_tokens_for(width, height, QWEN2_VL, BUDGET)


@pytest.mark.parametrize(("width", "height"), [(200, 1), (1, 200), (4000, 20)])
def test_200_to_1_is_still_taken(width: int, height: int) -> None:
    assert made(width, height).n_tokens > 0


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_pictures_without_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="no pixels"):
        smart_resize(*size)


def test_patches_of_one_token_lie_together() -> None:
    # Each 14 x 14 patch of a 56 x 84 picture has one colour: 10 * row + column.
    rows, columns = np.mgrid[:4, :6]
    colours = np.kron(10 * rows + columns, np.ones((14, 14))).astype(np.uint8)
    picture = Image.fromarray(np.stack([colours, colours + 100, colours + 200], axis=2))
    result = image_patches(picture, QWEN2_VL, PixelBudget(1, 10**6))
    assert result.grid_thw == (1, 4, 6)
    order = [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15]
    order += [20 + colour for colour in order]
    assert result.patches[:, 0].tolist() == order
    assert result.patches[:, 196].tolist() == [100 + colour for colour in order]
    assert result.patches[:, 587].tolist() == [200 + colour for colour in order]


def test_columns_are_channel_row_column() -> None:
    pixels = draw(28, 28, 3)
    result = image_patches(Image.fromarray(pixels), QWEN2_VL, PixelBudget(1, 10**6))
    lower_right = pixels[14:, 14:].transpose(2, 0, 1)
    assert (result.patches[3].reshape(3, 14, 14) == lower_right).all()


def test_patches_say_their_sizes() -> None:
    result = made(640, 480)
    assert (result.source_size, result.size) == ((640, 480), (644, 476))
    assert result.grid_thw == (1, 34, 46)
    assert result.n_tokens == 17 * 23
    assert result.patches.shape == (34 * 46, 588)
    assert result.patches.dtype == np.uint8
    assert result.patches.flags.c_contiguous


def test_other_geometries_are_cut_by_their_own_sizes() -> None:
    geometry = ImageGeometry(patch_size=16, merge_size=3, temporal_patch_size=2)
    result = image_patches(Image.fromarray(draw(100, 50, 3)), geometry, PixelBudget(1, 10**6))
    assert result.size == (96, 48)
    assert result.grid_thw == (1, 3, 6)
    assert result.patches.shape == (18, 768)
    assert result.n_tokens == 2


def test_digest_is_equal_for_equal_pictures_only() -> None:
    picture = draw(100, 60, 3)
    other = picture.copy()
    other[30, 30, 1] ^= 255
    digests = [
        image_patches(Image.fromarray(pixels), QWEN2_VL, BUDGET).digest
        for pixels in (picture, picture.copy(), other)
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert len(digests[0]) == 32


def test_digest_tells_shapes_of_one_colour_apart() -> None:
    wide = image_patches(Image.new("RGB", (100, 30), "red"), QWEN2_VL, BUDGET)
    high = image_patches(Image.new("RGB", (30, 100), "red"), QWEN2_VL, BUDGET)
    assert wide.patches.tobytes() == high.patches.tobytes()
    assert wide.digest != high.digest


def test_digest_counts_the_geometry() -> None:
    picture = Image.new("RGB", (112, 112))
    other = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=1)
    digests = {image_patches(picture, geometry, BUDGET).digest for geometry in (QWEN2_VL, other)}
    assert len(digests) == 2


def test_patches_cannot_be_changed_behind_the_digest() -> None:
    result = made(56, 56)
    with pytest.raises(ValueError, match="read-only"):
        result.patches[0, 0] = 1


def test_only_rgb_is_taken() -> None:
    with pytest.raises(MediaError, match="mode RGB, got RGBA"):
        image_patches(Image.new("RGBA", (56, 56)), QWEN2_VL, BUDGET)


@pytest.mark.parametrize("budget", [(0, 10), (-1, 10), (11, 10)])
def test_impossible_budgets_are_refused(budget: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match=rf"min_pixels {budget[0]} and max_pixels {budget[1]}"):
        PixelBudget(*budget)


@pytest.mark.parametrize("position", range(3))
def test_impossible_geometries_are_refused(position: int) -> None:
    values = [14, 2, 2]
    values[position] = 0
    with pytest.raises(CheckpointError, match="must be positive, got 0"):
        ImageGeometry(*values)
