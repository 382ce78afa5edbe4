"""Whatever names or holds a picture -> one upright RGB picture.

The only place that decides which formats are opened, how large a picture may be, and what alpha,
16 bits or an EXIF rotation become. The bytes say what a file is, never its name or label; sizes are
checked on the header, before a pixel is decoded; every fault of a decoder leaves as one MediaError.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.image import TURNED
from mlx_qwenvl.inputs.sniff import EXPECTED, format_of, is_text, looks_like
from mlx_qwenvl.inputs.source import (
    DEFAULT_LIMITS,
    MediaLimits,
    read_file,
    read_path,
    read_text,
    shown,
)

__all__ = [
    "DEFAULT_LIMITS",
    "ImageSource",
    "MediaLimits",
    "decode",
    "open_image",
    "read_encoded",
]

ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | np.ndarray[Any, Any]
)

ORIENTATION_TAG = 274  # EXIF "Orientation": what turns the stored picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, *, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens a picture, whatever names or holds it.

    Text is tried as an http(s) URL, a ``data:`` URL, a ``file:`` URL, a path that exists and bare
    base64, in this order. Of an animation the first frame is taken. Alpha is laid over white.

    Args:
        source: Text, a path, the encoded bytes, a binary file (read from its start and left open),
            a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, bool or
            floats in 0..1.
        limits: What the picture may cost and where it may come from.

    Returns:
        An upright picture of mode "RGB"; a PIL image that is so already is returned itself.

    Raises:
        MediaError: If there is no such picture, or it is damaged, too large or of another format.
        FetchError: If a URL cannot be opened.
    """
    encoded = read_encoded(source, limits)
    if encoded is not None:
        return decode(*encoded, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, Image.Image):
        _check_size(source.size, "the PIL image", limits)
        with _one_fault("the PIL image", f"{source.format or source.mode} data"):
            return _upright_rgb(source, "the PIL image")
    expected = "a path, a URL, bytes, a binary file, a PIL image or a numpy array"
    raise MediaError(f"expected {expected}, got {type(source).__name__}")


def read_encoded(source: object, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[bytes, str] | None:
    """The bytes of a picture and a name for messages, or None for pixels that are decoded already.

    Raises:
        MediaError: If there is no such picture, or it is too large.
        FetchError: If a URL cannot be opened.
    """
    encoded = _read_encoded(source, limits)
    if encoded is not None and limits.budget is not None:
        limits.budget.charge_bytes(len(encoded[0]))
    return encoded


def _read_encoded(source: object, limits: MediaLimits) -> tuple[bytes, str] | None:
    if isinstance(source, str):
        return read_text(source, limits)
    if isinstance(source, os.PathLike):
        path = os.fsdecode(source)
        return read_path(path, limits), shown(path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "the picture"
    if isinstance(source, (np.ndarray, Image.Image)) or not hasattr(source, "read"):
        return None
    name = getattr(source, "name", None)
    name = shown(name) if isinstance(name, str) else "the picture"
    return read_file(source, name, limits), name


def decode(data: bytes, name: str, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decodes the bytes of a picture; they alone say what it is. Errors as of `open_image`."""
    if not data:
        raise MediaError(f"{name}: is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise MediaError(f"{name}: has more than {limits.max_bytes} bytes")
    decoder = format_of(data)
    if decoder is None:
        seems = looks_like(data) or ("text" if is_text(data) else "no known format")
        raise MediaError(f"{name}: looks like {seems} ({len(data)} bytes); expected {EXPECTED}")
    with _one_fault(name, f"{decoder} data of {len(data)} bytes"):
        if decoder == "HEIF":
            heif = _heif_opener(name)(data)
            _check_size(heif.size, name, limits)
            return _upright_rgb(heif.to_pillow(), name)
        image = Image.open(io.BytesIO(data), formats=(decoder,))
        _check_size(image.size, name, limits)
        return _upright_rgb(image, name)


def _heif_opener(name: str) -> Any:
    try:
        return importlib.import_module("pillow_heif").open_heif
    except ImportError:
        extra = "HEIC pictures need one more package: pip install 'mlx-qwenvl[heic]'"
        raise MediaError(f"{name}: {extra}") from None


def _check_size(size: tuple[int, int], name: str, limits: MediaLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: has no pixels ({width} x {height})")
    if width * height > limits.max_pixels:
        most = f"at most {limits.max_pixels} pixels are decoded"
        raise MediaError(f"{name}: is {width} x {height} pixels, too large; {most}")
    if limits.budget is not None:
        limits.budget.charge_pixels(width * height)


@contextmanager
def _one_fault(name: str, what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into one MediaError, without Pillow's words.

    Pillow's own messages hold object addresses, and its decoders raise nearly any type.
    """
    try:
        with warnings.catch_warnings():
            # What Pillow only warns of (odd metadata, 90 megapixels) is no fault. The filter is
            # narrow because the list of filters is shared by all threads.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name}: has too many pixels to be decoded") from error
    except Exception as error:
        fault = "truncated" if "truncated" in str(error) else "damaged or truncated"
        raise MediaError(f"{name}: {what} cannot be decoded; it is {fault}") from error


def _from_array(array: np.ndarray[Any, Any], limits: MediaLimits) -> Image.Image:
    name = f"the array {list(array.shape)} {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MediaError(f"{name}: expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    _check_size((array.shape[1], array.shape[0]), name, limits)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise MediaError(f"{name}: holds {low:g}..{high:g}; expected floats in 0..1")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise MediaError(f"{name}: expected uint8, bool or floats in 0..1")
    array = array[:, :, 0] if array.shape[2:] == (1,) else array
    return _upright_rgb(Image.fromarray(array), name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the picture upright, over white, as RGB.

    Colour profiles are left as they are: the model was trained on pixels that no profile had moved.
    """
    image.load()
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image, name)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        image.info[TURNED] = orientation  # whoever points at pixels of the file needs it
    return image


def _orientation(image: Image.Image) -> int:
    if TURNED in image.info:  # Pillow keeps the EXIF data of a picture that it turned
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # EXIF is a hint; a broken one costs nothing but the hint
        return 1


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scales grey of 16 bits, 32 bits or floats to 8 bits; Pillow's own convert() would clip it.

    16-bit modes have a fixed scale. Modes "I" and "F" do not say their scale, so the smallest one
    that holds the values is taken: 8, 16 or 32 bits, and 0..1 or 0..255.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "I":
        top = next((top for top in (255.0, 65535.0) if high <= top), 2.0**31 - 1)
    else:
        top = 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # NaN fails too
        scale = "expected 0..1 or 0..255" if image.mode == "F" else "expected no negative values"
        raise MediaError(f"{name}: mode {image.mode} holds {low:g}..{high:g}; {scale}")
    grey = Image.fromarray(np.rint(values * np.float32(255.0 / top)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
