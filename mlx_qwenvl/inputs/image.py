"""One RGB picture -> the patches that Qwen2-VL sees, as uint8.

Sizes, resampling and the order of the patches equal Transformers' Qwen2-VL image processor bit for
bit, given the same Pillow; `tests/golden/images.json` holds the recording. Normalisation is not
done here: it is an affine map of each channel and is folded into the patch embedding's weights.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_qwenvl.errors import CheckpointError, MediaError, OptionError

__all__ = [
    "ImageGeometry",
    "ImagePatches",
    "PixelBudget",
    "check_sides",
    "cut_patches",
    "image_patches",
    "joined_patches",
    "n_tokens_for",
    "smart_resize",
]

TURNED = "mlx_qwenvl_orientation"  # in `Image.info`: the EXIF value that was undone
MAX_ASPECT_RATIO = 200  # long side / short side; Qwen2-VL was not made for more


@dataclass(frozen=True)
class ImageGeometry:
    """How a checkpoint cuts pictures.

    Attributes:
        patch_size: Side of a patch, in pixels.
        merge_size: Side of the square of patches that becomes one token, in patches.
        temporal_patch_size: Depth of a patch, in frames; a still counts as that many equal frames.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int

    def __post_init__(self) -> None:
        """Refuses sizes that cut nothing."""
        for name, size in vars(self).items():
            if size < 1:
                raise CheckpointError(f"{name} must be positive, got {size}")

    @property
    def factor(self) -> int:
        """Side of the square of pixels that becomes one token: every side is a multiple of it."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class PixelBudget:
    """How many pixels a picture has after resizing, width times height."""

    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        """Refuses a budget that no picture can meet."""
        if not 0 < self.min_pixels <= self.max_pixels:
            got = f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}"
            raise OptionError(f"expected 0 < min_pixels <= max_pixels, got {got}")


@dataclass(frozen=True, eq=False)
class ImagePatches:
    """One still as the vision tower takes it.

    Attributes:
        patches: [n_patches, 3 * patch_size**2] uint8, read-only. One frame: the frames of a still
            are all the same, so their weights are summed instead. Columns are (channel, row,
            column); rows run through (h / merge, w / merge, merge row, merge column), so that the
            patches of one token lie together.
        grid_thw: Time, height and width of the picture, in patches.
        source_size: (width, height) before resizing, in pixels.
        size: (width, height) after resizing, in pixels.
        geometry: How it was cut.
        orientation: The EXIF value, 1 to 8, that turned the stored picture upright.
        seconds_per_grid: None: a still takes no time.
    """

    patches: npt.NDArray[np.uint8]
    grid_thw: tuple[int, int, int]
    source_size: tuple[int, int]
    size: tuple[int, int]
    geometry: ImageGeometry
    orientation: int = 1
    seconds_per_grid: ClassVar[None] = None

    @property
    def n_tokens(self) -> int:
        """How many tokens of the prompt the picture takes."""
        return math.prod(self.grid_thw) // self.geometry.merge_size**2

    @property
    def views(self) -> tuple[ImagePatches, ...]:
        """What the vision tower looks at on its own: the picture."""
        return (self,)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all that the vision tower is given: the key of a picture in caches.

        Grid and geometry count too: 30 x 100 and 100 x 30 pixels of one colour have equal bytes.
        """
        geometry = self.geometry
        sizes = (geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size)
        sha = hashlib.sha256(struct.pack("<6Q", *self.grid_thw, *sizes))
        sha.update(self.patches.data)
        return sha.digest()

    def to_image(self) -> Image.Image:
        """The picture as the model sees it: upright, resized, RGB."""
        return joined_patches(self.patches, self.grid_thw[1:], self.geometry)


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
    """Returns the size that Qwen2-VL gives to a picture.

    Both sides become multiples of the factor near the given ones; a picture beyond the budget is
    scaled into it with its shape kept, rounding towards the inside of the budget. An elongated
    picture may still end outside: no side gets shorter than the factor.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        factor: What both sides must be a multiple of, in pixels.
        min_pixels: Least height times width.
        max_pixels: Most height times width.

    Returns:
        (height, width) in pixels.

    Raises:
        MediaError: If a side is not positive, or one is over 200 times as long as the other.
    """
    check_sides(height, width)
    # Python's round: halves go to the even multiple, and a side under half a factor goes to 0,
    # which lands in the second branch below.
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def check_sides(height: int, width: int) -> None:
    """Refuse a picture of a shape that Qwen2-VL was not made for.

    Raises:
        MediaError: If a side is not positive, or one is over 200 times as long as the other.
    """
    short, long = sorted((height, width))
    if short < 1:
        raise MediaError(f"a picture of {width} x {height} pixels has no pixels")
    if long / short > MAX_ASPECT_RATIO:
        limit = f"the long side may be {MAX_ASPECT_RATIO} times the short one at most"
        raise MediaError(f"a picture of {width} x {height} pixels is too elongated; {limit}")


