"""`mlx-qwenvl batch --videos`: a line for each video, as for pictures, whatever the file is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_qwenvl import QwenVL
from tests.batching.conftest import GREEDY, Batch
from tests.command_lines import SHAPES

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

from tests.films import film, sound

ASK = "What happens?"
FEW = ("--n-frames", "2", "--temperature", "0", "--max-tokens", "6")
OPTIONS = ("--model", "demo", "--prompt", ASK, *FEW)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three videos, one of which is another's copy, and a picture."""
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(film(8))
    (folder / "b.webm").write_bytes(film(8, size=(96, 64), codec="libvpx-vp9", container="webm"))
    shutil.copyfile(folder / "a.mp4", folder / "copy.mp4")
    shutil.copyfile(SHAPES, folder / "shapes.png")
    return folder


def test_every_video_of_a_folder_has_a_line_with_the_answer_it_gets_alone(
    batch: Batch, clips: Path, demo: QwenVL
) -> None:
    got = batch.kept("--videos", clips, *OPTIONS)
    assert batch.asked == 2  # equal videos are asked about once
    assert "3 of 3 answered (1 of them as the same video)" in batch.err
    assert "videos/s" in batch.err
    told = {Path(line["video"]).name: line for line in got}
    assert sorted(told) == ["a.mp4", "b.webm", "copy.mp4"]
    options = GREEDY | {"max_tokens": 6, "cache": False}
    for name in ("a.mp4", "b.webm"):
        reply = demo.generate(ASK, videos=[clips / name], n_frames=2, **options)
        assert told[name]["text"] == reply.text
        assert told[name]["usage"]["video_tokens"] == reply.usage.video_tokens > 0
    assert list(got[0]) == ["video", "key", "prompt", "text", "finish_reason", "model", "usage"]
    assert told["a.mp4"] | {"video": ""} == told["copy.mp4"] | {"video": ""}


def test_it_goes_on_where_it_was_and_a_changed_sampling_is_asked_about_again(
    batch: Batch, clips: Path
) -> None:
    both = ("--images", clips / "*.png", "--videos", clips / "[ab].*")
    first = batch.kept(*both, *OPTIONS)
    assert [set(line) & {"image", "video"} for line in first].count({"image"}) == 1
    assert batch.asked == 3 and "3 of 3 answered" in batch.err and "files/s" in batch.err
    assert batch.kept(*both, *OPTIONS) == first and batch.asked == 0
    (clips / "a.mp4").rename(clips / "aa.mp4")
    again = batch.kept("--videos", clips / "aa.mp4", *OPTIONS)
    assert batch.asked == 0 and again[3]["video"].endswith("aa.mp4")
    more = batch.kept(*both[:3], clips / "aa.mp4", *OPTIONS, "--n-frames", "4")
    assert batch.asked == 1  # the picture has no frames to be sampled
    assert len(more) == 5 and more[4]["usage"] != more[3]["usage"]


def test_what_is_no_video_is_one_lines_error_and_costs_the_others_nothing(
    batch: Batch, clips: Path
) -> None:
    bad = {
        "damaged.mp4": film(8)[:-900],
        "silent.mp4": sound(),
        "letter.mp4": b"Dear Sir,\n",
        "empty.mp4": b"",
        "picture.mp4": SHAPES.read_bytes(),
    }
    for name, data in bad.items():
        (clips / name).write_bytes(data)
    names = [clips / name for name in (*bad, "absent.mp4", "b.webm", "a.mp4")]
    (clips / "list").write_text("".join(f"{name}\n" for name in names))
    got = batch.kept("--videos-from", clips / "list", *OPTIONS, code=1)
    assert "2 of 8 answered" in batch.err and "6 failed (their lines say why)" in batch.err
    errors = {Path(line["video"]).name: line["error"] for line in got if "error" in line}
    assert {error["type"] for error in errors.values()} == {"MediaError"}
    assert all("\n" not in error["message"] for error in errors.values())
    says = {
        "damaged.mp4": "damaged or truncated",
        "silent.mp4": "has no stream of pictures, 1 of sound",
        "letter.mp4": "looks like text",
        "empty.mp4": "is empty",
        "picture.mp4": "is a PNG picture",
        "absent.mp4": "no such file",
    }
    assert set(errors) == set(says)
    for name, said in says.items():
        assert said in errors[name]["message"] and name in errors[name]["message"]
    (clips / "silent.mp4").write_bytes(film(4))
    again = batch.kept("--videos", clips / "silent.mp4", *OPTIONS)
    (line,) = (line for line in again if line["video"].endswith("silent.mp4"))
    assert line["text"] and len(again) == len(got)


def test_a_gif_is_what_it_was_named_as(batch: Batch, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (56, 56), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    both = ("--images", "a.gif", "--videos", "a.gif")
    told = batch.kept(*both, "--model", "demo", *FEW)
    assert batch.asked == 2 and told[0]["key"] != told[1]["key"]
    assert {line["prompt"] for line in told} == {"Describe what is shown."}
    assert batch.kept(*both, "--model", "demo", *FEW) == told and batch.asked == 0


def test_a_video_is_described_where_nothing_is_asked(batch: Batch, clips: Path) -> None:
    data = "data:video/mp4;base64,AAAA"
    told = batch("--videos", clips / "a.mp4", data, "--model", "demo", *FEW, code=1)
    assert {line["prompt"] for line in told} == {"Describe this video."}
    assert next(line["error"]["message"] for line in told if "error" in line).startswith(
        "the data: URL: looks like"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--videos", "absent.mp4"], 2, "no such file: 'absent.mp4'"),
        (["--videos", "*.mp4"], 2, "no video matches '*.mp4'"),
        (["--images", "-", "--videos-from", "-"], 2, "standard input was named more than once"),
        (["--videos", SHAPES, "--fps", "1", "--n-frames", "2"], 2, "give one of them"),
        (["--videos", SHAPES, "--fps", "0"], 2, "fps"),
    ],
)
def test_bad_use_is_one_line(batch: Batch, arguments: list[str], code: int, says: str) -> None:
    assert batch(*arguments, code=code) == []
    assert says in batch.err and batch.err.count("\n") == 1


def test_without_pyav_the_extra_is_named_before_anything_is_computed(
    batch: Batch, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert batch("--videos", clips, "--model", "absent", code=1) == []
    assert batch.err == (
        "mlx-qwenvl batch: --videos: videos need one more package: "
        "pip install 'mlx-qwenvl[video]'\n"
    )
