"""Files that are written as a whole: what was there stays until all of the new one is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mlx_qwenvl.whole_file import written_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_what_was_there_and_no_draft(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), written_whole(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["kept.json"]


def test_the_new_file_comes_at_once_with_the_permissions_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and mode(path) == 0o640


def test_a_first_file_has_the_permissions_of_any_new_one(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    with written_whole(tmp_path / "kept") as file:
        file.write(b"new")
    assert mode(tmp_path / "kept") == mode(tmp_path / "any")


def test_a_long_name_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    with written_whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