def n_tokens_for(width: int, height: int, geometry: ImageGeometry, budget: PixelBudget) -> int:
    """Predicts the tokens that a picture takes, from its size alone.

    Args:
        width: Width of the upright picture, in pixels.
        height: Height of the upright picture, in pixels.
        geometry: How the checkpoint cuts pictures.
        budget: How many pixels are kept.

    Returns:
        The number of tokens, as in `ImagePatches.n_tokens`.

    Raises:
        MediaError: As `smart_resize`.
    """
    factor = geometry.factor
    resized = smart_resize(height, width, factor, budget.min_pixels, budget.max_pixels)
    return resized[0] // factor * (resized[1] // factor)


def image_patches(image: Image.Image, geometry: ImageGeometry, budget: PixelBudget) -> ImagePatches:
    """Resizes a picture and cuts it into patches.

    Args:
        image: An upright picture of mode "RGB", as `open_image` returns.
        geometry: How the checkpoint cuts pictures.
        budget: How many pixels to keep.

    Returns:
        The patches with their grid.

    Raises:
        MediaError: If the picture is not RGB, or as `smart_resize`.
    """
    if image.mode != "RGB":
        raise MediaError(f"expected a picture of mode RGB, got {image.mode}; open_image makes one")
    width, height = image.size
    new_height, new_width = smart_resize(
        height, width, geometry.factor, budget.min_pixels, budget.max_pixels
    )
    patches = cut_patches(image, (new_width, new_height), geometry)
    patches.flags.writeable = False  # the digest stays true
    return ImagePatches(
        patches=patches,
        grid_thw=(1, new_height // geometry.patch_size, new_width // geometry.patch_size),
        source_size=(width, height),
        size=(new_width, new_height),
        geometry=geometry,
        orientation=image.info.get(TURNED, 1),
    )


def cut_patches(
    image: Image.Image, size: tuple[int, int], geometry: ImageGeometry
) -> npt.NDArray[np.uint8]:
    """Resizes one picture or frame and cuts it into patches.

    Args:
        image: Of mode "RGB".
        size: (width, height) in pixels, multiples of the geometry's factor.
        geometry: How the checkpoint cuts.

    Returns:
        [n_patches, 3 * patch_size**2], rows and columns as in `ImagePatches.patches`.
    """
    # Bicubic in one pass over all of the pixels: draft modes and reducing_gap give other values.
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))  # [H, W, 3]
    patch, merge = geometry.patch_size, geometry.merge_size
    rows, columns = size[1] // patch, size[0] // patch
    blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    # -> (h / merge, w / merge, merge row, merge column, channel, row, column)
    ordered = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5))
    return ordered.reshape(rows * columns, 3 * patch * patch)


def joined_patches(
    patches: npt.NDArray[np.uint8], grid_hw: tuple[int, int], geometry: ImageGeometry
) -> Image.Image:
    """Puts the patches [n_patches, 3 * patch_size**2] of one frame together again."""
    rows, columns = grid_hw
    patch, merge = geometry.patch_size, geometry.merge_size
    blocks = patches.reshape(rows // merge, columns // merge, merge, merge, 3, patch, patch)
    pixels = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    return Image.fromarray(np.ascontiguousarray(pixels))
