"""Encoded pictures: good ones of every format, and changes that keep the rest of the file valid."""

from __future__ import annotations

import importlib
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from benchmarks.fuzz.mutate import EDGES, WIDE_EDGES, mutate_bytes
from benchmarks.fuzz.target import Broken, Target
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, image_patches
from mlx_qwenvl.inputs.media import MediaLimits, decode

LIMITS = MediaLimits(max_bytes=2**21, max_pixels=1_000_000, local_files=False, urls=False)
GEOMETRY, BUDGET = ImageGeometry(14, 2, 2), PixelBudget(3136, 28224)
SIZE = (36, 28)  # pixels
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
TIFF_ENTRY = 12  # bytes


def run(data: bytes) -> str:
    """Decode, and cut into patches."""
    image = decode(data, "the picture", LIMITS)
    if image.mode != "RGB" or image.width * image.height > LIMITS.max_pixels:
        raise Broken(f"gives a picture of mode {image.mode} and {image.size} pixels")
    patches = image_patches(image, GEOMETRY, BUDGET)
    if patches.patches.shape[0] != 4 * patches.n_tokens:
        raise Broken(f"gives {patches.patches.shape[0]} patches of {patches.n_tokens} tokens")
    return "picture"


def seeds() -> list[bytes]:
    """Pictures of all formats that are opened, in the forms that their decoders tell apart."""
    drawn = random.Random(0)
    rgb = Image.frombytes("RGB", SIZE, drawn.randbytes(SIZE[0] * SIZE[1] * 3))
    rgb = rgb.resize((7, 5)).resize(SIZE)
    more = [rgb.rotate(90 * k) for k in range(1, 4)]
    exif = Image.Exif()
    exif[274] = 6
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I", "F")}
    modes["I;16"] = modes["I"].convert("I;16")
    frames: dict[str, Any] = {"save_all": True, "append_images": more}
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((modes[m], "PNG", {}) for m in ("1", "L", "LA", "P", "RGBA", "I;16")),
        (rgb, "PNG", {"exif": exif, "dpi": (72, 72), "icc_profile": b"profile"}),
        (modes["P"], "PNG", {"transparency": 3}),
        (rgb, "PNG", frames),
        (rgb, "JPEG", {"exif": exif, "comment": b"comment"}),
        (rgb, "JPEG", {"progressive": True, "quality": 60}),
        *((modes[m], "JPEG", {}) for m in ("L", "CMYK")),
        (rgb, "WEBP", {}),
        (modes["RGBA"], "WEBP", {"lossless": True, "exif": exif}),
        (rgb, "WEBP", frames),
        (modes["P"], "GIF", {"transparency": 1}),
        (rgb, "GIF", {**frames, "loop": 0, "comment": b"comment"}),
        *((modes[m], "BMP", {}) for m in ("1", "L", "P", "RGBA")),
        *((modes[m], "TIFF", {}) for m in ("1", "P", "RGBA", "CMYK", "F", "I;16")),
        *((rgb, "TIFF", {"compression": c}) for c in ("tiff_lzw", "jpeg", "packbits")),
        (rgb, "TIFF", {**frames, "compression": "tiff_adobe_deflate", "exif": exif}),
        (modes["1"], "TIFF", {"compression": "group4"}),
    ]
    found = [_encoded(image, form, options) for image, form, options in forms]
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        return found
    for image in (rgb, modes["RGBA"]):
        buffer = io.BytesIO()
        heif.from_pillow(image).save(buffer)
        found.append(buffer.getvalue())
    return found


def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """A change that fits the format, or one that knows nothing of it, or both."""
    if drawn.random() < 0.6:
        if data.startswith(PNG):
            data = _mutate_png(drawn, data, other)
        elif data.startswith(JPEG):
            data = _mutate_jpeg(drawn, data)
        elif data[:2] in (b"II", b"MM"):
            data = _mutate_tiff(drawn, data)
        elif data[:4] == b"RIFF" or data[4:8] == b"ftyp":
            data = _mutate_boxes(drawn, data)
        if drawn.random() < 0.7:
            return data
    return mutate_bytes(drawn, data, other)


