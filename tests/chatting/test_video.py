r"""`\video` in the chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.chatting.moving import moved
from mlx_qwenvl.chatting.session import videos_of
from mlx_qwenvl.chatting.talk import Talk
from tests.chatting.conftest import Recorder

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

from tests.films import film


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "my clip.mp4"
    path.write_bytes(film(30, size=(112, 84)))
    return path


def test_a_video_is_asked_about_and_remembered(talk: Talk, screen: Recorder, clip: Path) -> None:
    assert talk.take(f'\\video "{clip}" What happens?')
    assert screen.answers[0] and not screen.errors
    assert talk.take("And then?")
    assert talk.session.last is not None and talk.session.last.usage is not None
    usage = talk.session.last.usage
    assert usage.cached_tokens > usage.video_tokens == 36
    talk.take("\\images")
    assert screen.said[-1] == (
        "video 1: 6 frames of 3.0 s, 112 x 84 pixels, read as 112 x 84, 36 tokens"
    )


def test_a_video_without_a_question_is_described(talk: Talk, screen: Recorder, clip: Path) -> None:
    talk.take(f'/video "{clip}"')
    question = talk.session.last_question()
    assert talk.session.text_of(question) == "Describe this video."
    talk.take("\\retry")
    assert len(talk.session.videos()) == 1
    talk.take("\\edit What is it?")
    assert len(talk.session.videos()) == 1 and not screen.errors


def test_what_is_no_video_is_told(talk: Talk, screen: Recorder, tmp_path: Path) -> None:
    talk.take("\\video")
    talk.take("\\video nothing.mp4 What?")
    assert "\\video needs a video" in screen.errors[0]
    assert "nothing.mp4: no such file" in screen.errors[1]
    assert not talk.session.chat.messages


def test_a_saved_conversation_has_its_video(
    talk: Talk, screen: Recorder, clip: Path, tmp_path: Path
) -> None:
    talk.take(f'\\video "{clip}" What happens?')
    (before,) = talk.session.videos()
    talk.take(f"\\save {tmp_path / 'talk.json'}")
    talk.take("\\clear")
    clip.unlink()
    talk.take(f"\\load {tmp_path / 'talk.json'}")
    (after,) = talk.session.videos()
    assert not screen.errors
    assert after.digest == before.digest
    assert (after.frame_times, after.seconds_per_grid) == (
        before.frame_times,
        before.seconds_per_grid,
    )


def test_another_model_sees_the_same_frames(talk: Talk, clip: Path, tiny_folder: Path) -> None:
    talk.take(f'\\video "{clip}" What happens?')
    other: QwenVL = load(tiny_folder, dtype="float32")
    messages, _ = moved(talk.session, other)
    (cut,) = videos_of(messages)
    (seen,) = talk.session.videos()
    assert cut.frame_times == pytest.approx(seen.frame_times)
    assert cut.source_size == seen.source_size


def test_videos_that_wait_go_into_the_first_question_alone(
    talk: Talk, screen: Recorder, clip: Path
) -> None:
    talk.films.append(str(clip))
    talk.take("What happens?")
    talk.take("And then?")
    assert len(talk.session.videos()) == 1 and not screen.errors
    assert screen.read == [str(clip)]
