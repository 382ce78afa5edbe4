"""Which pictures and videos are meant: every way to name them, in one order, each once."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlx_qwenvl import OptionError
from mlx_qwenvl.batching.files import check_stdin, find_named
from mlx_qwenvl.batching.named import Named

TREE = (
    *("b.jpg", "a.JPG", "notes.txt", ".hidden.png", "sub/c.png", "sub/deep/d.webp", "sub/x.md"),
    *("f.MP4", "e.mkv", "sub/g.mov"),
)


def find_pictures(*asked: Sequence[str], ends_with_nul: bool = False) -> list[str]:
    """Names of pictures."""
    return [one.name for one in find_named("image", *asked, ends_with_nul=ends_with_nul)]


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `TREE` under `photos` in it."""
    for name in TREE:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return pipe


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.jpg", ["photos/b.jpg"]),
        ("photos/**/*.[pw]*", ["photos/sub/c.png", "photos/sub/deep/d.webp"]),
        ("photos/*.txt", ["photos/notes.txt"]),
        ("photos", ["photos/a.JPG", "photos/b.jpg"]),
        ("photos/", ["photos/a.JPG", "photos/b.jpg"]),
        ("photos/*", ["photos/a.JPG", "photos/b.jpg"]),
        (
            "photos/**",
            ["photos/a.JPG", "photos/b.jpg", "photos/sub/c.png", "photos/sub/deep/d.webp"],
        ),
        ("photos/.hidden.png", ["photos/.hidden.png"]),
        ("https://example.org/*.jpg?size=[1]", ["https://example.org/*.jpg?size=[1]"]),
        ("data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
    ],
)
def test_a_name_leads_to_its_pictures_in_order(pattern: str, names: list[str]) -> None:
    assert find_pictures([pattern]) == names


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (["photos"], ["photos/e.mkv", "photos/f.MP4"]),
        (["photos/**"], ["photos/e.mkv", "photos/f.MP4", "photos/sub/g.mov"]),
        (["photos/sub/*.mov", "photos"], ["photos/sub/g.mov", "photos/e.mkv", "photos/f.MP4"]),
        (["photos/b.jpg"], ["photos/b.jpg"]),  # its bytes will say what it is
        (["https://example.org/a.mp4"], ["https://example.org/a.mp4"]),
    ],
)
def test_a_name_leads_to_its_videos(asked: list[str], names: list[str]) -> None:
    assert find_named("video", asked) == [Named("video", name) for name in names]


@pytest.mark.parametrize("name", ["[1].jpg", "a b.jpg", "*.jpg", "ü.png", "-x.png"])
def test_a_file_that_exists_is_no_pattern(tree: Path, name: str) -> None:
    (tree / name).touch()
    assert find_pictures([name]) == [name]


def test_a_tilde_is_the_home_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert find_pictures(["~/photos/*.jpg"]) == [str(tree / "photos/b.jpg")]


def test_a_picture_named_in_several_ways_counts_once_where_it_came_first() -> None:
    found = find_pictures(["photos/sub/c.png", "photos/**", "photos"])
    assert found[0] == "photos/sub/c.png" and sorted(found) == sorted(set(found))


@pytest.mark.parametrize("name", ["photos/*.tif", "absent.png", "What is shown?", "photos/sub/y*"])
def test_a_name_that_leads_nowhere_is_refused_with_what_it_may_have_been(name: str) -> None:
    with pytest.raises(OptionError, match=r"no (picture matches|such file).*--prompt"):
        find_pictures(["photos", name])


def test_a_folder_without_pictures_is_refused_with_the_way_to_deeper_ones(tree: Path) -> None:
    (tree / "outer/inner").mkdir(parents=True)
    (tree / "outer/inner/a.png").touch()
    with pytest.raises(OptionError, match=r"no picture.*outer/\*\*"):
        find_pictures(["outer"])
    with pytest.raises(OptionError, match=r"holds no video.*outer/\*\*"):
        find_named("video", ["outer"])
    with pytest.raises(OptionError, match=r"no video matches 'outer/\*\.mp4'"):
        find_named("video", ["outer/*.mp4"])


def test_a_list_is_taken_as_it_is_line_by_line(tree: Path) -> None:
    (tree / "list").write_bytes(b"absent.png\r\n\n  spaced .png\nphotos/*.jpg\nno end")
    expected = ["absent.png", "  spaced .png", "photos/*.jpg", "no end"]
    assert find_pictures([], ["list"]) == expected


def test_a_list_whose_names_end_with_nul_may_hold_any_name(
    piped: Callable[[bytes], None],
) -> None:
    names = [b"two\nlines.png", b"\xff\xfe.png", b"cr\r"]
    piped(b"\0".join(names) + b"\0")
    found = find_pictures(["-"], ends_with_nul=True)
    assert list(map(os.fsencode, found)) == names


def test_an_empty_list_is_no_error(piped: Callable[[bytes], None]) -> None:
    piped(b"")
    assert find_pictures(["-"]) == []


def test_lists_that_cannot_be_read_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="the list none: No such file"):
        find_pictures([], ["none"])
    with pytest.raises(OptionError, match="more than once"):
        check_stdin(["-", "a.png", "-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OptionError, match="closed"):
        find_pictures(["-"])