def _encoded(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks, as far as they are whole."""
    place = len(PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, all checksums right."""
    return PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _mutate_png(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    chunks = list(png_chunks(data))
    if not chunks:
        return data
    index = drawn.randrange(len(chunks))
    name, body = chunks[index]
    match drawn.randrange(6):
        case 0:
            chunks.insert(drawn.randrange(len(chunks) + 1), (name, body))
        case 1:
            del chunks[index]
        case 2 if other.startswith(PNG):
            theirs = list(png_chunks(other)) or chunks
            chunks.insert(index, drawn.choice(theirs))
        case 3:
            inner = zlib.compress(bytes(drawn.choice((10, 1000, 2**20, 2**23))))
            head = drawn.choice((b"key\0\0", b"key\0\1\0\0\0", b""))
            kind = drawn.choice((b"zTXt", b"iTXt", b"iCCP", b"IDAT", b"fdAT", b"eXIf"))
            chunks.insert(index, (kind, head + inner))
        case 4:
            chunks[0] = chunks[0][0], _edge(drawn, chunks[0][1], ">")
        case _:
            chunks[index] = name, mutate_bytes(drawn, body, other)
    return png_of(chunks)


def _mutate_jpeg(drawn: random.Random, data: bytes) -> bytes:
    """Change one segment's contents and set its length right, or its length alone."""
    place, segments = 2, []
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        segments.append((place, length))
        place += 2 + length
    if not segments:
        return data
    begin, length = drawn.choice(segments)
    head, body, rest = data[: begin + 2], data[begin + 4 : begin + 2 + length], data[begin + 2 :]
    if drawn.random() < 0.2:
        return head + struct.pack(">H", drawn.choice(WIDE_EDGES) % 2**16) + rest[2:]
    body = _edge(drawn, body, ">") if drawn.random() < 0.5 else mutate_bytes(drawn, body, body)
    return head + struct.pack(">H", (len(body) + 2) % 2**16) + body + rest[length:]


def _mutate_tiff(drawn: random.Random, data: bytes) -> bytes:
    """Change tag, type, count or value of one entry of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        return data
    (place,) = struct.unpack_from(f"{order}I", data, 4)
    if place + 2 > len(data):
        return data
    (count,) = struct.unpack_from(f"{order}H", data, place)
    entry = place + 2 + TIFF_ENTRY * drawn.randrange(count + 1)
    offset, size = drawn.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
    values = (*WIDE_EDGES, *range(254, 340), *range(13), len(data), place)
    value = drawn.choice(values) % 2 ** (8 * size)
    packed = struct.pack(f"{order}{'H' if size == 2 else 'I'}", value)
    return data[: entry + offset] + packed + data[entry + offset + size :]


def _mutate_boxes(drawn: random.Random, data: bytes) -> bytes:
    """Change a number that stands before or behind a name of four letters."""
    places = [i for i in range(4, len(data) - 8) if data[i : i + 4].isalnum()]
    if not places:
        return data
    place = drawn.choice(places) + drawn.choice((-4, 4, 8))
    value = drawn.choice((*WIDE_EDGES, len(data))) % 2**32
    packed = struct.pack(drawn.choice(("<I", ">I")), value)
    return data[:place] + packed + data[place + 4 :]


def _edge(drawn: random.Random, body: bytes, order: str) -> bytes:
    """A number or a byte of a short header becomes one at which things tend to break."""
    if not body:
        return body
    place = drawn.randrange(len(body))
    if drawn.random() < 0.5:
        return body[:place] + bytes([drawn.choice(EDGES)]) + body[place + 1 :]
    size, code = drawn.choice(((2, "H"), (4, "I")))
    place -= place % size
    packed = struct.pack(order + code, drawn.choice(WIDE_EDGES) % 2 ** (8 * size))
    return body[:place] + packed + body[place + size :]


PICTURES = Target("pictures", seeds, mutate, run)
