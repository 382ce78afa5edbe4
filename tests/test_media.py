"""inputs/media.py: every way to give a picture, every kind of picture, and every bad one."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import struct
import subprocess
import sys
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mlx_qwenvl.errors import MediaError, OptionError, QwenVLError
from mlx_qwenvl.inputs import media
from mlx_qwenvl.inputs.media import MediaLimits, open_image
from mlx_qwenvl.inputs.source import MediaBudget
from tests.golden.record_images import draw, encode

PIXELS = draw(40, 30, 3)
PICTURE = Image.fromarray(PIXELS)
PNG = encode(PICTURE, "PNG")
BASE64 = base64.b64encode(PNG).decode()
NO_FILES = MediaLimits(local_files=False, urls=False)


@pytest.fixture(autouse=True)
def messages_are_safe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Holds every error that a test here meets to the rules for messages."""
    made: list[str] = []
    init = QwenVLError.__init__

    def recording(self: QwenVLError, message: str = "", param: str | None = None) -> None:
        made.append(message)
        init(self, message, param)

    monkeypatch.setattr(QwenVLError, "__init__", recording)
    yield
    for message in made:
        assert message.isprintable(), message
        assert len(message) < 300, message
        assert not re.search(r"0x[0-9a-f]{4}|Traceback|<.*object|BytesIO|PIL\.", message), message


def refused(source: Any, match: str, limits: MediaLimits = media.DEFAULT_LIMITS) -> None:
    with pytest.raises(MediaError, match=match):
        open_image(source, limits=limits)


def same(picture: Image.Image, pixels: np.ndarray[Any, Any] = PIXELS) -> bool:
    return picture.mode == "RGB" and np.array_equal(np.asarray(picture), pixels)


# --- ways to give a picture ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), PICTURE, PIXELS],
    ids=lambda source: type(source).__name__,
)
def test_objects_that_hold_a_picture(source: Any) -> None:
    assert same(open_image(source))


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        "\n".join(re.findall(".{1,76}", BASE64)) + "\n",
        f"  {BASE64}  ",
        BASE64.replace("+", "-").replace("/", "_"),
        f"data:image/png;base64,{BASE64}",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f" data:;base64,{BASE64}\n",
        f"data:text/html;base64,{BASE64}",
        f"data:image/jpeg;charset=utf-8;base64,{BASE64}",
        f"data:image/png;base64,{urllib.parse.quote(BASE64, safe='')}",
        f"data:image/png,{urllib.parse.quote_from_bytes(PNG)}",
    ],
    ids=lambda text: text[:24].strip(),
)
def test_text_that_holds_a_picture(text: str) -> None:
    assert same(open_image(text))
    assert same(open_image(text, limits=NO_FILES))


@pytest.mark.parametrize("name", ["a.png", "no extension", "wrong.jpg", "ä b#?%.png", " spaces "])
def test_files_by_path_and_file_url(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    quoted = urllib.parse.quote(str(path))
    for source in (path, str(path), name, f"file://{quoted}", f"FILE://localhost{quoted}"):
        assert same(open_image(source)), source
    for source in (f"~/{name}", Path("~") / name, f"file:{quoted}"):
        assert same(open_image(source)), source
    with path.open("rb") as file:
        file.seek(7)
        assert same(open_image(file))
        assert not file.closed


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, PNG)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert same(open_image(file))


def test_base64_that_begins_like_an_absolute_path() -> None:
    jpeg = encode(Image.fromarray(draw(200, 150, 3)), "JPEG", quality=100)
    text = base64.b64encode(jpeg).decode()
    assert text.startswith("/9j/")
    assert len(text) > 40_000
    assert open_image(text).size == (200, 150)


