"""Qwen3-VL's videos through every door: the command line, the chat and the server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.batch import main as batch
from mlx_qwenvl.chatting.moving import moved
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.talk import Talk
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.generate import main
from mlx_qwenvl.inputs.film import read_film
from mlx_qwenvl.inputs.frames_shared import SharedBudget
from mlx_qwenvl.inputs.image import ImageGeometry
from mlx_qwenvl.inputs.media import DEFAULT_LIMITS
from server.engine import Engine
from server.settings import Settings
from tests.chatting.conftest import Recorder
from tests.golden.timed_videos import timed
from tests.golden.younger import write_younger
from tests.server.conftest import connected_to

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

from tests.films import film

GEOMETRY = ImageGeometry(patch_size=16, merge_size=2, temporal_patch_size=2)
CLIP = film(30, size=(128, 96))  # three seconds; 12 tokens a temporal patch
ROWS = [row for row in timed("qwen3_vl")["sampled"] if row["total"] in (17, 60)]
STAYS = [100 * index for index in range(10)] + [5000]  # ms; the last frame is long in coming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense member's tiny checkpoint."""
    return write_younger(tmp_path_factory.mktemp("doors"), "qwen3_vl")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The video as a file."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    return path


def told(vlm: QwenVL, session: Session) -> str:
    """The prompt of the conversation so far."""
    ids = vlm.prompt(session.chat.messages[:1], Options()).token_ids
    return vlm.tokenizer.decode(ids.tolist()).replace("<|video_pad|>", "")


def test_the_command_line_takes_frames_as_it_is_told(
    folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokens(*options: str) -> int:
        brief = ("--model", str(folder), "--max-tokens", "2", "--json")
        assert main(["--video", str(clip), *options, *brief]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        count: int = json.loads(captured.out)["usage"]["video_tokens"]
        return count

    assert tokens() == 3 * 12
    assert tokens("--fps", "1") == 2 * 12  # four frames at least
    assert tokens("--n-frames", "5") == 3 * 12  # the last one twice
    assert tokens("--fps", "9", "--max-frames", "7") == 4 * 12
    assert tokens("--max-pixels", "3072") == 3 * 2


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['total']} at {row['rate']}")
def test_a_files_frames_and_times_are_those_of_its_rate(
    row: dict[str, Any], container: str
) -> None:
    """Though Matroska rounds each frame's time to a millisecond, and a half may decide."""
    file = io.BytesIO(film(row["total"], rate=row["rate"], container=container))
    budget = SharedBudget(**row["asked"], min_pixels=1024)
    video = read_film(file, "clip", GEOMETRY, budget, DEFAULT_LIMITS.video)
    assert [round(moment * row["rate"]) for moment in video.frame_times] == row["indices"]
    assert [f"{moment:.1f}" for moment in video.timestamps] == row["times"]


def test_a_chat_keeps_a_videos_times(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "uneven.mp4").write_bytes(film(11, size=(128, 96), times=STAYS))
    vlm, screen = load(folder, dtype="float32"), Recorder()
    talk = Talk(Session(vlm, {"max_tokens": 3}), screen, load, can_edit=False)
    talk.take(f"\\video {tmp_path / 'uneven.mp4'} What happens?")
    talk.take("And then?")
    assert not screen.errors and talk.session.last is not None
    usage = talk.session.last.usage
    assert usage is not None and usage.cached_tokens > usage.video_tokens > 0
    before = told(vlm, talk.session)
    assert before.count(" seconds><|vision_start|><|vision_end|>") == usage.video_tokens // 12
    assert before.index("<0.9 seconds>") < before.index("<5.0 seconds>")
    talk.take(f"\\save {tmp_path / 'talk.json'}")
    messages, _ = moved(talk.session, vlm)
    talk.take("\\clear")
    talk.take(f"\\load {tmp_path / 'talk.json'}")
    assert not screen.errors
    assert told(vlm, talk.session) == before
    talk.session.chat.messages[:] = messages
    assert told(vlm, talk.session) == before


def test_the_server_counts_and_answers_them(folder: Path) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(CLIP).decode()
    body: dict[str, Any] = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": url}},
                    {"type": "text", "text": "What happens?"},
                ],
            }
        ],
        "max_tokens": 2,
        "temperature": 0,
    }
    engine = Engine(lambda: load(folder, dtype="float32"), Settings(), "tiny")
    with connected_to(engine) as client:
        counted = client.post("/v1/tokenize", json=body).json()
        assert counted["video_tokens"] == 3 * 12
        replies = [client.post("/v1/chat/completions", json=body).json() for _ in range(2)]
        usage = replies[1]["usage"]
        assert usage["prompt_tokens"] == counted["count"]
        details = usage["prompt_tokens_details"]
        assert details["video_tokens"] == 36
        assert details["cached_tokens"] == usage["prompt_tokens"] - 1
        assert replies[0]["choices"] == replies[1]["choices"]
        bad = body | {"n_frames": 0}
        assert client.post("/v1/chat/completions", json=bad).status_code == 400


def test_one_question_about_many_videos_is_answered_as_each_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for clip, count in zip(clips, (30, 12), strict=True):
        clip.write_bytes(film(count, size=(128, 96)))
    greedy = ("--temperature", "0", "--max-tokens", "4", "--n-frames", "4", "--min-pixels", "9216")
    asked = ("--videos", *map(str, clips), "--prompt", "Look!", "--dtype", "float32", *greedy)
    assert batch(["--model", str(folder), *asked]) == 0
    told = {line["video"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    vlm = load(folder, dtype="float32")
    for clip in clips:
        reply = vlm.generate(
            "Look!", videos=[clip], n_frames=4, min_pixels=9216, temperature=0, max_tokens=4
        )
        assert told[str(clip)]["text"] == reply.text
        assert told[str(clip)]["usage"]["video_tokens"] == reply.usage.video_tokens > 0
