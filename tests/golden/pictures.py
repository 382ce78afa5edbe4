"""Pictures from a number: gradients, shapes and noise, the same bytes on every platform."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Draw a picture.

    Args:
        seed: Which picture.
        width: In pixels.
        height: In pixels.

    Returns:
        An RGB image. Only integers are used, so that the bytes do not depend on a platform's
        arithmetic.
    """
    source = np.random.PCG64([seed, width, height])

    def draw(low: int, high: int) -> int:
        return low + int(source.random_raw()) % (high - low + 1)

    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.empty((height, width, 3), dtype=np.int64)
    for channel in range(3):
        start, across, down = draw(30, 225), draw(-120, 120), draw(-120, 120)
        slope = across * columns // width + down * rows // height
        pixels[..., channel] = start + slope
    for shape in range(5):
        x, y = draw(0, width - 1), draw(0, height - 1)
        half_width, half_height = draw(2, width // 4 + 2), draw(2, height // 4 + 2)
        if shape % 2:
            inside = (abs(columns - x) <= half_width) & (abs(rows - y) <= half_height)
        else:
            reach = (half_width * half_height) ** 2
            inside = ((columns - x) * half_height) ** 2 + ((rows - y) * half_width) ** 2 <= reach
        pixels[inside] = [draw(0, 255) for _ in range(3)]
    noise = source.random_raw(pixels.size) >> np.uint64(60)
    pixels += noise.astype(np.int64).reshape(pixels.shape) - 8
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
