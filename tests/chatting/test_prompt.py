"""The prompt, with keys from a pipe: lines, history, completion, and ways out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_qwenvl.chatting.completing import LineCompleter
from mlx_qwenvl.chatting.history import MOST_LETTERS, history_file, open_history
from mlx_qwenvl.chatting.paths import unescaped
from mlx_qwenvl.chatting.rich_prompt import RichPrompt

ALT_ENTER, CTRL_C, CTRL_D, UP = "\x1b\r", "\x03", "\x04", "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    """Where keys are pressed."""
    with create_pipe_input() as pipe:
        yield pipe


def typed(
    keys: PipeInput, pressed: str, draft: str | None = None, history: Path | None = None
) -> str | None:
    keys.send_text(pressed)
    return RichPrompt(history, keys, DummyOutput()).read(draft)


def test_enter_ends_a_line(keys: PipeInput) -> None:
    assert typed(keys, "Hello!\r") == "Hello!"


def test_alt_enter_begins_another_line(keys: PipeInput) -> None:
    assert typed(keys, f"One{ALT_ENTER}Two\r") == "One\nTwo"


def test_pasted_lines_stay_lines(keys: PipeInput) -> None:
    assert typed(keys, PASTE.format("One\r\nTwo\n") + "Three\r") == "One\nTwo\nThree"


def test_ctrl_d_leaves_an_empty_line_only(keys: PipeInput) -> None:
    assert typed(keys, CTRL_D) is None
    assert typed(keys, f"ab\x1b[D{CTRL_D}\r") == "a"


def test_ctrl_c_clears_the_line_and_leaves_when_pressed_twice(keys: PipeInput) -> None:
    assert typed(keys, f"abc{CTRL_C}def\r") == "def"
    assert typed(keys, f"abc{CTRL_C}x{CTRL_C}y\r") == "y"
    assert typed(keys, f"abc{CTRL_C}{CTRL_C}") is None


def test_a_draft_stands_there_and_ctrl_c_gives_it_up(keys: PipeInput) -> None:
    assert typed(keys, "?\r", draft="What") == "What?"
    assert typed(keys, CTRL_C, draft="What") == ""


# --- History --------------------------------------------------------------------------------------


def test_what_was_typed_comes_back_the_next_time(keys: PipeInput, tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    assert typed(keys, f"One{ALT_ENTER}Two\r", history=file) == "One\nTwo"
    assert typed(keys, f"{UP}\r", history=file) == "One\nTwo"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_history_lies_in_the_folder_for_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "mlx-qwenvl" / "chat_history"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "mlx-qwenvl" / "chat_history"


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.touch(0o644)
    open_history(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_file_or_with_one_that_cannot_be_written_it_goes_on(
    keys: PipeInput, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert typed(keys, "One\r", history=tmp_path / "file" / "history") == "One"
    assert typed(keys, "Two\r", history=None) == "Two"


def test_a_disk_that_fills_up_does_not_end_the_talk(tmp_path: Path) -> None:
    file = tmp_path / "history"
    history = open_history(file)
    file.unlink()
    file.mkdir()  # nothing can be written there any more
    history.append_string("One")
    assert list(history.load_history_strings()) == []


def test_pictures_in_base64_are_not_kept(tmp_path: Path) -> None:
    history = open_history(tmp_path / "history")
    history.append_string("x" * (MOST_LETTERS + 1))
    assert (tmp_path / "history").read_text() == ""


# --- Completion -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some files, and the current one."""
    for name in ("cat.png", "my cat.JPG", "notes.txt", ".hidden.png", "odd\x1b.png"):
        (tmp_path / name).touch()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def offered(text: str) -> list[str]:
    """Lines that Tab would make of one."""
    document = Document(text)
    found = LineCompleter().get_completions(document, CompleteEvent())
    return [text[: len(text) + each.start_position] + each.text for each in found]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\\te", ["\\temperature"]),
        ("/sa", ["/save"]),
        ("\\top", ["\\topk", "\\topp"]),
        ("\\image ", ["\\image cat.png", "\\image my\\ cat.JPG", "\\image photos/"]),
        ("\\image my\\ c", ["\\image my\\ cat.JPG"]),
        ("\\save n", ["\\save notes.txt"]),
        ("\\image n", []),
        ("\\stats n", []),
        ("\\model 7b-", ["\\model 7b-4bit", "\\model 7b-8bit"]),
        ("\\model ph", ["\\model photos/"]),
        ("What is ./c", ["What is ./cat.png"]),
        ("What is ~/my", ["What is ~/my\\ cat.JPG"]),
        ("What is c", []),
        ("\\image ./no/such", []),
        ("\\image \0", []),
    ],
)
def test_tab_offers_what_fits(folder: Path, text: str, lines: list[str]) -> None:
    assert offered(text) == lines


def test_a_completed_path_is_read_as_it_was(folder: Path) -> None:
    (line,) = offered(f"{folder}/my")
    assert os.path.exists(unescaped(line))