def test_path_objects_are_opened_where_text_may_not_name_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    assert same(open_image(path, limits=NO_FILES))
    refused(str(path), "names no picture; expected a URL or base64", NO_FILES)
    refused(path.as_uri(), "not opened here", NO_FILES)
    refused("https://example.com/a.png", "not opened here", NO_FILES)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("~nobody-of-this-name/a.png", "no such file"),
        ("/".join(["x" * 300] * 3), "no such file|names no picture"),
        ("missing.png", "^missing.png: no such file"),
        ("/missing/a.png", "^/missing/a.png: no such file"),
        ("~/missing.png", "^~/missing.png: no such file"),
        ("nul\0.png", r"^nul\?.png: no such file"),
        ("\udcff.png", r"no such file"),
        ("two\nlines.png", r"^two\?lines.png: no such file"),
        ("file:///missing/a.png", "^/missing/a.png: no such file"),
        ("file:///nul%00.png", "no such file"),
        ("file://elsewhere/a.png", "no such file"),
        (
            "ftp://example.com/a.png",
            "^ftp: URLs are not opened; expected http, https, data or file",
        ),
        ("s3://bucket/key?secret", "^s3: URLs"),
        ("x" * 5000, "text of 5000 characters names no picture"),
        ("a/" * 3000, "text of 6000 characters names no picture"),
        ("x" * 300, "text of 300 characters"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "the data: URL: is empty"),
        ("data:,", "the data: URL: is empty"),
        ("data:,hello", "the data: URL: looks like text"),
        ("data:,\ud800", "the data: URL: looks like"),
        ("data:;base64,\ud800", "no valid base64"),
        (f"data:image/png;base64,{BASE64[:-4]}=AAA", "no valid base64"),
        (f"data:image/png;base64,{BASE64}====", "no valid base64"),
        ("data:image/png;base64,A", "no valid base64"),
        ("data:image/png;base64,(PNG)", "no valid base64"),
        ("data:image/png;base64,ü", "no valid base64"),
        ("data:image/png;base64,AAAA", "no known format|looks like"),
        (BASE64[: len(BASE64) // 2], "base64 text: PNG data of .* truncated"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_text_that_leads_to_no_picture(text: str, match: str) -> None:
    refused(text, match)


def test_a_folder_and_a_locked_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path, "is a folder; expected a picture file")
    refused(str(tmp_path), "is a folder")

    def locked(*args: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(Path, "open", locked)
    refused(Path("locked.png"), "^locked.png: Permission denied$")


@pytest.mark.parametrize(
    "source", [None, 7, ["a.png"], {"url": "x"}, object()], ids=lambda it: type(it).__name__
)
def test_other_types_are_refused_by_name(source: Any) -> None:
    refused(source, f"expected a path, a URL.* got {type(source).__name__}$")


def test_files_that_do_not_read_as_bytes() -> None:
    refused(io.StringIO("text"), "cannot be read as a binary file")
    closed = io.BytesIO(PNG)
    closed.close()
    refused(closed, "cannot be read as a binary file")


@given(st.text())
def test_any_text_gives_one_kind_of_error(text: str) -> None:
    # Nothing that Hypothesis makes up is a picture, and no URL or file is opened.
    with pytest.raises(MediaError) as caught:
        open_image(text, limits=NO_FILES)
    assert str(caught.value).isprintable()
    with pytest.raises(MediaError) as caught:
        open_image(f"/missing folder/{text}")
    assert str(caught.value).isprintable()


# --- arrays -------------------------------------------------------------------------------------


def test_arrays_of_every_accepted_shape_and_type() -> None:
    grey = PIXELS[:, :, 0]
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert same(open_image(grey), as_rgb)
    assert same(open_image(grey[:, :, None]), as_rgb)
    assert same(open_image(np.dstack([PIXELS, np.full((30, 40), 255, np.uint8)])))
    assert same(open_image(np.dstack([PIXELS, np.zeros((30, 40), np.uint8)])), PIXELS * 0 + 255)
    assert same(open_image(PIXELS[::-1]), PIXELS[::-1])
    assert same(open_image(grey > 99), np.where(as_rgb > 99, np.uint8(255), np.uint8(0)))
    for dtype in (np.float16, np.float32, np.float64):
        assert same(open_image((PIXELS / 255).astype(dtype)))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((3, 30, 40), np.uint8), r"\[3, 30, 40\] uint8: expected \[H, W\]"),
        (np.zeros((30, 40, 2), np.uint8), r"\[30, 40, 2\] uint8"),
        (np.zeros(9, np.uint8), r"\[9\] uint8"),
        (np.zeros((1, 30, 40, 3), np.uint8), r"\[1, 30, 40, 3\] uint8"),
        (np.zeros((30, 40), np.int64), r"\[30, 40\] int64: expected uint8"),
        (np.zeros((30, 40), np.uint16), "uint16: expected uint8"),
        (np.zeros((30, 40), complex), "complex128: expected uint8"),
        (np.zeros((30, 40), object), "object: expected uint8"),
        (PIXELS.astype(np.float32), r"float32: holds .*; expected floats in 0\.\.1"),
        (np.full((3, 4), -0.5), r"holds -0.5\.\.-0.5"),
        (np.full((3, 4), np.nan), "holds nan"),
        (np.full((3, 4), np.inf), "holds inf"),
        (np.zeros((0, 4), np.uint8), "has no pixels"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else "",
)
def test_other_arrays_are_refused_with_shape_and_dtype(
    array: np.ndarray[Any, Any], match: str
) -> None:
    refused(array, match)


# --- kinds of pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(encoder: str, options: dict[str, Any]) -> None:
    assert same(open_image(encode(PICTURE, encoder, **options)))


@pytest.mark.parametrize("encoder", ["JPEG", "WEBP", "GIF", "MPO"])
def test_lossy_formats_are_decoded_as_pillow_does(encoder: str) -> None:
    data = encode(PICTURE, encoder)
    assert same(open_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("encoder", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(encoder: str) -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    data = encode(red, encoder, save_all=True, append_images=[blue])
    red_seen, _, blue_seen = np.asarray(open_image(data)).reshape(-1, 3).mean(axis=0)
    assert red_seen > 250
    assert blue_seen < 5


@pytest.mark.parametrize("encoder", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(encoder: str, orientation: int) -> None:
    # A mark in the upper left, a longer one below it: no two turns look alike.
    upright = Image.new("L", (64, 48), "white")
    upright.paste(0, (0, 0, 16, 16))
    upright.paste(0, (0, 16, 32, 32))
    back = {2: 0, 3: 1, 4: 6, 5: 4, 6: 2, 7: 5, 8: 3}  # places in `turns` that undo the tag
    turns = [
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.FLIP_TOP_BOTTOM,
    ]
    stored = upright.transpose(turns[back[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(stored.convert("RGB"), encoder, exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (64, 48)
    for source in (data, Image.open(io.BytesIO(data))):
        seen = np.asarray(open_image(source).convert("L")) > 127
        assert np.array_equal(seen, np.asarray(upright) > 127)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (3, 1, b"\0\0\0\0"),
        (3, 1, b"\0\x09\0\0"),
        (3, 1, b"\0\x63\0\0"),
        (8, 1, b"\xff\xff\0\0"),
        (2, 4, b"six\0"),
        (7, 4, b"\6\6\6\6"),
        (5, 1, b"\0\0\xff\xff"),
    ],
    ids=["0", "9", "99", "-1", "text", "bytes", "fraction elsewhere"],
)
def test_orientations_that_do_not_exist_are_ignored(kind: int, count: int, value: bytes) -> None:
    entry = struct.pack(">HHI", 274, kind, count) + value
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)
    assert open_image(encode(PICTURE, "JPEG", exif=exif)).size == (40, 30)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0junk" * 9]
)
@pytest.mark.parametrize("encoder", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_is_ignored(encoder: str, exif: bytes) -> None:
    assert open_image(encode(PICTURE, encoder, exif=exif)).size == (40, 30)


def _over_white(alpha: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    share = alpha[:, :, None] / 255.0
    return np.rint(PIXELS * share + 255 * (1 - share))


@pytest.mark.parametrize("encoder", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(encoder: str) -> None:
    alpha = draw(40, 30, 1)[:, :, 0]
    data = encode(Image.fromarray(np.dstack([PIXELS, alpha])), encoder, lossless=True, exact=True)
    assert abs(np.asarray(open_image(data)) - _over_white(alpha)).max() <= 1


def test_transparent_parts_of_other_modes_are_white() -> None:
    left = np.zeros((30, 40), np.uint8)
    left[:, 20:] = 255
    grey = Image.fromarray(np.full((30, 40), 90, np.uint8))
    for mode in ("LA", "La", "PA"):
        base = grey.convert("LA" if mode == "La" else mode)
        base.putalpha(Image.fromarray(left))
        seen = np.asarray(open_image(base.convert(mode) if mode == "La" else base))
        assert (seen[:, :20] == 255).all(), mode
        assert (seen[:, 20:] == 90).all(), mode


@pytest.mark.parametrize(
    ("pixels", "transparency"),
    [
        (np.where(np.arange(40) < 20, 7, 90).astype(np.uint8)[None].repeat(30, 0), 7),
        (np.where(np.arange(40) < 20, 7, 90 * 257).astype(np.uint16)[None].repeat(30, 0), 7),
        (
            np.where(np.arange(40)[:, None] < 20, 7, 90).astype(np.uint8)[None].repeat(30, 0),
            (7,) * 3,
        ),
    ],
    ids=["L", "I;16", "RGB"],
)
def test_one_transparent_colour_is_white(pixels: np.ndarray[Any, Any], transparency: Any) -> None:
    if pixels.ndim == 3:
        pixels = pixels.repeat(3, axis=2)
    data = encode(Image.fromarray(pixels), "PNG", transparency=transparency)
    seen = np.asarray(open_image(data))
    assert (seen[:, :20] == 255).all()
    assert (seen[:, 20:] == 90).all()


def test_palettes_and_their_alpha() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    expected = np.asarray(image.convert("RGB"))
    assert same(open_image(encode(image, "PNG")), expected)
    assert same(open_image(encode(image, "GIF")), expected)
    data = encode(image, "PNG", transparency=bytes(128) + b"\xff" * 128)
    seen = np.asarray(open_image(data)).reshape(256, 3)
    assert (seen[:128] == 255).all()
    assert (seen[128:] == expected.reshape(256, 3)[128:]).all()


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 1, 128, 255]], np.int32), [0, 1, 128, 255]),
        (np.array([[0, 257, 32768, 65535]], np.int32), [0, 1, 128, 255]),
        (np.array([[0, 2**23, 2**30, 2**31 - 1]], np.int32), [0, 1, 128, 255]),
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 64, 128, 255]),
        (np.array([[0, 1, 128, 255]], np.float32), [0, 1, 128, 255]),
    ],
    ids=["I;16", "I of 8 bits", "I of 16 bits", "I of 32 bits", "F to 1", "F to 255"],
)
def test_deep_grey_is_scaled_not_clipped(pixels: Any, expected: list[int]) -> None:
    image = Image.fromarray(pixels)
    encoders = ["TIFF", "PNG"] if pixels.dtype == np.uint16 else ["TIFF"]
    sources: list[Any] = [image, *(encode(image, encoder) for encoder in encoders)]
    for source in sources:
        assert np.asarray(open_image(source))[0, :, 1].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 300.0])
