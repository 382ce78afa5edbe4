"""inputs/frames.py and video.py: which frames are taken, their sizes, their patches."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_qwenvl.errors import MediaError, OptionError
from mlx_qwenvl.inputs.frames import VideoBudget, evenly_spaced, moments_to_take
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, image_patches, smart_resize
from mlx_qwenvl.inputs.video import listed_frames
from tests.golden.videos import CASES, MAX_PIXELS, MIN_PIXELS, described, film, load_video_case

GEOMETRY = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)
SMALL = VideoBudget(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def at_rate(total: int, rate: float) -> list[Fraction]:
    return [index / Fraction(rate) for index in range(total)]


def taken(total: int, rate: float, budget: VideoBudget) -> list[int]:
    """Numbers of the frames that are taken of a video of one rate."""
    shown = at_rate(total, rate)
    moments = moments_to_take(shown, total / Fraction(rate), budget, 2)
    return [shown.index(moment) for moment in moments]


@pytest.mark.parametrize("row", described()["sampled"], ids=lambda row: f"{row['total']}")
def test_frames_taken_equal_the_recording(row: dict[str, Any]) -> None:
    asked = dict(row["asked"])
    if "num_frames" in asked:
        asked["n_frames"] = asked.pop("num_frames")
    assert taken(row["total"], row["rate"], VideoBudget(**asked)) == row["indices"]


@pytest.mark.parametrize("row", described()["sizes"], ids=lambda row: f"{row['width']}")
def test_sizes_of_frames_equal_the_recording(row: dict[str, Any]) -> None:
    limits = dict(zip(("min_pixels", "max_pixels"), row["limits"] or (), strict=False))
    pixels = VideoBudget(**limits).of_frame(row["frames"], 2)
    size = smart_resize(row["height"], row["width"], 28, pixels.min_pixels, pixels.max_pixels)
    assert list(size) == row["size"]


@pytest.mark.parametrize("name", CASES)
def test_patches_and_grids_equal_the_recording(name: str) -> None:
    case, sha = load_video_case(name), hashlib.sha256()
    for frames, grid in zip(case.videos(), case.grid_thw, strict=True):
        video = listed_frames(frames, GEOMETRY, SMALL)
        assert list(video.grid_thw) == grid.tolist()
        by_frame = video.patches.reshape(-1, 2, 3, 14, 14)
        sha.update(np.ascontiguousarray(by_frame.swapaxes(1, 2)).tobytes())
    assert sha.hexdigest() == case.patches_sha256


@given(
    total=st.integers(1, 5000),
    rate=st.sampled_from([1, 10, 24, 25, 30, 60]),
    fps=st.floats(0.01, 120),
    most=st.integers(1, 900),
    depth=st.integers(1, 3),
)
def test_counts_are_whole_patches_within_what_there_is(
    total: int, rate: int, fps: float, most: int, depth: int
) -> None:
    budget = VideoBudget(fps=fps, min_frames=1, max_frames=most)
    moments = moments_to_take(at_rate(total, rate), Fraction(total, rate), budget, depth)
    assert 1 <= len(moments) <= total
    assert len(moments) % depth == 0 or total < depth
    assert len(moments) <= max(most, depth)
    assert moments == sorted(set(moments))
    assert moments[0] == 0


def test_a_video_of_uneven_rate_is_sampled_by_what_is_on_display() -> None:
    # One second at 10 frames a second, then one frame that stays for three.
    shown = [Fraction(index, 10) for index in range(10)] + [Fraction(1)]
    assert not evenly_spaced([*shown, Fraction(4)])
    moments = moments_to_take(shown, Fraction(4), VideoBudget(fps=2), 2)
    assert [float(moment) for moment in moments] == [0, 0.5, 1, 1, 1, 1, 1, 1]


def test_times_that_a_container_rounded_are_even() -> None:
    rounded = [Fraction(round(index * 1000 / 29.97), 1000) for index in range(200)]
    assert evenly_spaced(rounded)
    moments = moments_to_take(rounded, Fraction(200 * 1001, 30000), VideoBudget(fps=2), 2)
    assert [rounded.index(moment) for moment in moments] == [i * 200 // 12 for i in range(12)]


def test_the_total_is_kept_by_smaller_frames_until_the_least() -> None:
    budget = VideoBudget(min_pixels=1000, max_pixels=100_000, total_pixels=200_000)
    assert budget.of_frame(4, 2) == PixelBudget(1000, 100_000)
    assert budget.of_frame(40, 2) == PixelBudget(1000, 10_000)
    assert budget.of_frame(4000, 2) == PixelBudget(1000, 1050)


def test_a_frame_that_is_lacking_is_the_last_one_again() -> None:
    frames = film(7, 56, 56, 3)
    video = listed_frames(frames, GEOMETRY, SMALL)
    padded = listed_frames([*frames, frames[-1]], GEOMETRY, SMALL)
    assert video.grid_thw == padded.grid_thw == (2, 4, 4)
    assert video.digest == padded.digest
    assert len(video.to_images()) == 3


def test_frames_come_back_as_they_went_in() -> None:
    frames = film(8, 84, 56, 4)
    seen = listed_frames(frames, GEOMETRY, SMALL).to_images()
    assert [frame.tobytes() for frame in seen] == [frame.tobytes() for frame in frames]


def test_times_of_frames_and_of_patches() -> None:
    video = listed_frames(film(9, 56, 56, 5), GEOMETRY, VideoBudget(fps=4, min_pixels=MIN_PIXELS))
    assert video.frame_times == (0, 0.25, 0.5, 0.75, 1)
    assert video.timestamps == (0.125, 0.625, 1)
    assert video.seconds_per_grid == 0.5


def test_a_longer_cut_begins_with_the_same_temporal_patches() -> None:
    frames = film(10, 56, 56, 8)
    short, long = (listed_frames(frames[:count], GEOMETRY, SMALL) for count in (4, 8))
    assert [v.digest for v in long.views][:2] == [v.digest for v in short.views]
    assert short.digest != long.digest
    assert sum(view.n_tokens for view in long.views) == long.n_tokens


def test_two_equal_frames_are_no_picture() -> None:
    (frame,) = film(11, 56, 56, 1)
    still = image_patches(frame, GEOMETRY, PixelBudget(MIN_PIXELS, MAX_PIXELS))
    (view,) = listed_frames([frame, frame], GEOMETRY, SMALL).views
    assert view.digest != still.digest
    assert np.array_equal(view.patches, np.tile(still.patches, 2))


def test_no_frames_and_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(MediaError, match="no frames"):
        listed_frames([], GEOMETRY, SMALL)
    two = [Image.new("RGB", (56, 56)), Image.new("RGB", (56, 84))]
    with pytest.raises(MediaError, match=r"56 x 56 and 56 x 84 pixels; expected frames of one"):
        listed_frames(two, GEOMETRY, SMALL)


@pytest.mark.parametrize(
    "bad",
    [
        {"fps": 0},
        {"fps": float("nan")},
        {"min_frames": 0},
        {"min_frames": 9, "max_frames": 8},
        {"n_frames": 0},
        {"min_pixels": 2, "max_pixels": 1},
        {"total_pixels": 0},
    ],
    ids=str,
)
def test_budgets_that_nothing_meets_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="expected"):
        VideoBudget(**bad)  # type: ignore[arg-type]
