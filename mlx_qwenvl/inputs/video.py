"""Frames of a video -> the patches that Qwen2-VL sees, as uint8.

A patch of a video is as deep as the checkpoint says, two frames; frames that are lacking at the
end are the last one again. The tower looks at one temporal patch at a time, so each of them is
known by a digest of its own, and a longer cut of a video shares the ones at its beginning.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_qwenvl.errors import ContextError, MediaError
from mlx_qwenvl.inputs.frames import VideoBudget
from mlx_qwenvl.inputs.image import (
    ImageGeometry,
    ImagePatches,
    cut_patches,
    joined_patches,
)

__all__ = [
    "FrameCutter",
    "Seen",
    "TemporalPatch",
    "VideoPatches",
    "View",
    "in_words",
    "listed_frames",
]


@dataclass(frozen=True, eq=False)
class TemporalPatch:
    """Two frames of a video, which the vision tower looks at on their own.

    Attributes:
        patches: [n_patches, depth * 3 * patch_size**2] uint8, of `VideoPatches.patches`.
        grid_thw: (1, height, width) in patches.
        geometry: How they were cut.
    """

    patches: npt.NDArray[np.uint8]
    grid_thw: tuple[int, int, int]
    geometry: ImageGeometry

    @property
    def n_tokens(self) -> int:
        """How many tokens of the prompt it takes."""
        return math.prod(self.grid_thw) // self.geometry.merge_size**2

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all that the vision tower is given, never that of a still."""
        geometry = self.geometry
        sizes = (geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size)
        sha = hashlib.sha256(b"frames" + struct.pack("<6Q", *self.grid_thw, *sizes))
        sha.update(self.patches.data)
        return sha.digest()


