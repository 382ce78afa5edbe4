"""What a checkpoint says about its pictures: cutting, normalization, numbers of pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.inputs.image import ImageGeometry, ImagePatches, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import (
    DEFAULT_LIMITS,
    MediaLimits,
    decode,
    open_image,
    read_encoded,
)
from mlx_qwenvl.inputs.messages import ImagePart
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.lru import BoundedStore

TOKEN_PIXELS = 28 * 28  # pixels of one token: two by two patches of 14 pixels
DEFAULT_MAX_PIXELS = 1280 * TOKEN_PIXELS
"""Most pixels of a picture where the caller sets no limit, however many the checkpoint allows.

The family's checkpoints allow 12.8 megapixels, which makes 15,552 tokens of a phone photo; at one
megapixel it is 1,230 and small print is still read. See `docs/pixels.md`.
"""
DETAIL_MAX_PIXELS = {"low": 256 * TOKEN_PIXELS, "high": 4096 * TOKEN_PIXELS}

# The bytes say what a picture is, never its name; geometry and budget say what becomes of it.
PatchStore: TypeAlias = BoundedStore[tuple[bytes, ImageGeometry, PixelBudget], ImagePatches]


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
    """

    geometry: ImageGeometry
    normalization: Normalization
    budget: PixelBudget

    @classmethod
    def from_folder(cls, folder: Path) -> Processor:
        """Read `preprocessor_config.json`, or `processor_config.json` as newer tools write it.

        Raises:
            CheckpointError: Both are missing, or a key is.
        """
        file = folder / "preprocessor_config.json"
        if file.exists():
            return cls.from_dict(read_json(file))
        combined = folder / "processor_config.json"
        if combined.exists():
            raw = read_json(combined).get("image_processor")
            if isinstance(raw, dict):
                return cls.from_dict(raw)
        raise CheckpointError(f"{file} is missing")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Processor:
        """Read an image processor's settings.

        Raises:
            CheckpointError: A key is missing or has the wrong type.
        """
        # Newer files name the limits as edges, but they are still numbers of pixels.
        size = raw.get("size") or {}
        least = raw.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
        most = raw.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge")
        geometry = ("patch_size", "merge_size", "temporal_patch_size")
        sizes: dict[str, Any] = {key: raw.get(key) for key in geometry}
        sizes |= {"min_pixels": least, "max_pixels": most}
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise CheckpointError(
                    f"preprocessor_config.json: {key} is {value!r}, expected a positive integer"
                )
        return cls(
            ImageGeometry(**{key: raw[key] for key in geometry}),
            Normalization(_channels(raw, "image_mean"), _channels(raw, "image_std")),
            PixelBudget(sizes["min_pixels"], sizes["max_pixels"]),
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
        if patches is None:
            patches = image_patches(decode(*encoded, limits), self.geometry, budget)
            store.put(key, patches, patches.patches.nbytes)
        elif limits.budget is not None:
            # What a request may hold does not depend on what others asked before.
            limits.budget.charge_pixels(patches.source_size[0] * patches.source_size[1])
        return patches

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


def _channels(raw: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = raw.get(key)
    if not (isinstance(value, list) and len(value) == 3):
        raise CheckpointError(f"preprocessor_config.json: {key} is {value!r}, expected 3 numbers")
    red, green, blue = map(float, value)
    return red, green, blue
