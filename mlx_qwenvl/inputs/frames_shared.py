"""Which frames Qwen3-VL takes of a video, and how many pixels they keep.

The first and the last frame are always among them, their number may be odd, and a checkpoint's
limits in pixels are those of all frames together. Counts, indices and sizes equal Transformers'
Qwen3-VL video processor with each frame's pixels capped; `tests/golden/qwen3_vl_videos.json` holds
the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.frames import ABOVE_LEAST, VideoBudget, pixel_limits, stated_frames
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, check_sides

__all__ = ["SharedBudget"]

SHARED_PIXELS = 64 * 64  # of all frames together at least, where nobody says otherwise
FRAME_TOKENS = 768  # of a frame at most, where the checkpoint says nothing


@dataclass(frozen=True)
class SharedBudget(VideoBudget):
    """A budget that all frames share; what somebody wishes holds for each of them all the same.

    Attributes:
        shared_pixels: Least pixels of all frames together; a frame that has as many keeps them.
        context_pixels: Most pixels of all temporal patches at their least size, each counted as
            one frame; with more of them fewer frames are taken.
    """

    min_pixels: int = 1
    shared_pixels: int = SHARED_PIXELS
    context_pixels: int = 2**62

    def __post_init__(self) -> None:
        """Refuses a budget that no video can meet."""
        super().__post_init__()
        if self.shared_pixels < 1:
            raise OptionError(f"shared_pixels is {self.shared_pixels}, expected one from 1 up")

    @classmethod
    def stated(
        cls, raw: Mapping[str, Any], pictures: PixelBudget, geometry: ImageGeometry
    ) -> SharedBudget:
        """What a video processor's settings say, or pictures' limits where there are none.

        A checkpoint may say that frames are not capped one by one, as Transformers leaves it.
        """
        least, total = pixel_limits(raw)
        least, total = least or pictures.min_pixels, total or pictures.max_pixels
        cap = (raw.get("max_video_tokens") or FRAME_TOKENS) * geometry.factor**2
        if raw.get("cap_pixels_per_frame") is False:
            cap = total
        return cls(
            max_pixels=max(cap, least),
            shared_pixels=least,
            total_pixels=total // geometry.temporal_patch_size,
            **stated_frames(raw),
        )

    @property
    def floor(self) -> int:
        """Pixels that a frame keeps where it has them, however small its share of the total is."""
        least = int(max(self.min_pixels, self.shared_pixels) * ABOVE_LEAST)
        return min(least, self.max_pixels)

    @property
    def fill_pixels(self) -> int:
        """Most pixels that temporal patches of the least size are taken for, each as one frame."""
        return self.context_pixels

    def within(self, pixels: int) -> SharedBudget:
        """The same with no more than so many pixels in all temporal patches."""
        return replace(self, total_pixels=min(self.total_pixels, pixels), context_pixels=pixels)

    def count(self, total: int, seconds: float, depth: int) -> int:
        """How many frames are taken; see `VideoBudget.count`, but for the number being even."""
        if self.n_frames is not None:
            return min(self.n_frames, total)
        return min(max(int(seconds * self.fps), self.min_frames), self.max_frames, total)

    def numbers(self, total: int, count: int) -> list[int]:
        """Which of `total` frames are taken, where `count` are: evenly from first to last."""
        # In floats, as the reference rounds them: a half may decide.
        return [int(number) for number in np.linspace(0, total - 1, count).round()]

    def moments(
        self, shown: Sequence[Fraction], seconds: Fraction, count: int
    ) -> Iterator[Fraction]:
        """The same in seconds, where frames come at no even rate; see `moments_to_take`."""
        span = shown[-1] - shown[0]
        return (shown[0] + span * index / max(count - 1, 1) for index in range(count))

    def size(self, height: int, width: int, count: int, geometry: ImageGeometry) -> tuple[int, int]:
        """Height and width of each of `count` frames after resizing.

        Raises:
            MediaError: As `smart_resize`.
        """
        check_sides(height, width)
        depth, factor = geometry.temporal_patch_size, geometry.factor
        frames = max(count, depth)
        most = self.of_frame(frames, depth).max_pixels * frames
        stretch = max(factor / height, factor / width)
        if stretch > 1:
            height, width = int(height * stretch), int(width * stretch)
        new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
        # Of an odd number of frames the limits count the even one beside it, but scale by all.
        even = round(frames / depth) * depth
        least = min(self.shared_pixels, even * self.max_pixels)
        if even * new_height * new_width > most:
            shrink = math.sqrt(frames * height * width / most)
            new_height = max(factor, math.floor(height / shrink / factor) * factor)
            new_width = max(factor, math.floor(width / shrink / factor) * factor)
        elif even * new_height * new_width < least or new_height * new_width < self.min_pixels:
            wanted = max(least, frames * self.min_pixels)
            grow = math.sqrt(wanted / (frames * height * width))
            new_height = math.ceil(height * grow / factor) * factor
            new_width = math.ceil(width * grow / factor) * factor
        return new_height, new_width