def test_floats_on_no_known_scale_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.0, value]], np.float32))
    refused(image, r"^the .*: mode F holds .*expected 0\.\.1 or 0\.\.255")
    refused(encode(image, "TIFF"), "mode F holds")


def test_negative_grey_is_refused() -> None:
    refused(Image.fromarray(np.array([[-1, 5]], np.int32)), "mode I holds -1..5")


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes_become_rgb_as_pillow_does(mode: str) -> None:
    image = PICTURE.convert("L").convert("1") if mode == "1" else Image.new(mode, (40, 30), 90)
    assert same(open_image(image), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    data = encode(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "JPEG")
    assert abs(np.asarray(open_image(data)) - np.array([255.0, 0, 0])).max() < 4


def test_an_upright_rgb_picture_is_returned_itself() -> None:
    assert open_image(PICTURE) is PICTURE


def test_the_callers_picture_is_not_changed() -> None:
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    open_image(image)
    assert image.getpixel((0, 0)) == (1, 2, 3, 4)


# --- HEIC ---------------------------------------------------------------------------------------


def test_heic_photo_is_upright() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[274] = 6
    image = Image.new("RGB", (64, 48), "red")
    image.paste((0, 0, 255), (0, 0, 64, 8))  # a blue bar that ends up on the right
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, exif=exif.tobytes())
    seen = np.asarray(open_image(file.getvalue())).astype(int)
    assert seen.shape == (64, 48, 3)
    assert (seen[:, -5:, 2] > 180).all()
    assert (seen[:, :30, 0] > 180).all()
    limits = MediaLimits(max_pixels=1000)
    refused(file.getvalue(), "too large; at most 1000 pixels", limits)
    for eighth in range(1, 8):
        refused(file.getvalue()[: len(file.getvalue()) * eighth // 8], "HEIF data of|has no pixels")


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refused(b"\0\0\0\x18ftypheic\0\0\0\0", r"HEIC .*pip install 'mlx-qwenvl\[heic\]'")


# --- damaged, hostile and other files -----------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", rows)]
    return b"".join([*parts, _chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("eighth", range(1, 8))
def test_truncated_files_are_errors(encoder: str, options: dict[str, Any], eighth: int) -> None:
    data = encode(PICTURE, encoder, **options)
    length = len(data) * eighth // 8
    refused(data[:length], f"{encoder} data of {length} bytes cannot be decoded; it is .*truncated")


def test_a_png_with_half_of_its_rows_is_an_error() -> None:
    rows = zlib.compress(np.pad(draw(50, 8, 3).reshape(8, 150), ((0, 0), (1, 0))).tobytes())
    assert same(open_image(_png(50, 8, rows=rows)), draw(50, 8, 3))
    refused(_png(50, 8, rows=rows[: len(rows) // 2]), "PNG data .* cannot be decoded")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"^the picture: is empty \(0 bytes\)"),
        (b"hello, I am no picture\n", r"looks like text \(23 bytes\); expected PNG, JPEG"),
        (b"\x00\x01\x02\x03" * 9, "looks like no known format"),
        (b"%PDF-1.7\n", "looks like a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "looks like an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "looks like an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "looks like an HTML page"),
        (b"8BPS\0\1", "looks like a Photoshop file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "looks like a PostScript file"),
        (b"\xc5\xd0\xd3\xc6\0", "looks like an EPS file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "looks like a JPEG 2000 picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "looks like an AVIF picture"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1", "looks like an AVIF picture"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "looks like an MP4 or QuickTime video"),
        (b"\x1a\x45\xdf\xa3\0", "looks like a Matroska or WebM video"),
        (b"RIFF\0\0\0\0AVI LIST", "looks like an AVI video"),
        (b"PK\x03\x04\0", "looks like a ZIP archive"),
        (b"\x1f\x8b\x08\0", "looks like a gzip archive"),
        (b"SIMPLE  =                    T", "looks like a FITS file"),
        (_png(0, 0), "no pixels|damaged"),
        (_png(0, 9), "no pixels|damaged"),
        (_png(13000, 13000), "is 13000 x 13000 pixels, too large; at most 128000000 pixels"),
        (_png(2**31 - 1, 2**31 - 1), "too many pixels|too large|damaged"),
        (_png(20000, 20000), "too many pixels"),
        (_png(9, 9, _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70 * 2**20)))), "damaged"),
        (b"GIF89a", "GIF data of 6 bytes"),
        (b"BMW makes cars", "BMP data of 14 bytes cannot be decoded"),
        (b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0", "TIFF data .* cannot be decoded"),
        (b"\xff\xd8\xff\xe1\xff\xff", "JPEG data of 6 bytes cannot be decoded"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_bad_files_are_refused_in_words(data: bytes, match: str) -> None:
    refused(data, match)


def test_a_wrong_checksum_is_an_error() -> None:
    broken = bytearray(PNG)
    broken[len(PNG) // 2] ^= 1
    refused(bytes(broken), "PNG data .* cannot be decoded; it is damaged")
    header = bytearray(PNG)
    header[29] ^= 1  # in the checksum of the header
    refused(bytes(header), "PNG data .* cannot be decoded; it is damaged")


def test_a_file_of_one_format_behind_anothers_first_bytes() -> None:
    refused(b"BM" + PNG, "BMP data")
    refused(encode(PICTURE, "GIF")[:20] + PNG, "GIF data|too many pixels")


@pytest.mark.parametrize("encoder", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_only_the_decoder_that_the_first_bytes_name_sees_a_file(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Image.open
    offered: list[Any] = []

    def spy(file: Any, formats: Any = None) -> Image.Image:
        offered.append(formats)
        return real(file, formats=formats)

    data = encode(PICTURE, encoder)
    monkeypatch.setattr(Image, "open", spy)
    open_image(data)
    assert offered == [(encoder,)]


def test_phones_of_100_megapixels_pass_the_size_check() -> None:
    for width, height in ((8064, 6048), (11656, 8742)):
        # Only the header is made: what stops it is the missing rows, not the size.
        refused(_png(width, height), "PNG data .* cannot be decoded")


def test_limits_hold_for_every_kind_of_source() -> None:
    small = MediaLimits(max_pixels=1199)
    for source in (PNG, PICTURE, PIXELS, BASE64, encode(PICTURE, "TIFF")):
        refused(source, "40 x 30 pixels, too large; at most 1199 pixels are decoded", small)
    assert same(open_image(PNG, limits=MediaLimits(max_pixels=1200)))
    short = MediaLimits(max_bytes=len(PNG) - 1)
    for data in (PNG, io.BytesIO(PNG), BASE64):
        refused(data, f"more than {len(PNG) - 1} bytes", short)
    assert same(open_image(PNG, limits=MediaLimits(max_bytes=len(PNG))))
    refused("A" * 10_000, "base64 of 10000 characters; at most 99 bytes", MediaLimits(max_bytes=99))


def test_an_endless_file_is_read_up_to_the_limit_only() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    endless = Endless()
    refused(endless, "more than 5000000 bytes", MediaLimits(max_bytes=5_000_000))
    assert endless.given == 5_000_001


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(OptionError, match="must be positive, got 0 and"):
        MediaLimits(max_bytes=0)
    with pytest.raises(OptionError, match=r"must be positive, got .* and -1"):
        MediaLimits(max_pixels=-1)


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RecursionError(),
        struct.error("unpack"),
        TypeError("<_io.BytesIO object at 0x7f0011223344>"),
        UserWarning("w"),
        binascii.Error("b"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_any_fault_of_a_decoder_is_one_media_error(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise fault

    monkeypatch.setattr(Image, "open", broken)
    refused(PNG, "PNG data of .* cannot be decoded; it is damaged")


@given(st.integers(0, len(PNG) - 1), st.integers(0, 255), st.sampled_from(["PNG", "GIF", "TIFF"]))
def test_a_changed_byte_gives_a_picture_or_a_media_error(place: int, value: int, name: str) -> None:
    data = bytearray(encode(PICTURE.resize((16, 12)), name))
    data[place % len(data)] = value
    try:
        assert open_image(bytes(data)).mode == "RGB"
    except MediaError as error:
        assert "0x" not in str(error)
        assert "\n" not in str(error)


def test_importing_media_imports_no_http_client_and_no_mlx() -> None:
    # The package's own __init__ is left out: it imports the whole runtime.
    code = (
        "import sys, types\n"
        "sys.modules['mlx_qwenvl'] = package = types.ModuleType('mlx_qwenvl')\n"
        f"package.__path__ = [{str(Path(media.__file__).parents[1])!r}]\n"
        "import mlx_qwenvl.inputs.media, mlx_qwenvl.inputs.image\n"
        "heavy = {'httpx2', 'httpcore2', 'ssl', 'http.client', 'mlx', 'pillow_heif'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_of_one_request_share_a_budget() -> None:
    budget = MediaBudget(max_bytes=2 * len(PNG) + 5, max_pixels=3000, fetch_s=1)
    limits = MediaLimits(budget=budget)
    assert same(open_image(PNG, limits=limits))
    assert same(open_image(BASE64, limits=limits))
    assert (budget.bytes_left, budget.pixels_left) == (5, 600)
    refused(PNG, f"more than {2 * len(PNG) + 5} bytes together", limits)
    limits = MediaLimits(budget=MediaBudget(10**6, 2399, 1))
    assert same(open_image(PIXELS, limits=limits))
    refused(PNG, "more than 2399 pixels together", limits)


def test_urls_of_one_request_share_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = pytest.importorskip("mlx_qwenvl.inputs.fetch")
    clock = iter(range(0, 1000, 3))  # each look at it is 3 seconds later
    monkeypatch.setattr("mlx_qwenvl.inputs.source.time.monotonic", lambda: float(next(clock)))
    asked: list[Any] = []

    def fake(url: str, *, limits: Any) -> bytes:
        asked.append((limits.max_bytes, limits.deadline_s))
        return PNG

    monkeypatch.setattr(fetch, "fetch", fake)
    limits = MediaLimits(budget=MediaBudget(2 * len(PNG), 10**6, 5.0))
    for _ in range(2):
        assert same(open_image("http://e.com/a.png", limits=limits))
    refused("http://e.com/a.png?key=1", "^http://e.com/a.png: the time for fetching", limits)
    assert asked == [(2 * len(PNG), 5.0), (len(PNG), 2.0)]


# --- files under a folder -----------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures beside a secret one, with links of every kind."""
    folder, outside = tmp_path / "pictures", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "a.png", folder / "sub" / "b.png", outside / "secret.png"):
        path.write_bytes(PNG)
    (folder / "in.png").symlink_to("sub/b.png")
    (folder / "to sub").symlink_to(folder / "sub", target_is_directory=True)
    (folder / "out.png").symlink_to(outside / "secret.png")
    (folder / "gone.png").symlink_to(outside / "gone.png")
    (folder / "out").symlink_to(outside, target_is_directory=True)
    (folder / "loop").symlink_to("loop")
    (folder / "device").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo")
    (tmp_path / "pictures2").mkdir()
    (tmp_path / "pictures2" / "c.png").write_bytes(PNG)
    return folder


def test_files_inside_the_root_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = MediaLimits(root=root)
    monkeypatch.chdir(root.parent)  # no matter
    names = ["a.png", "./a.png", "sub/b.png", "sub/../a.png", "in.png", "to sub/b.png"]
    names += [str(root / "a.png"), (root / "a.png").as_uri(), "file:a.png", " a.png\n"]
    for name in names:
        assert same(open_image(name, limits=limits)), name
    assert same(open_image(BASE64, limits=limits))
    (root.parent / "link").symlink_to(root, target_is_directory=True)
    assert same(open_image("a.png", limits=MediaLimits(root=root.parent / "link")))


@pytest.mark.parametrize(
    "name",
    ["../outside/secret.png", "../outside/gone.png", "../pictures2/c.png",
     "{top}/outside/secret.png", "{top}/outside/gone.png", "{top}/pictures2/c.png", "file://{top}/outside/secret.png",
     "file:///%2e%2e/etc/passwd", "out.png", "gone.png", "out/secret.png", "out/gone.png", "loop",
     "loop/a.png", "device", "fifo", "sub", ".", "..", "/", "/etc/passwd", "/dev/zero",
     "/dev/stdin", "~/a.png", "missing.png", "a.png/x", "nul\0.png", "a" * 300,
     "/proc/self/environ", "{top}/pictures/../outside/secret.png", "//etc/passwd",
     "sub/../../outside/secret.png"],
)  # fmt: skip
def test_files_outside_are_refused_as_if_they_were_not_there(root: Path, name: str) -> None:
    path = name.format(top=root.parent)
    with pytest.raises(MediaError) as caught:
        open_image(path, limits=MediaLimits(root=root))
    message = str(caught.value)
    assert message.endswith("is no file in the folder that was given by --image-root"), message
    assert str(root.parent) in path or str(root.parent) not in message


def test_a_path_that_is_too_long_is_no_path(root: Path) -> None:
    refused("a/" * 600, "names no picture", MediaLimits(root=root))


def test_the_way_to_allow_files_is_told(root: Path) -> None:
    limits = MediaLimits(local_files=False, files_hint="ask for it")
    for name in ("a.png", str(root / "a.png"), (root / "a.png").as_uri(), "/etc/passwd"):
        refused(name, "; ask for it$", limits)


def test_urls_are_fetched_within_both_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = pytest.importorskip("mlx_qwenvl.inputs.fetch")
    asked: list[tuple[str, Any]] = []

    def fake(url: str, *, limits: Any) -> bytes:
        asked.append((url, limits))
        return PNG[:50] if "broken" in url else PNG

    monkeypatch.setattr(fetch, "fetch", fake)
    own = fetch.FetchLimits(deadline_s=7, max_bytes=5000)
    assert same(open_image(" HTTPS://example.com/a.png\n"))
    assert same(open_image("http://e.com/a", limits=MediaLimits(max_bytes=9000, fetch=own)))
    assert same(open_image("http://e.com/a", limits=MediaLimits(max_bytes=4000, fetch=own)))
    assert [url for url, _ in asked[:2]] == ["HTTPS://example.com/a.png", "http://e.com/a"]
    assert [limits.max_bytes for _, limits in asked] == [64 * 2**20, 5000, 4000]
    assert asked[1][1].deadline_s == 7
    refused("http://me:pw@e.com/broken.png?key=1", "^http://e.com/broken.png: PNG data")
