"""inputs/film.py: videos that are made here, decoded frame by frame; every bad one."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_qwenvl.errors import MediaError, OptionError
from mlx_qwenvl.inputs import film as film_module
from mlx_qwenvl.inputs.film import read_film
from mlx_qwenvl.inputs.frames import VideoBudget
from mlx_qwenvl.inputs.image import ImageGeometry
from mlx_qwenvl.inputs.source import VideoLimits
from mlx_qwenvl.inputs.video import VideoPatches

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

import av

from tests.films import elsewhere, film, index_first, number_of, sound, turned

GEOMETRY = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)
LIMITS = VideoLimits()
BUDGET = VideoBudget(min_pixels=56 * 56, max_pixels=112 * 112)


def read(data: bytes, budget: VideoBudget = BUDGET, limits: VideoLimits = LIMITS) -> VideoPatches:
    return read_film(io.BytesIO(data), "clip", GEOMETRY, budget, limits)


def numbers(video: VideoPatches) -> list[int]:
    return [number_of(frame) for frame in video.to_images()]


def refused(data: bytes, match: str, limits: VideoLimits = LIMITS) -> None:
    with pytest.raises(MediaError, match=match) as caught:
        read(data, limits=limits)
    assert str(caught.value).startswith("clip: ")
    assert "\n" not in str(caught.value)


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("matroska", "libx264"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
        ("mpeg", "mpeg2video"),
    ],
)
def test_every_container_gives_the_frames_of_the_reference(container: str, codec: str) -> None:
    rate = 25 if codec == "mpeg2video" else 10
    video = read(film(30, rate=rate, container=container, codec=codec))
    count = 6 if rate == 10 else 4
    assert numbers(video) == [index * 30 // count for index in range(count)]
    np.testing.assert_allclose(
        video.frame_times, [index * 30 // count / rate for index in range(count)], atol=2e-3
    )
    assert video.grid_thw[0] == count // 2
    assert video.seconds_per_grid == pytest.approx(2 * (30 / rate) / count, rel=0.01)
    assert video.source_size == (64, 48)


def test_a_moving_picture_is_a_video() -> None:
    frames = [Image.new("RGB", (64, 48), (index * 8, 100, 100)) for index in range(30)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert numbers(read(file.getvalue())) == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("group", [1, 4, 30])
def test_stretches_that_are_not_decoded_do_not_change_the_frames(group: int) -> None:
    """With frames that are shown before the key frame that they follow in the file."""
    data = film(30, group=group)
    sparse = VideoBudget(fps=0.7, min_frames=2, min_pixels=3136, max_pixels=12544)
    every = VideoBudget(fps=10, min_pixels=3136, max_pixels=12544)
    assert numbers(read(data, sparse)) == [0, 15]
    assert numbers(read(data, every)) == list(range(30))


def test_stretches_of_which_nothing_is_taken_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded = []
    whole = film_module._Reading._decoded

    def counting(self: Any, index: Any, wanted: Any) -> Any:
        for frame in whole(self, index, wanted):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(film_module._Reading, "_decoded", counting)
    read(film(300, group=10), VideoBudget(n_frames=2, min_pixels=3136, max_pixels=12544))
    assert 2 <= len(decoded) <= 40


def test_a_video_of_uneven_rate_goes_by_its_times() -> None:
    # Ten frames in the first second, then two that stay for two seconds each.
    times = [*range(0, 1000, 100), 1000, 3000]
    video = read(film(12, times=times, container="matroska"))
    # At 0, 1/2, 1, ... seconds; how long the last one stays nobody says.
    assert numbers(video)[:6] == [0, 5, 10, 10, 10, 10]
    assert video.frame_times[:4] == pytest.approx([0, 0.5, 1, 1], abs=0.05)


def test_frames_that_do_not_begin_at_zero_are_timed_from_the_first() -> None:
    video = read(film(20, container="mpegts"))
    assert video.frame_times[0] == 0


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_frames_are_turned_upright(
    matrix: tuple[int, int, int, int], turn: Image.Transpose | None
) -> None:
    file = io.BytesIO()
    quarters = Image.new("RGB", (112, 56), "black")
    quarters.paste("white", (0, 0, 56, 28))
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 112, 56, "yuv420p"
        for _ in range(4):
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.asarray(quarters), format="rgb24"))
            )
        output.mux(stream.encode(None))
    video = read(turned(file.getvalue(), matrix))
    expected = quarters if turn is None else quarters.transpose(turn)
    assert video.source_size == expected.size
    difference = np.abs(np.asarray(video.to_images()[0], int) - np.asarray(expected, int))
    assert difference.mean() < 8


def test_one_frame_is_taken_twice_over() -> None:
    video = read(film(1))
    assert video.grid_thw[0] == 1
    assert numbers(video) == [0]


def test_three_frames_are_two_as_in_the_reference() -> None:
    assert numbers(read(film(3))) == [0, 1]


def test_frames_are_sized_by_what_all_may_keep() -> None:
    budget = VideoBudget(
        fps=10, min_pixels=56 * 56, max_pixels=112 * 112, total_pixels=15 * 56 * 90
    )
    video = read(film(30, size=(168, 112)), budget)
    assert video.size == (84, 56)
    assert video.grid_thw == (15, 4, 6)


# --- what lies, and what is broken --------------------------------------------------------------


def test_a_header_that_claims_an_hour_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(film(30, container="matroska"))
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes, in milliseconds
    data[at : at + 8] = struct.pack(">d", 3_600_000.0)
    with caplog.at_level(logging.WARNING):
        video = read(bytes(data))
    assert numbers(video) == [0, 5, 10, 15, 20, 25]
    assert "says that it has 3600.0 s and has frames of 3.0 s" in caplog.text


def test_a_header_that_claims_nothing_is_not_believed_either() -> None:
    data = bytearray(film(30))
    at = data.index(b"mvhd") + 4 + 16
    data[at : at + 4] = bytes(4)
    assert numbers(read(bytes(data))) == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_truncated_download_is_refused(share: float) -> None:
    data = index_first(film(60, size=(320, 240)))
    assert numbers(read(data)) == [5 * index % 30 for index in range(12)]
    refused(data[: int(len(data) * share)], "is truncated")


def test_an_mp4_without_its_index_is_refused() -> None:
    data = film(60, size=(320, 240))
    refused(data[: len(data) // 2], "damaged or truncated")


def test_a_recording_that_broke_off_is_read_as_far_as_it_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = film(60, size=(320, 240), container="matroska")
    with caplog.at_level(logging.WARNING):
        video = read(data[: len(data) // 2])
    assert 2 <= len(video.frame_times) < 12
    assert "says that it has 6.0 s" in caplog.text


@pytest.mark.parametrize("seed", range(12))
def test_damage_ends_in_an_answer_or_in_one_line(seed: int) -> None:
    source = np.random.default_rng(seed)
    kinds = [("mp4", "libx264"), ("matroska", "libvpx"), ("avi", "mpeg4"), ("mpegts", "libx264")]
    container, codec = kinds[seed % 4]
    data = bytearray(film(30, container=container, codec=codec, size=(160, 96)))
    for at in source.integers(16, len(data), size=1 + len(data) // 200):
        data[at] = source.integers(256)
    try:
        video = read(bytes(data))
    except MediaError as error:
        assert str(error).startswith("clip: ")
    else:
        assert len(video.frame_times) >= 1


def test_a_video_without_frames_is_refused() -> None:
    data = film(1, container="matroska")
    clusters = data.index(b"\x1f\x43\xb6\x75")
    refused(data[:clusters], "damaged or truncated")


def test_sound_alone_is_refused() -> None:
    refused(sound(), "has no stream of pictures, 1 of sound")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", "looks like a playlist; expected MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "looks like a list of files; expected MP4"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "looks like text; expected MP4"),
        (b"<MPD><Period/></MPD>", "looks like text; expected MP4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG picture, which is given as an image"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "is a HEIF picture"),
        (bytes(200), "looks like no known format"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "expected MP4, QuickTime"),
        (b"\x1a\x45\xdf\xa3" + bytes(300), "damaged or truncated"),
        (b"\0\0\0\x18ftypmp42" + bytes(300), "damaged or truncated|no stream of pictures"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_what_is_no_video_is_refused(data: bytes, match: str) -> None:
    refused(data, match)


def test_an_mp4_that_points_at_another_file_does_not_have_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = film(30)
    (tmp_path / "other.mp4").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    refused(elsewhere(data, "other.mp4"), "has no frames")
    # FFmpeg would do it if it was asked to, from a path.
    (tmp_path / "pointing.mp4").write_bytes(elsewhere(data, "other.mp4"))
    with av.open("pointing.mp4", options={"enable_drefs": "1"}) as container:
        assert len(list(container.decode(video=0))) == 30


def test_an_uncommon_codec_is_refused() -> None:
    refused(film(5, codec="ffv1", container="matroska"), "is encoded as ffv1; expected one of av1")


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"max_bytes": 100}, "has more than 100 bytes"),
        ({"max_seconds": 1.5}, r"is longer than 1.5 s"),
        ({"max_frames": 20}, "has more than 20 frames"),
        ({"max_pixels": 64 * 47}, "is 64 x 48 pixels, too large; at most 3008 pixels a frame"),
        ({"work_s": 1e-9}, "reading it takes longer than 1e-09 s"),
    ],
    ids=str,
)
def test_limits_end_the_work(limits: dict[str, float], match: str) -> None:
    refused(film(30), match, VideoLimits(**limits))  # type: ignore[arg-type]


def test_limits_that_nothing_meets_are_refused() -> None:
    with pytest.raises(OptionError, match="work_s is 0, expected a number above 0"):
        VideoLimits(work_s=0)


def test_a_long_video_ends_at_the_limit_without_being_read_to_its_end() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.taken += len(data)
            return data

    data = film(1500, container="matroska", codec="mpeg4", group=1)
    with pytest.raises(MediaError, match="more than 10 frames"):
        read_film(Counting(data), "clip", GEOMETRY, BUDGET, VideoLimits(max_frames=10))
    assert Counting.taken < len(data) / 2


def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    """Peak of a process for a video of some frames, and of one with twenty times as many."""
    program = textwrap.dedent(
        """
        import resource, sys
        from mlx_qwenvl.inputs.film import read_film
        from mlx_qwenvl.inputs.frames import VideoBudget
        from mlx_qwenvl.inputs.image import ImageGeometry
        from mlx_qwenvl.inputs.source import VideoLimits
        budget = VideoBudget(n_frames=8, min_pixels=3136, max_pixels=12544)
        with open(sys.argv[1], "rb") as file:
            read_film(file, "clip", ImageGeometry(14, 2, 2), budget, VideoLimits())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    peaks = []
    for frames in (60, 1200):
        path = tmp_path / f"{frames}.mkv"
        path.write_bytes(
            film(frames, size=(320, 240), container="matroska", codec="mpeg4", group=250)
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    # In kilobytes on Linux and in bytes on a Mac; all frames decoded would be 138 MB.
    assert peaks[1] < 1.25 * peaks[0]


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    refused(b"\0\0\0\x18ftypmp42", r"one more package: pip install 'mlx-qwenvl\[video\]'")


@pytest.mark.parametrize("version", ["14.0.0", "17.0.1", "9.2"])
def test_a_pyav_that_crashes_is_not_used(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(av, "__version__", version)
    refused(film(1), rf"PyAV {version} can crash on a damaged video, 17\.1 does not")
