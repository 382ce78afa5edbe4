"""Which frames of a video are taken, and how many pixels they keep.

Counts, indices and sizes equal Transformers' Qwen2-VL video processor with its total budget on;
`tests/golden/videos.json` holds the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, smart_resize

__all__ = [
    "NO_WISHES",
    "VideoBudget",
    "VideoWishes",
    "evenly_spaced",
    "moments_to_take",
    "pixel_limits",
    "stated_frames",
]

FPS = 2.0  # frames taken of a second where nobody says otherwise
MIN_FRAMES = 4
MAX_FRAMES = 768
FRAME_MIN_PIXELS = 128 * 28 * 28  # of a frame after resizing: 128 tokens for two frames
FRAME_MAX_PIXELS = 768 * 28 * 28
TOTAL_PIXELS = int(128_000 * 28 * 28 * 0.9)  # of all temporal patches together
ABOVE_LEAST = 1.05  # what a share of the total is held above, times the least pixels of a frame


@dataclass(frozen=True)
class VideoBudget:
    """How densely a video is sampled, and how many pixels its frames keep.

    Attributes:
        fps: Frames taken of each second.
        min_frames: Least of them, where the video has so many.
        max_frames: Most of them.
        n_frames: How many exactly, whatever the three above say; None to go by them.
        min_pixels: Least pixels of a frame after resizing.
        max_pixels: Most pixels of a frame after resizing.
        total_pixels: Most pixels of all temporal patches together, each counted as one frame.
        most_tokens: Tokens beyond which a video is refused.
    """

    fps: float = FPS
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES
    n_frames: int | None = None
    min_pixels: int = FRAME_MIN_PIXELS
    max_pixels: int = FRAME_MAX_PIXELS
    total_pixels: int = TOTAL_PIXELS
    most_tokens: int = 2**31

    def __post_init__(self) -> None:
        """Refuses a budget that no video can meet."""
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise OptionError(f"fps is {self.fps}, expected a number above 0", "fps")
        if not 0 < self.min_frames <= self.max_frames:
            got = f"min_frames {self.min_frames} and max_frames {self.max_frames}"
            raise OptionError(f"expected 0 < min_frames <= max_frames, got {got}")
        if self.n_frames is not None and self.n_frames < 1:
            raise OptionError(f"n_frames is {self.n_frames}, expected a number from 1 up")
        if self.total_pixels < 1:
            raise OptionError(f"total_pixels is {self.total_pixels}, expected a number from 1 up")
        PixelBudget(self.min_pixels, self.max_pixels)

    @classmethod
    def stated(
        cls, raw: Mapping[str, Any], pictures: PixelBudget, geometry: ImageGeometry
    ) -> VideoBudget:
        """The usual budget with what a video processor's settings say.

        A checkpoint whose pictures are smaller than the family's frames has its frames as small.

        Args:
            raw: The settings; empty where there are none.
            pictures: What holds of the checkpoint's pictures.
            geometry: How they are cut.
        """
        least, most = pixel_limits(raw)
        most = most or min(FRAME_MAX_PIXELS, pictures.max_pixels)
        least = least or (FRAME_MIN_PIXELS if most >= FRAME_MIN_PIXELS else pictures.min_pixels)
        return cls(min_pixels=least, max_pixels=most, **stated_frames(raw))

    def within(self, pixels: int) -> VideoBudget:
        """The same with no more than so many pixels in all temporal patches."""
        return replace(self, total_pixels=min(self.total_pixels, pixels))

    @property
    def floor(self) -> int:
        """Pixels that a frame keeps where it has them, however small its share of the total is."""
        return int(self.min_pixels * ABOVE_LEAST)

    @property
    def fill_pixels(self) -> int:
        """Most pixels that temporal patches of the least size are taken for, each as one frame."""
        return self.total_pixels

    def count(self, total: int, seconds: float, depth: int) -> int:
        """How many frames are taken.

        Args:
            total: Frames of the video, at least 1.
            seconds: How long they are shown.
            depth: Frames of a temporal patch.

        Returns:
            A multiple of `depth`; of a video with fewer frames, all that it has.
        """
        whole = total // depth * depth
        if whole == 0:
            return total
        if self.n_frames is not None:
            return min(max(round(self.n_frames / depth), 1) * depth, whole)
        most = max(min(self.max_frames, total) // depth * depth, depth)
        asked = min(max(seconds * self.fps, self.min_frames), most)
        return max(math.floor(asked / depth) * depth, depth)

    def numbers(self, total: int, count: int) -> list[int]:
        """Which of `total` frames are taken, where `count` are: each begins its share of time."""
        return [index * total // count for index in range(count)]

    def moments(
        self, shown: Sequence[Fraction], seconds: Fraction, count: int
    ) -> Iterator[Fraction]:
        """The same in seconds, where frames come at no even rate; see `moments_to_take`."""
        return (shown[0] + seconds * index / count for index in range(count))

    def of_frame(self, count: int, depth: int) -> PixelBudget:
        """What each of so many frames may keep: its own limits, and its share of the total."""
        share = self.total_pixels * depth // max(count, depth)
        most = max(min(self.max_pixels, share), self.floor)
        return PixelBudget(self.min_pixels, most)

    def size(self, height: int, width: int, count: int, geometry: ImageGeometry) -> tuple[int, int]:
        """Height and width of each of `count` frames after resizing.

        Raises:
            MediaError: As `smart_resize`.
        """
        pixels = self.of_frame(count, geometry.temporal_patch_size)
        return smart_resize(height, width, geometry.factor, pixels.min_pixels, pixels.max_pixels)


@dataclass(frozen=True)
class VideoWishes:
    """What somebody asks of a video; what is None is left to others.

    Attributes:
        fps: As of `VideoBudget`, and so are the others.
        min_frames: See there.
        max_frames: See there.
        n_frames: See there; it goes without `fps`.
        min_pixels: See there.
        max_pixels: See there.
        total_pixels: See there.
    """

    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    n_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        """Refuses two answers to one question."""
        if self.fps is not None and self.n_frames is not None:
            raise OptionError(
                "fps and n_frames both say how many frames to take; give one of them", "n_frames"
            )

    def over(self, others: VideoWishes) -> VideoWishes:
        """These wishes, and others' where there is none."""
        merged = {
            name: getattr(others, name) if value is None else value
            for name, value in vars(self).items()
        }
        if self.fps is not None:
            merged["n_frames"] = None
        if self.n_frames is not None:
            merged["fps"] = None
        return VideoWishes(**merged)

    def applied(self, usual: VideoBudget, depth: int) -> VideoBudget:
        """A budget with these wishes in it.

        A limit from one side moves the other out of its way. Where nobody says how many frames at
        most, there are no more than fit into the total at their least size.

        Args:
            usual: What holds where nothing is wished.
            depth: Frames of a temporal patch.

        Raises:
            OptionError: The wishes contradict each other.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            if high in given and low not in given:
                given[low] = min(getattr(usual, low), given[high])
            elif low in given and high not in given:
                given[high] = max(getattr(usual, high), given[low])
        budget = replace(usual, **given)
        if self.max_frames is None and self.n_frames is None:
            most = budget.fill_pixels if self.total_pixels is None else self.total_pixels
            room = max(depth * (most // budget.floor), budget.min_frames)
            budget = replace(budget, max_frames=min(budget.max_frames, room))
        return budget


NO_WISHES = VideoWishes()


def moments_to_take(
    shown: Sequence[Fraction], seconds: Fraction, budget: VideoBudget, depth: int
) -> list[Fraction]:
    """When the frames to take are on display, in the order of time.

    Where frames come at an even rate, the budget tells their numbers; of another video, these are
    the ones that are on display at the budget's moments.

    Args:
        shown: When each frame of the video appears, in seconds, in order; at least one.
        seconds: How long all of them are shown.
        budget: How densely to sample.
        depth: Frames of a temporal patch.

    Returns:
        A moment of `shown` for each frame that is taken; one may come twice.
    """
    total = len(shown)
    count = budget.count(total, float(seconds), depth)
    if evenly_spaced([*shown, shown[0] + seconds]):
        return [shown[number] for number in budget.numbers(total, count)]
    taken, at = [], 0
    for moment in budget.moments(shown, seconds, count):
        while at + 1 < total and shown[at + 1] <= moment:
            at += 1
        taken.append(shown[at])
    return taken


def pixel_limits(raw: Mapping[str, Any]) -> tuple[Any, Any]:
    """Least and most pixels; newer files name them as edges, but they are numbers of pixels."""
    size = raw.get("size") or {}
    least = raw.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
    most = raw.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge")
    return least, most


def stated_frames(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a video processor's settings say of the number of frames."""
    return {key: raw[key] for key in ("fps", "min_frames", "max_frames") if raw.get(key)}


def evenly_spaced(shown: Sequence[Fraction]) -> bool:
    """Whether moments come at one rate, but for the rounding of their times.

    A container counts time in ticks, which a frame's true time is rounded to: moments lie on the
    line from the first to the last within a quarter of the distance between two.
    """
    steps = len(shown) - 1
    if steps < 2:
        return True
    step = (shown[-1] - shown[0]) / steps
    return all(
        abs(moment - shown[0] - index * step) * 4 <= step for index, moment in enumerate(shown)
    )
