"""Lines of answers survive whatever ends the process that writes them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwenvl import OptionError, QwenVLError
from mlx_qwenvl.batching.ledger import Ledger
from mlx_qwenvl.batching.lines import FileLines, encoded
from mlx_qwenvl.batching.named import Named

ENTRIES = [{"image": f"{name}.png", "key": f"k{name}", "text": f"{name} ü"} for name in "abc"]
ENTRIES[1] = {"video": "b.mp4", "key": "kb", "text": "b.mp4 ü"}
WHOLE = b"".join(map(encoded, ENTRIES))


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def reopened(file: Path, *more: dict[str, Any]) -> list[dict[str, Any]]:
    """What is read from a file, to which more is added then."""
    with FileLines(file) as opened:
        found = [entry for _, entry in opened.read()]
        for entry in more:
            opened.append(entry)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(0, len(WHOLE)), zeros=st.integers(0, 3))
def test_a_file_cut_anywhere_loses_its_last_line_at_most(
    tmp_path: Path, cut: int, zeros: int
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(WHOLE[:cut] + b"\0" * zeros)
    whole = [entry for entry in ENTRIES if WHOLE.index(encoded(entry)) + len(encoded(entry)) <= cut]
    found = reopened(file, {"image": "new.png"})
    # The end of a line may be all that is lacking of it.
    assert found == whole or (found == ENTRIES[: len(whole) + 1] and not zeros)
    assert entries(file) == [*found, {"image": "new.png"}]


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n rest",
        b"image,text\na.png,x\n",
        b'{"name": "a"}\n',
        b'{"name": "a',
        b"[1, 2]\n",
        encoded(ENTRIES[0]) + b"junk\n" + encoded(ENTRIES[1]),
        b"[" * 100_000,
    ],
    ids=["picture", "csv", "other object", "half of one", "list", "in the middle", "deep"],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "precious"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=r"precious, line \d: is no answer"):
        reopened(file)
    assert file.read_bytes() == content


def test_a_name_that_is_no_utf8_comes_back_as_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    reopened(tmp_path / "a", {"image": name, "text": "ü"})
    assert reopened(tmp_path / "a") == [{"image": name, "text": "ü"}]


def test_a_file_to_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    reopened(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused_while_the_first_is_there(tmp_path: Path) -> None:
    with FileLines(tmp_path / "a") as first:
        list(first.read())
        with pytest.raises(QwenVLError, match="another run is writing"):
            FileLines(tmp_path / "a")
        first.append(ENTRIES[0])
    assert reopened(tmp_path / "a") == [ENTRIES[0]]


def test_a_file_that_was_replaced_while_its_lock_was_taken_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flock = tmp_path / "a", fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        file.rename(tmp_path / "b")
        file.touch()
        flock(descriptor, how)

    file.write_bytes(WHOLE)
    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(QwenVLError, match="has just ended"):
        FileLines(file)


def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    reopened(tmp_path / "a", ENTRIES[0])
    assert entries(tmp_path / "a") == [ENTRIES[0]]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that the disk still takes."""
    left, write = [10**9], os.write

    def until_full(descriptor: int, data: Any) -> int:
        taken = min(len(data), left[0])
        if data and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= taken
        return write(descriptor, data[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", until_full)
        yield left


@pytest.mark.parametrize("bytes_left", [0, 1, 40])
def test_a_disk_that_becomes_full_takes_back_what_it_took_of_a_line(
    tmp_path: Path, room: list[int], bytes_left: int
) -> None:
    file = tmp_path / "a"
    with FileLines(file) as opened:
        list(opened.read())
        opened.append(ENTRIES[0])
        room[0] = bytes_left
        with pytest.raises(OSError, match="No space left"):
            opened.append(ENTRIES[1])
        assert file.read_bytes() == encoded(ENTRIES[0])
        room[0] = 10**9
        opened.append(ENTRIES[2])
    assert entries(file) == [ENTRIES[0], ENTRIES[2]]


def test_obsolete_lines_go_at_the_end_and_all_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(WHOLE)
    file.chmod(0o640)
    with FileLines(file) as opened:
        places = [place for place, _ in opened.read()]
        opened.append({"image": "new.png"})
        opened.drop(places[0])
        opened.drop(places[2])
        assert len(entries(file)) == 4
    assert entries(file) == [ENTRIES[1], {"image": "new.png"}]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_obsolete_lines_stay_where_there_is_no_room_to_write_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "a"
    file.write_bytes(WHOLE)
    monkeypatch.setattr(os, "fsync", full)
    with FileLines(file) as opened:
        opened.drop(next(place for place, _ in opened.read()))
        list(opened.read())
    assert entries(file) == ENTRIES
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(WHOLE)
    (tmp_path / "link").symlink_to("real")
    with FileLines(tmp_path / "link") as opened:
        opened.drop([place for place, _ in opened.read()][1])
    assert entries(tmp_path / "real") == [ENTRIES[0], ENTRIES[2]]
    assert (tmp_path / "link").is_symlink()


def test_an_error_goes_once_there_is_more_to_tell_and_answers_never_go(tmp_path: Path) -> None:
    file, error = tmp_path / "a", QwenVLError("no")

    def run(images: str) -> None:
        with FileLines(file) as opened:
            ledger = Ledger.of_file(opened)
            for name in images:
                image = Named("image", name)
                ledger.fail(image, "k1", "What?", error)
                ledger.fail(image, "k1", "Why?", error)

    file.write_bytes(encoded({"image": "a", "key": "k0", "prompt": "What?", "text": "Old."}))
    for images in ("ab", "a", "a"):
        run(images)
    told = [(entry["image"], entry["prompt"], "error" in entry) for entry in entries(file)]
    assert told[0] == ("a", "What?", False)
    assert sorted(told[1:]) == [(i, p, True) for i in "ab" for p in ("What?", "Why?")]