@dataclass(frozen=True, eq=False)
class VideoPatches:
    """A video as the vision tower takes it.

    Attributes:
        patches: [n_patches, depth * 3 * patch_size**2] uint8, read-only. Rows run through time,
            and within a temporal patch as in `ImagePatches`; columns are (frame, channel, row,
            column).
        grid_thw: Temporal patches, and height and width in patches.
        frame_times: When each frame that was taken appears, in seconds from the beginning.
        seconds_per_grid: Seconds that one temporal patch stands for.
        source_size: (width, height) of an upright frame before resizing, in pixels.
        size: (width, height) after resizing, in pixels.
        geometry: How it was cut.
    """

    patches: npt.NDArray[np.uint8]
    grid_thw: tuple[int, int, int]
    frame_times: tuple[float, ...]
    seconds_per_grid: float
    source_size: tuple[int, int]
    size: tuple[int, int]
    geometry: ImageGeometry

    @property
    def n_tokens(self) -> int:
        """How many tokens of the prompt the video takes."""
        return math.prod(self.grid_thw) // self.geometry.merge_size**2

    @property
    def timestamps(self) -> tuple[float, ...]:
        """The middle of each temporal patch, between its first and its last frame, in seconds."""
        depth, times = self.geometry.temporal_patch_size, self.frame_times
        return tuple(
            (times[at] + times[min(at + depth, len(times)) - 1]) / 2
            for at in range(0, len(times), depth)
        )

    @cached_property
    def views(self) -> tuple[TemporalPatch, ...]:
        """The temporal patches in order."""
        _, height, width = self.grid_thw
        return tuple(
            TemporalPatch(rows, (1, height, width), self.geometry)
            for rows in self.patches.reshape(self.grid_thw[0], height * width, -1)
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all that the vision tower is given."""
        return hashlib.sha256(b"".join(view.digest for view in self.views)).digest()

    def to_images(self) -> list[Image.Image]:
        """The frames as the model sees them: upright, resized, RGB; one that fills up is left."""
        frames, height, width = self.grid_thw
        depth = self.geometry.temporal_patch_size
        by_frame = self.patches.reshape(frames, height * width, depth, -1).swapaxes(1, 2)
        return [
            joined_patches(patches, (height, width), self.geometry)
            for patches in by_frame.reshape(frames * depth, height * width, -1)
        ][: len(self.frame_times)]


Seen: TypeAlias = ImagePatches | VideoPatches
"""What fills slots of a prompt."""
View: TypeAlias = ImagePatches | TemporalPatch
"""What the vision tower looks at on its own."""


class FrameCutter:
    """Cuts frames one by one as they are decoded, so that no more than one is held as it was.

    Args:
        source_size: (width, height) of an upright frame in pixels, which all are brought to.
        count: How many will be taken.
        geometry: How the checkpoint cuts.
        budget: How many pixels to keep.

    Raises:
        MediaError: There is no frame, or as `smart_resize`.
        ContextError: It takes more tokens than the budget has.
    """

    def __init__(
        self, source_size: tuple[int, int], count: int, geometry: ImageGeometry, budget: VideoBudget
    ) -> None:
        if count < 1:
            raise MediaError("the video has no frames")
        depth = geometry.temporal_patch_size
        width, height = source_size
        rows, columns = budget.size(height, width, count, geometry)
        self._geometry, self._source_size, self._size = geometry, source_size, (columns, rows)
        self._grid = (
            -(-count // depth),
            rows // geometry.patch_size,
            columns // geometry.patch_size,
        )
        _, grid_h, grid_w = self._grid
        tokens = math.prod(self._grid) // geometry.merge_size**2
        if tokens > budget.most_tokens:
            raise ContextError(
                f"the video takes {tokens} tokens, the model's context has {budget.most_tokens}; "
                "take fewer frames or pixels (max_frames, max_pixels)"
            )
        self._patches = np.empty(
            (self._grid[0], grid_h * grid_w, depth, 3 * geometry.patch_size**2), dtype=np.uint8
        )
        self._count = count
        self._times: list[float] = []

    def take(self, frame: Image.Image, seconds: float) -> None:
        """Cut the next frame, which is upright, of mode "RGB" and of any size."""
        at = len(self._times)
        depth = self._geometry.temporal_patch_size
        cut = cut_patches(frame, self._size, self._geometry)
        self._patches[at // depth, :, at % depth] = cut
        self._times.append(seconds)
        if len(self._times) == self._count:
            self._patches[at // depth, :, at % depth :] = cut[:, None]

    def finish(self, seconds_per_grid: float) -> VideoPatches:
        """The video, once all frames were taken."""
        assert len(self._times) == self._count, "all frames are taken"
        frames, height, width = self._grid
        patches = self._patches.reshape(frames * height * width, -1)
        patches.flags.writeable = False  # the digest stays true
        return VideoPatches(
            patches=patches,
            grid_thw=self._grid,
            frame_times=tuple(self._times),
            seconds_per_grid=seconds_per_grid,
            source_size=self._source_size,
            size=self._size,
            geometry=self._geometry,
        )


def listed_frames(
    frames: Sequence[Image.Image], geometry: ImageGeometry, budget: VideoBudget
) -> VideoPatches:
    """A video of frames that somebody has chosen already: all of them are taken.

    Args:
        frames: Upright, of mode "RGB".
        geometry: How the checkpoint cuts.
        budget: How many pixels to keep; its `fps` says how many of the frames show one second.

    Raises:
        MediaError: There is no frame, they differ in size, or as `smart_resize`.
    """
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        (width, height), (other, tall) = sorted(sizes)[:2]
        raise MediaError(
            f"the frames differ in size, {width} x {height} and {other} x {tall} pixels; "
            "expected frames of one video"
        )
    cutter = FrameCutter(frames[0].size if frames else (0, 0), len(frames), geometry, budget)
    for index, frame in enumerate(frames):
        cutter.take(frame, index / budget.fps)
    return cutter.finish(geometry.temporal_patch_size / budget.fps)


def in_words(number: int, seen: Seen) -> str:
    """What became of a prompt's picture or video, in one line."""
    (width, height), (wide, high) = seen.size, seen.source_size
    read = f"{wide} x {high} pixels, read as {width} x {height}, {seen.n_tokens} tokens"
    if isinstance(seen, ImagePatches):
        return f"picture {number}: {read}"
    count = len(seen.frame_times)
    end = count * seen.seconds_per_grid / seen.geometry.temporal_patch_size
    return f"video {number}: {count} frames of {end:.1f} s, {read}"
