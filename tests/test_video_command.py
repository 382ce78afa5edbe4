"""`--video` on the command line, with the embedded model, which was never trained on videos."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.generate import main
from tests.command_lines import SHAPES

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

from tests.films import film, sound

BRIEF = ("--model", "demo", "--max-tokens", "4")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(film(30, size=(112, 84)))
    return path


def answered(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code = main([*map(str, arguments), *BRIEF, "--json"])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    reply: dict[str, Any] = json.loads(captured.out)
    return reply


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1) -> str:
    assert main([*map(str, arguments), *BRIEF]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_video_is_answered_on_stdout(
    clip: Path, capsys: pytest.CaptureFixture[str], demo: QwenVL
) -> None:
    reply = answered(capsys, "--video", clip)
    python = demo.generate("Describe this video.", videos=[clip], max_tokens=4)
    assert reply["text"] == python.text
    assert reply["usage"]["video_tokens"] == python.usage.video_tokens == 3 * 3 * 4
    assert python.videos[0].grid_thw[0] == 3


def test_videos_and_pictures_go_into_one_question(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = answered(capsys, "--image", SHAPES, "--video", clip, "--video", clip, "Compare them.")
    usage = reply["usage"]
    assert usage["video_tokens"] == 2 * 36
    assert usage["image_tokens"] > 0


def test_frames_are_as_many_as_is_said(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*options: str) -> int:
        count: int = answered(capsys, "--video", clip, *options)["usage"]["video_tokens"]
        return count

    patch = 3 * 4
    assert tokens("--fps", "4") == 6 * patch
    assert tokens("--n-frames", "10") == 5 * patch
    assert tokens("--fps", "8", "--max-frames", "5") == 2 * patch
    assert tokens("--max-pixels", "3136") == 3 * 2


def test_what_was_read_is_told(
    clip: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["--video", str(clip), *BRIEF, "--verbose"]) == 0
    assert "36 of videos" in capsys.readouterr().err
    read = "6 frames of 3.0 s, 112 x 84 pixels, read as 112 x 84, 36 tokens"
    assert f"video 1: {read}" in caplog.text


def test_what_is_no_video_is_told_before_a_model_is_loaded(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mlx_qwenvl.generate.load_model", loaded)
    assert "looks like text; expected MP4" in refused(capsys, "--video", _written(tmp_path, b"hi"))
    assert "is a PNG picture" in refused(capsys, "--video", SHAPES)
    assert "no such file" in refused(capsys, "--video", "nothing.mp4")
    assert "is a folder; expected a video file" in refused(capsys, "--video", tmp_path)
    assert "a pipe cannot be" in refused(capsys, "--video", "-", code=2)
    assert "an MP4 or QuickTime video" in refused(capsys, "--image", clip)
    both = refused(capsys, "--video", clip, "--fps", "1", "--n-frames", "4", code=2)
    assert "give one of them" in both


def test_sound_alone_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "--video", _written(tmp_path, sound()))
    assert "has no stream of pictures, 1 of sound" in error


def _written(folder: Path, data: bytes) -> Path:
    path = folder / "file.mp4"
    path.write_bytes(data)
    return path


def test_every_way_to_give_a_video_gives_the_same(clip: Path, demo: QwenVL) -> None:
    data = clip.read_bytes()
    text = base64.b64encode(data).decode()
    with clip.open("rb") as file:
        sources: list[Any] = [clip, str(clip), data, file, f"data:video/mp4;base64,{text}", text]
        told = {
            demo.generate("What?", videos=[source], max_tokens=1).videos[0].digest
            for source in sources
        }
    assert len(told) == 1
