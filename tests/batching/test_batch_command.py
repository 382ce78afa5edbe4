"""`mlx-qwenvl batch`: a line for each picture, whatever happens, and nothing computed twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.batching.conftest import COUNT, GREEDY, Batch, Gallery, by_name, lines
from tests.command_lines import SHAPES

OPTIONS = ("--model", "demo", "--prompt", COUNT)
SAMPLING = ("--temperature", "0", "--max-tokens", str(GREEDY["max_tokens"]))


@pytest.fixture
def photos(gallery: Gallery, tmp_path: Path) -> Path:
    """A copy of the gallery's first five pictures."""
    (tmp_path / "photos").mkdir()
    for path in gallery.paths[:5]:
        shutil.copy(path, tmp_path / "photos")
    return tmp_path / "photos"


# --- What is written -----------------------------------------------------------------------------


def test_every_picture_of_a_pattern_has_a_line_with_the_answer_it_gets_alone(
    batch: Batch, gallery: Gallery
) -> None:
    found = batch("--images", gallery.folder / "**" / "*.png", *OPTIONS, *SAMPLING)
    names = [path.name for path in gallery.paths]
    assert by_name(found) == dict(zip(names, gallery.alone, strict=True))
    assert batch.err.startswith("12 of 12 answered, 0 were done before, 0 failed; ")
    assert batch.err.count("\n") == 1


def test_a_line_has_the_keys_and_types_of_the_contract(batch: Batch) -> None:
    (entry,) = batch(SHAPES, *OPTIONS)
    told = {key: type(value) for key, value in entry.items()}
    assert told == {
        **dict.fromkeys(("image", "key", "prompt", "text", "finish_reason", "model"), str),
        "usage": dict,
    }
    assert (entry["image"], entry["prompt"], entry["model"]) == (str(SHAPES), COUNT, "demo")
    assert entry["finish_reason"] == "stop" and len(entry["key"]) == 64


def test_pictures_may_be_arguments_as_the_shell_expands_them(batch: Batch, photos: Path) -> None:
    paths = sorted(map(str, photos.iterdir()))
    assert len(batch("--images", *paths[:2], "--prompt", COUNT, "--model", "demo", paths[2])) == 3


def test_several_questions_make_several_lines_and_see_a_picture_once(
    batch: Batch, photos: Path
) -> None:
    (batch.folder / "q.txt").write_text("What is the background color?\n")
    found = batch("photos", *OPTIONS, "--prompt-file", "q.txt", "--prompt", COUNT)
    asked = sorted((entry["image"], entry["prompt"]) for entry in found)
    questions = [COUNT, "What is the background color?"]
    assert asked == sorted((f"photos/{p.name}", q) for p in photos.iterdir() for q in questions)
    # The second question goes on behind the picture that the first one has read.
    behind = [
        entry["usage"]["cached_tokens"] > entry["usage"]["image_tokens"]
        for entry in found
        if entry["prompt"] == questions[1]
    ]
    assert all(behind)


def test_answers_of_a_form_come_with_their_data(batch: Batch) -> None:
    (entry,) = batch(SHAPES, *OPTIONS, "--schema", "color red|blue", *SAMPLING)
    assert entry["data"] == json.loads(entry["text"])
    assert entry["data"]["color"] in ("red", "blue") and entry["prompt"] == COUNT


def test_an_answer_of_a_form_that_was_cut_off_is_an_error(batch: Batch) -> None:
    (entry,) = batch(SHAPES, *OPTIONS, "--extract", "name, color", "--max-tokens", "2", code=1)
    assert "cut off" in entry["error"]["message"] and "text" not in entry
    assert "- color" in entry["prompt"]


def test_a_question_before_the_picture_is_shared_by_all(batch: Batch, photos: Path) -> None:
    found = batch("photos", *OPTIONS, "--prompt-first")
    cached = sorted(entry["usage"]["cached_tokens"] for entry in found)
    behind = batch("photos", *OPTIONS)
    assert cached[1] > max(entry["usage"]["cached_tokens"] for entry in behind)


