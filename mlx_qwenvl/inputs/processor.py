"""What a checkpoint says about its pictures and videos: cutting, normalization, sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np

from mlx_qwenvl.errors import CheckpointError, MediaError, OptionError
from mlx_qwenvl.inputs.film import read_film
from mlx_qwenvl.inputs.frames import VideoBudget, VideoWishes, pixel_limits
from mlx_qwenvl.inputs.image import ImageGeometry, ImagePatches, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import (
    DEFAULT_LIMITS,
    MediaLimits,
    decode,
    open_image,
    read_encoded,
)
from mlx_qwenvl.inputs.messages import ImagePart
from mlx_qwenvl.inputs.video import Seen, VideoPatches, listed_frames
from mlx_qwenvl.inputs.video_file import open_video
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.lru import BoundedStore

TOKEN_PIXELS = 28 * 28  # pixels of one token: two by two patches of 14 pixels
DEFAULT_MAX_PIXELS = 1280 * TOKEN_PIXELS
"""Most pixels of a picture where the caller sets no limit, however many the checkpoint allows.

The family's checkpoints allow 12.8 megapixels, which makes 15,552 tokens of a phone photo; at one
megapixel it is 1,230 and small print is still read. See `docs/pixels.md`.
"""
USUAL: Final = VideoBudget()
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
DETAIL_MAX_PIXELS = {"low": 256 * TOKEN_PIXELS, "high": 4096 * TOKEN_PIXELS}

# The bytes say what a picture is, never its name; geometry and budget say what becomes of it.
PatchStore: TypeAlias = BoundedStore[tuple[bytes, ImageGeometry, PixelBudget | VideoBudget], Seen]


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each colour channel, for pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Processor:
    """How pictures become patches for one checkpoint.

    Attributes:
        geometry: How they are cut.
        normalization: What the checkpoint's weights expect of pixels.
        budget: The checkpoint's own limits in pixels.
        video: How videos are sampled and sized where nobody says otherwise: the family's usual
            way, with what the checkpoint says in it.
    """

    geometry: ImageGeometry
    normalization: Normalization
    budget: PixelBudget
    video: VideoBudget = USUAL

    @classmethod
    def from_folder(cls, folder: Path, videos: type[VideoBudget] = VideoBudget) -> Processor:
        """Read `preprocessor_config.json`, or `processor_config.json` as newer tools write it.

        Args:
            folder: The checkpoint's.
            videos: The member's way to take frames of a video.

        Raises:
            CheckpointError: Both are missing, or a key is.
        """
        file = folder / "preprocessor_config.json"
        combined = folder / "processor_config.json"
        together = read_json(combined) if combined.exists() else {}
        video_file = folder / "video_preprocessor_config.json"
        video = read_json(video_file) if video_file.exists() else together.get("video_processor")
        raw = read_json(file) if file.exists() else together.get("image_processor")
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file} is missing")
        return cls.from_dict(raw, video if isinstance(video, dict) else {}, videos)

    @classmethod
    def from_dict(
        cls,
        raw: Mapping[str, Any],
        video: Mapping[str, Any] = NOTHING,
        videos: type[VideoBudget] = VideoBudget,
    ) -> Processor:
        """Read an image processor's settings, and a video processor's where there is one.

        Args:
            raw: The image processor's.
            video: The video processor's.
            videos: The member's way to take frames of a video.

        Raises:
            CheckpointError: A key is missing or has the wrong type.
        """
        least, most = pixel_limits(raw)
        names = ("patch_size", "merge_size", "temporal_patch_size")
        sizes: dict[str, Any] = {key: raw.get(key) for key in names}
        sizes |= {"min_pixels": least, "max_pixels": most}
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise CheckpointError(
                    f"preprocessor_config.json: {key} is {value!r}, expected a positive integer"
                )
        geometry = ImageGeometry(**{key: raw[key] for key in names})
        pictures = PixelBudget(sizes["min_pixels"], sizes["max_pixels"])
        return cls(
            geometry,
            Normalization(_channels(raw, "image_mean"), _channels(raw, "image_std")),
            pictures,
            _video_budget(videos, video, pictures, geometry),
        )

    def open(
        self,
        part: ImagePart,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        store: PatchStore | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> ImagePatches:
        """Open a picture and cut it, unless that was done before.

        Args:
            part: The picture, whose own limits go first.
            min_pixels: The call's least pixels, or None.
            max_pixels: The call's most pixels, or None.
            store: Pictures that were cut before, by their encoded bytes; None to cut anew.
            limits: What it may cost and where it may come from.

        Raises:
            MediaError: It cannot be read.
            OptionError: Limits that contradict each other.
        """
        if isinstance(part.source, ImagePatches):
            return part.source
        budget = self._budget(part, min_pixels, max_pixels)
        encoded = None if store is None else read_encoded(part.source, limits)
        if store is None or encoded is None:
            return image_patches(open_image(part.source, limits=limits), self.geometry, budget)
        key = hashlib.sha256(encoded[0]).digest(), self.geometry, budget
        patches = store.get(key)
        if not isinstance(patches, ImagePatches):
            patches = image_patches(decode(*encoded, limits), self.geometry, budget)
            store.put(key, patches, patches.patches.nbytes)
        elif limits.budget is not None:
            # What a request may hold does not depend on what others asked before.
            limits.budget.charge_pixels(patches.source_size[0] * patches.source_size[1])
        return patches

    def open_video(
        self,
        part: VideoPart,
        wishes: VideoWishes,
        context: int,
        *,
        store: PatchStore | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> VideoPatches:
        """Take frames of a video and cut them, unless that was done before.

        Args:
            part: The video, whose own wishes go first.
            wishes: The call's.
            context: Tokens of the model's context, half of which the video may fill where nobody
                says how many pixels it may have.
            store: Videos that were cut before, by their encoded bytes; None to cut anew.
            limits: What it may cost and where it may come from.

        Raises:
            MediaError: It cannot be read.
            OptionError: Wishes that contradict each other.
            ContextError: It takes more tokens than the context has.
        """
        if isinstance(part.source, VideoPatches):
            return part.source
        depth, token = self.geometry.temporal_patch_size, self.geometry.factor**2
        usual = self.video.within(context // 2 * token)
        budget = part.wishes.over(wishes).applied(replace(usual, most_tokens=context), depth)
        if isinstance(part.source, np.ndarray) or _is_list(part.source):
            return self._listed(part.source, budget, limits)
        with open_video(part.source, limits) as (file, name):
            key = None if store is None else (digest_of(file), self.geometry, budget)
            kept = None if store is None or key is None else store.get(key)
            if isinstance(kept, VideoPatches):
                return kept
            video = read_film(file, name, self.geometry, budget, limits.video)
        if store is not None and key is not None:
            store.put(key, video, video.patches.nbytes)
        return video

    def _listed(self, frames: Any, budget: VideoBudget, limits: MediaLimits) -> VideoPatches:
        if len(frames) > limits.video.max_frames:
            most = limits.video.max_frames
            raise MediaError(f"a video of {len(frames)} frames came, at most {most} pass")
        pictures = [open_image(frame, limits=limits) for frame in frames]
        return listed_frames(pictures, self.geometry, budget)

    def _budget(
        self, part: ImagePart, min_pixels: int | None, max_pixels: int | None
    ) -> PixelBudget:
        default = DETAIL_MAX_PIXELS.get(part.detail, DEFAULT_MAX_PIXELS)
        own = min(default, self.budget.max_pixels)
        most = _first(part.max_pixels, max_pixels, own)
        # A limit given from one side moves the other out of its way.
        least = _first(part.min_pixels, min_pixels, min(self.budget.min_pixels, most))
        if part.max_pixels is None and max_pixels is None:
            most = max(most, least)
        return PixelBudget(least, most)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _is_list(source: object) -> bool:
    return isinstance(source, Sequence) and not isinstance(
        source, (str, bytes, bytearray, memoryview)
    )


def digest_of(file: BinaryIO) -> bytes:
    """SHA-256 of all of a file, read bit by bit."""
    sha = hashlib.sha256()
    file.seek(0)
    while part := file.read(2**20):
        sha.update(part)
    return sha.digest()


def _video_budget(
    videos: type[VideoBudget],
    raw: Mapping[str, Any],
    pictures: PixelBudget,
    geometry: ImageGeometry,
) -> VideoBudget:
    try:
        return videos.stated(raw, pictures, geometry)
    except (OptionError, TypeError):
        raise CheckpointError("the video processor's settings contradict each other") from None


def _channels(raw: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = raw.get(key)
    if not (isinstance(value, list) and len(value) == 3):
        raise CheckpointError(f"preprocessor_config.json: {key} is {value!r}, expected 3 numbers")
    red, green, blue = map(float, value)
    return red, green, blue
