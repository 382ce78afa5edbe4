"""inputs/video_file.py: where videos come from, and what they may cost on the way."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl.errors import MediaError
from mlx_qwenvl.inputs import fetch
from mlx_qwenvl.inputs.fetch import FetchLimits
from mlx_qwenvl.inputs.source import DEFAULT_LIMITS, MediaBudget, MediaLimits, VideoLimits
from mlx_qwenvl.inputs.video_file import FETCH_BYTES, FETCH_S, check_video, open_video

DATA = b"\0\0\0\x18ftypmp42" + bytes(100)


def read(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[bytes, str]:
    with open_video(source, limits) as (file, name):
        file.seek(0)
        return file.read(), name


def test_a_file_on_disk_is_opened_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(DATA)
    for source in (path, str(path), f"file://{path}"):
        with open_video(source, MediaLimits()) as (file, name):
            assert not isinstance(file, io.BytesIO)
            assert name == str(path)
            file.seek(0)
            assert file.read() == DATA
        assert file.closed


def test_an_open_file_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        assert read(file) == (DATA, str(path))
        assert not file.closed


def test_a_pipe_is_read_as_far_as_it_may_be() -> None:
    def piped() -> Any:
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as sink:
            sink.write(DATA)
        return os.fdopen(reading, "rb")

    with piped() as pipe:
        assert read(pipe)[0] == DATA
    with piped() as pipe:
        short = MediaLimits(video=VideoLimits(max_bytes=10))
        assert len(read(pipe, short)[0]) == 11  # one more, which is refused where it is decoded


@pytest.mark.parametrize("source", [5, None, io.StringIO("text")], ids=["int", "None", "text"])
def test_what_holds_no_video_is_refused(source: Any) -> None:
    with pytest.raises(MediaError, match=r"as a video|as a binary file"):
        read(source)


def test_urls_have_the_limits_of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FetchLimits] = []

    def fetched(url: str, *, limits: FetchLimits) -> bytes:
        asked.append(limits)
        return DATA

    monkeypatch.setattr(fetch, "fetch", fetched)
    url = "https://video.example/clip.mp4?key=1"
    assert read(url) == (DATA, "https://video.example/clip.mp4")
    assert (asked[0].max_bytes, asked[0].deadline_s) == (FETCH_BYTES, FETCH_S)
    # A server's own rules on the way hold; only the size is that of a video.
    own = FetchLimits(deadline_s=5, max_bytes=10, use_proxy=False)
    read(url, MediaLimits(fetch=own, video=VideoLimits(max_bytes=5000)))
    assert (asked[1].max_bytes, asked[1].deadline_s, asked[1].use_proxy) == (5000, 5, False)


def test_a_video_counts_among_the_bytes_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(DATA)
    budget = MediaBudget(150, 10, 10)
    read(path, MediaLimits(budget=budget))
    with pytest.raises(MediaError, match="more than 150 bytes together"):
        read(DATA, MediaLimits(budget=budget))


def test_checking_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

    def fetched(url: str, *, limits: FetchLimits) -> bytes:
        raise AssertionError("a URL was opened")

    monkeypatch.setattr(fetch, "fetch", fetched)
    check_video("https://video.example/clip.mp4")
    with pytest.raises(MediaError, match="names no video"):
        check_video("a playlist of sorts, " * 40)
