"""Videos that tests make themselves, each frame of a colour that tells its number."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

LEVELS = 8  # steps of red between two frames, which survive encoding


def number_of(frame: Image.Image) -> int:
    """Which frame it is, of the first 30."""
    red = np.asarray(frame)[..., 0].mean()
    return round(float(red) / LEVELS)


def film(
    frames: int = 30,
    *,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    container: str = "mp4",
    group: int = 10,
    times: Sequence[int] = (),
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode a video.

    Args:
        frames: How many it has.
        rate: Of them a second.
        size: (width, height).
        codec: FFmpeg's name of an encoder.
        container: FFmpeg's name of a muxer.
        group: Frames from one key frame to the next.
        times: When each frame is shown, in milliseconds, in place of the rate.
        options: Of the muxer.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = group
        stream.bit_rate = 4_000_000
        stream.thread_count = 1
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 100, np.uint8)
            pixels[..., 0] = index % 30 * LEVELS
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sound() -> bytes:
    """An MP4 that holds sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 with (a, b, c, d) in the display matrix of its track."""
    at = data.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def elsewhere(data: bytes, path: str) -> bytes:
    """The same MP4 with its frames in another file, which a Macintosh alias names."""
    at = data.index(b"dref") + 12
    (length,) = struct.unpack(">I", data[at : at + 4])
    name = path.encode()
    record = bytes(10) + b"\0" + bytes(27) + bytes(12) + b"\0" + bytes(63) + bytes(16)
    record += struct.pack(">HH", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2)
    record += struct.pack(">HH", 0xFFFF, 0) + bytes(150)
    alias = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    changed = bytearray(data[:at] + alias + data[at + length :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = changed.index(box) - 4
        (size,) = struct.unpack(">I", changed[place : place + 4])
        changed[place : place + 4] = struct.pack(">I", size + len(alias) - length)
    return bytes(changed)


def index_first(data: bytes) -> bytes:
    """The same MP4 with its index before its frames, as it is made for the web."""
    boxes, at = {}, 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        boxes[kind], at = data[at : at + length], at + length
    moov = bytearray(boxes.pop(b"moov"))
    table = moov.index(b"stco") + 8
    for entry in range(struct.unpack(">I", moov[table : table + 4])[0]):
        place = table + 4 + 4 * entry
        (offset,) = struct.unpack(">I", moov[place : place + 4])
        moov[place : place + 4] = struct.pack(">I", offset + len(moov))
    return boxes.pop(b"ftyp") + bytes(moov) + b"".join(boxes.values())