def test_lists_of_pictures_come_from_files(batch: Batch, photos: Path) -> None:
    (batch.folder / "list").write_bytes(b"\0".join(os.fsencode(p) for p in photos.iterdir()))
    assert len(batch("--images-from", "list", "--null", *OPTIONS)) == 5


def test_names_that_are_no_utf8_come_back_as_they_are(batch: Batch, photos: Path) -> None:
    name = os.fsdecode(b"photos/\xff.png")
    try:
        (photos / "00.png").rename(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert name in {entry["image"] for entry in batch.kept("photos", *OPTIONS)}
    assert batch.kept("photos", *OPTIONS) and batch.asked == 0


# --- Faults of pictures --------------------------------------------------------------------------


def test_broken_pictures_are_lines_of_their_own_and_counted(batch: Batch, photos: Path) -> None:
    (photos / "half.png").write_bytes((photos / "00.png").read_bytes()[:200])
    (photos / "link.png").symlink_to("nowhere")
    (batch.folder / "list").write_text("photos/half.png\nphotos/link.png\nphotos\n")
    found = batch("photos", "--images-from", "list", *OPTIONS, code=1)
    errors = {entry["image"]: entry["error"] for entry in found if "error" in entry}
    assert set(errors) == {"photos/half.png", "photos/link.png", "photos"}
    assert {error["type"] for error in errors.values()} == {"MediaError"}
    assert "truncated" in errors["photos/half.png"]["message"]
    assert batch.err.startswith("5 of 8 answered, 0 were done before, 3 failed")


def test_an_unreadable_picture_fails_for_each_question(batch: Batch, photos: Path) -> None:
    (batch.folder / "list").write_text("photos/00.png\nabsent.png\n")
    found = batch("--images-from", "list", *OPTIONS, "--prompt", "Why?", code=1)
    failed = [(entry["image"], entry["prompt"]) for entry in found if "error" in entry]
    assert sorted(failed) == [("absent.png", COUNT), ("absent.png", "Why?")]


def test_a_picture_beyond_the_context_fails_alone(batch: Batch, photos: Path) -> None:
    from PIL import Image

    Image.new("RGB", (1600, 1600)).save(photos / "large.png")
    found = batch("photos", *OPTIONS, "--max-pixels", "4000000", code=1)
    failed = {entry["image"]: entry["error"] for entry in found if "error" in entry}
    assert list(failed) == ["photos/large.png"]
    assert failed["photos/large.png"]["type"] == "ContextError"


# --- Going on ------------------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_again(batch: Batch, photos: Path) -> None:
    first = batch.kept("photos", *OPTIONS)
    assert batch.asked == 5
    assert batch.kept("photos", *OPTIONS) == first
    assert batch.asked == 0 and batch.err.startswith("0 of 5 answered, 5 were done before, 0 f")


def test_a_changed_picture_or_question_is_asked_about_and_old_answers_stay(
    batch: Batch, photos: Path
) -> None:
    first = batch.kept("photos", *OPTIONS)
    shutil.copy(SHAPES, photos / "00.png")
    second = batch.kept("photos", *OPTIONS)
    assert batch.asked == 1 and second[:5] == first
    assert (second[5]["image"], "two" in second[5]["text"]) == ("photos/00.png", True)
    third = batch.kept("photos", "--model", "demo", "--prompt", "What is shown?")
    assert batch.asked == 5 and third[:6] == second
    assert len(batch.kept("photos", *OPTIONS, "--max-tokens", "3")) == 16


def test_what_failed_is_asked_again_and_its_error_goes_once_it_is_answered(
    batch: Batch, photos: Path
) -> None:
    whole = (photos / "00.png").read_bytes()
    (photos / "00.png").write_bytes(whole[:99])
    assert sum("error" in entry for entry in batch.kept("photos", *OPTIONS, code=1)) == 1
    assert sum("error" in entry for entry in batch.kept("photos", *OPTIONS, code=1)) == 1
    assert batch.asked == 0 and len(lines(batch.folder / "a.jsonl")) == 5
    (photos / "00.png").write_bytes(whole)
    assert len(by_name(batch.kept("photos", *OPTIONS))) == 5
    assert batch.asked == 1


def test_a_renamed_picture_is_written_under_its_new_name_without_being_asked_about(
    batch: Batch, photos: Path
) -> None:
    first = by_name(batch.kept("photos", *OPTIONS))
    (photos / "00.png").rename(photos / "new name.png")
    second = by_name(batch.kept("photos", *OPTIONS))
    assert batch.asked == 0
    assert second == first | {"new name.png": first["00.png"]}
    assert "1 of 5 answered (1 of them as the same picture), 4 were" in batch.err


@pytest.mark.parametrize("to", ["file", "stdout"])
def test_equal_pictures_are_asked_about_once_and_written_for_each_name(
    batch: Batch, photos: Path, to: str
) -> None:
    for name in ("x", "y", "z"):
        shutil.copy(photos / "01.png", photos / f"{name}.png")
    ask = batch.kept if to == "file" else batch
    found = by_name(ask("photos", *OPTIONS))
    assert batch.asked == 5 and len(found) == 8
    assert {found[f"{name}.png"] for name in "xyz"} == {found["01.png"]}
    assert "8 of 8 answered (3 of them as the same picture)" in batch.err


def test_equal_broken_pictures_fail_each(batch: Batch) -> None:
    Path("d").mkdir()
    for name in "abc":
        Path(f"d/{name}.png").write_bytes(b"none")
    found = batch("d", *OPTIONS, code=1)
    assert [entry["error"]["type"] for entry in found] == ["MediaError"] * 3


def test_a_line_that_was_cut_is_written_anew(batch: Batch, photos: Path) -> None:
    first = batch.kept("photos", *OPTIONS)
    file = batch.folder / "a.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert by_name(batch.kept("photos", *OPTIONS)) == by_name(first)
    assert batch.asked == 1


# --- Bad use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "no pictures were named"),
        (("absent.png",), 2, "no such file"),
        (("*.tif",), 2, "no picture matches"),
        ((SHAPES, "--prompt", " "), 2, "question is empty"),
        ((SHAPES, "--prompt-file", "none"), 2, "--prompt-file none: No such file"),
        ((SHAPES, "--max-running", "0"), 2, "--max-running is 0"),
        ((SHAPES, "--temperature", "-1"), 2, "temperature is -1"),
        ((SHAPES, "--schema", "a b c"), 2, "schema"),
        ((SHAPES, "--schema", '{"type": "nonsense"}'), 2, "JSON schema"),
        ((SHAPES, "--output", "."), 2, "is a folder"),
        ((SHAPES, "--output", "no/where"), 1, "No such file or directory: "),
        ((SHAPES, "--output", "precious.txt"), 2, "precious.txt, line 1: is no answer"),
        ((SHAPES, "--prompt", "word " * 5000), 1, "context"),
        ((SHAPES, "--model", "nope"), 1, "no model 'nope'"),
        ((SHAPES, "--unknown"), 2, "--unknown"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:]))[:30] if isinstance(value, tuple) else "",
)
def test_bad_use_is_one_line_and_leaves_nothing(
    batch: Batch, arguments: tuple[str | Path, ...], code: int, words: str
) -> None:
    (batch.folder / "precious.txt").write_text("mine")
    chosen = () if "--model" in arguments else ("--model", "demo")
    output = () if "--output" in arguments else ("--output", "new.jsonl")
    assert batch(*arguments, *chosen, *output, code=code) == []
    assert words in batch.err and batch.err.count("\n") == 1
    assert batch.err.startswith("mlx-qwenvl batch: ")
    assert [file.name for file in batch.folder.iterdir()] == ["precious.txt"]
    assert (batch.folder / "precious.txt").read_text() == "mine"


def test_the_demo_is_announced_where_nobody_chose_a_model(batch: Batch) -> None:
    assert len(batch(SHAPES)) == 1
    assert "mlx-qwenvl use 2b" in batch.err.splitlines()[0]


def test_an_empty_list_is_answered_by_nothing(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert batch.kept("-", *OPTIONS[:2], output="/dev/null") == []
    assert batch.err.startswith("0 of 0 answered")
