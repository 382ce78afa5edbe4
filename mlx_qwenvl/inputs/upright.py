"""A decoded frame as an upright picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from PIL import Image

if TYPE_CHECKING:
    import av

__all__ = ["upright"]

# (a, b, c, d) of a display matrix: x' = a x + c y, y' = b x + d y -> what turns a frame upright.
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
ONE = 1 << 16  # of a display matrix's fixed point


def upright(frame: av.VideoFrame) -> Image.Image:
    """A frame in RGB, turned as the file says."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = UPRIGHT.get(_turned(frame))
    return picture if turn is None else picture.transpose(turn)


def _turned(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the frame's display matrix in whole numbers; what is not whole counts as 0.

    The matrix is nine 32-bit numbers: a, b, u, c, d, v, x, y, w.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return (1, 0, 0, 1)
    numbers = memoryview(bytes(cast(Any, data))).cast("i")
    a, b, c, d = (round(numbers[at] / ONE) for at in (0, 1, 3, 4))
    return (a, b, c, d)
