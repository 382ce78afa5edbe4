"""A video file -> the frames that are taken of it, decoded one by one.

FFmpeg, through PyAV, is given an open file and the one container and decoder that its first bytes
and its stream name, so nothing in a file can have another file or a URL opened. It is gone through
twice: once without decoding, to learn when each frame is really shown, whatever its header says;
then decoded, but for the stretches between two key frames of which nothing is taken. Of a video of
any length no more is held than the packet and the frame at hand, what was cut so far, and some
bytes for each frame's time.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs.film_index import FilmIndex, Stretch, unrounded
from mlx_qwenvl.inputs.frames import VideoBudget, moments_to_take
from mlx_qwenvl.inputs.image import ImageGeometry
from mlx_qwenvl.inputs.pyav import pyav
from mlx_qwenvl.inputs.sniff import EXPECTED_VIDEO, container_of, format_of, is_text, looks_like
from mlx_qwenvl.inputs.source import VideoLimits
from mlx_qwenvl.inputs.upright import upright
from mlx_qwenvl.inputs.video import FrameCutter, VideoPatches

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["check_film", "read_film"]

log = logging.getLogger(__name__)

HEAD = 4096  # bytes of a file that tell what it is
THREADS = 4  # for decoding; more hold more frames at a time
SAID_LONGER = 1.2  # times what there is, from which a header's duration is worth a word
# By the names of their formats; each has been decoded in FFmpeg for years.
CODECS = frozenset(
    {"av1", "gif", "h263", "h264", "hevc", "mjpeg"}
    | {"mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"}
)


def read_film(
    file: BinaryIO, name: str, geometry: ImageGeometry, budget: VideoBudget, limits: VideoLimits
) -> VideoPatches:
    """Take frames of an encoded video.

    Args:
        file: Open at any place, and seekable.
        name: Of it, for messages.
        geometry: How the checkpoint cuts.
        budget: How densely to sample, and how many pixels to keep.
        limits: What it may cost.

    Raises:
        MediaError: It is no video, damaged, truncated, without frames or beyond a limit; or PyAV
            is not installed.
    """
    reading = _Reading(file, name, limits)
    index = reading.index()
    depth = geometry.temporal_patch_size
    moments = moments_to_take(
        [index.seconds(ticks) for ticks in index.shown], index.length, budget, depth
    )
    wanted = [index.ticks(moment) for moment in moments]
    cutter: FrameCutter | None = None
    for at, frame in enumerate(reading.frames(index, wanted)):
        if cutter is None:
            cutter = FrameCutter(frame.size, len(wanted), geometry, budget)
        cutter.take(frame, float(index.since_first(moments[at])))
    if cutter is None:
        raise MediaError(f"{name}: none of its {len(index.shown)} frames can be decoded")
    return cutter.finish(depth * float(index.length) / len(wanted))


def check_film(file: BinaryIO, name: str) -> None:
    """See that a file begins as a video does and that something here can decode one.

    Raises:
        MediaError: It does not, or there is nothing.
    """
    pyav(name)
    _container(file, name)


class _Reading:
    """A file while it is read.

    Args:
        file: The file.
        name: Of it.
        limits: What it may cost.
    """

    def __init__(self, file: BinaryIO, name: str, limits: VideoLimits) -> None:
        self._file, self._name, self._limits = file, name, limits
        self._av = pyav(name)
        self._deadline = time.monotonic() + limits.work_s
        if file.seek(0, io.SEEK_END) > limits.max_bytes:
            raise MediaError(f"{name}: has more than {limits.max_bytes} bytes")
        self._container = _container(file, name)

    def index(self) -> FilmIndex:
        """When each frame is shown, by going through the packets without decoding them."""
        limits, shown, stretches = self._limits, list[int](), list[Stretch]()
        end = 0  # when the last frame is over
        with self._opened() as (container, stream):
            tick = stream.time_base
            assert tick is not None, "a stream of an open file counts time"
            rate = stream.average_rate or None
            most = limits.max_seconds / tick
            said = container.duration
            for packet in container.demux(stream):
                self._check_time()
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.is_corrupt:
                    raise MediaError(f"{self._name}: is truncated; a frame of it is cut off")
                at = packet.pts if packet.pts is not None else packet.dts
                if at is None:
                    at = shown[-1] + 1 if shown else 0
                if packet.is_keyframe or not stretches:
                    stretches.append(Stretch(len(shown), at, at, at))
                stretch = stretches[-1]
                stretch.first, stretch.last = min(stretch.first, at), max(stretch.last, at)
                end = max(end, at + (packet.duration or 0))
                shown.append(at)
                if len(shown) > limits.max_frames:
                    raise MediaError(
                        f"{self._name}: has more than {limits.max_frames} frames, the most to read"
                    )
                if at - stretches[0].first > most:
                    raise MediaError(
                        f"{self._name}: is longer than {limits.max_seconds:g} s, the most to read"
                    )
        if not shown:
            raise MediaError(f"{self._name}: has no frames")
        shown.sort()
        # The last frame stays for as long as the others do, or longer where the file says so.
        step = Fraction(shown[-1] - shown[0], max(len(shown) - 1, 1))
        length = max(shown[-1] - shown[0] + step, Fraction(end - shown[0])) * tick
        if rate is not None:
            length = unrounded(length, rate, 2 * tick)  # both of its ends are rounded
        if said is not None and said > SAID_LONGER * float(length) * self._av.time_base:
            log.warning(
                "%s: says that it has %.1f s and has frames of %.1f s",
                *(self._name, said / self._av.time_base, float(length)),
            )
        return FilmIndex(shown, tick, length, stretches, rate)

    def frames(self, index: FilmIndex, wanted: list[int]) -> Iterator[Image.Image]:
        """The frame on display at each wanted tick, upright and in RGB, in order."""
        waiting = list(reversed(wanted))
        before: av.VideoFrame | None = None
        at = index.shown[0] - 1
        for frame in self._decoded(index, wanted):
            times = (frame.pts, frame.dts, at + 1)
            at = next(time for time in times if time is not None)
            while before is not None and waiting and waiting[-1] < at:
                waiting.pop()
                yield self._upright(before)
            before = frame
            if not waiting:
                return
        if before is not None:
            for _ in waiting:
                yield self._upright(before)

    def _decoded(self, index: FilmIndex, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Frames of the stretches of which one is wanted, in the order of display."""
        needed, number, at = index.needed(wanted), -1, -1
        skipped = False
        with self._opened() as (container, stream):
            decoder = stream.codec_context
            for packet in container.demux(stream):
                self._check_time()
                if packet.size and not packet.is_discard:
                    number += 1
                    if at + 1 < len(needed) and number == index.stretches[at + 1].packet:
                        at += 1
                        if skipped and needed[at]:
                            yield from decoder.decode(None)
                            decoder.flush_buffers()
                            skipped = False
                if at >= 0 and not needed[at]:
                    skipped = True
                    if not any(needed[at:]):
                        break
                elif packet.size:
                    yield from decoder.decode(packet)
            yield from decoder.decode(None)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The file's video, in a container of the kind that it is, from its beginning."""
        self._file.seek(0)
        with self._one_fault():
            # No probing of other kinds, and no protocol by which one could lead elsewhere.
            container = self._av.open(
                self._file,
                format=self._container,
                options={"protocol_whitelist": "none", "format_whitelist": self._container},
            )
            with container:
                yield container, self._stream(container)

    def _stream(self, container: InputContainer) -> VideoStream:
        """The stream of pictures that move, ready to be decoded."""
        moving = [
            stream
            for stream in container.streams.video
            if not stream.disposition & self._av.stream.Disposition.attached_pic
        ]
        if not moving:
            sounds = len(container.streams.audio)
            found = f"{sounds} of sound" if sounds else "none that is known"
            raise MediaError(f"{self._name}: has no stream of pictures, {found}")
        stream = moving[0]
        decoder, limits = stream.codec_context, self._limits
        codec = "an unknown codec" if decoder is None else decoder.codec.canonical_name
        if codec not in CODECS:
            known = ", ".join(sorted(CODECS))
            raise MediaError(f"{self._name}: is encoded as {codec}; expected one of {known}")
        width, height = decoder.width, decoder.height
        if width < 1 or height < 1:
            raise MediaError(f"{self._name}: has no pixels ({width} x {height})")
        self._check_size(width, height)
        # A stream may change its size on the way.
        decoder.options = {"max_pixels": str(limits.max_pixels)}
        decoder.thread_type = "AUTO"
        decoder.thread_count = THREADS
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            most = f"at most {self._limits.max_pixels} pixels a frame are decoded"
            raise MediaError(f"{self._name}: is {width} x {height} pixels, too large; {most}")

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise MediaError(
                f"{self._name}: reading it takes longer than {self._limits.work_s:g} s"
            )

    def _upright(self, frame: av.VideoFrame) -> Image.Image:
        self._check_size(frame.width, frame.height)
        return upright(frame)

    @contextmanager
    def _one_fault(self) -> Iterator[None]:
        """Turns whatever FFmpeg reports into one MediaError, without its words."""
        try:
            yield
        except MediaError:
            raise
        except Exception as error:  # FFmpeg's own, and what PyAV makes of odd streams
            raise MediaError(
                f"{self._name}: cannot be decoded; it is damaged or truncated"
            ) from error


def _container(file: BinaryIO, name: str) -> str:
    """FFmpeg's name of the container that a file's first bytes are of."""
    file.seek(0)
    head = file.read(HEAD)
    container = container_of(head)
    if container is None:
        raise MediaError(f"{name}: {_seems(head)}; expected {EXPECTED_VIDEO}")
    return container


def _seems(head: bytes) -> str:
    picture = format_of(head)
    if picture is not None:
        return f"is a {picture} picture, which is given as an image"
    if not head:
        return "is empty (0 bytes)"
    return f"looks like {looks_like(head) or ('text' if is_text(head) else 'no known format')}"
