"""Which model answers when none is named, and how that choice is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mlx_qwenvl import CheckpointError, QwenVLError, load, use
from mlx_qwenvl.weights.choice import choose_model, default_model, settings_file
from tests.command_lines import GENERATE, run


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test begins without a choice."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_demo_answers_where_nothing_was_chosen() -> None:
    assert default_model() == "demo"
    assert not settings_file().parent.exists(), "asking leaves no trace"


def test_variable_goes_before_the_choice_and_the_choice_before_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose_model("2b")
    assert default_model() == "2b"
    monkeypatch.setenv("MLX_QWENVL_MODEL", "7b")
    assert default_model() == "7b"
    monkeypatch.setenv("MLX_QWENVL_MODEL", "")
    assert default_model() == "2b"


def test_settings_live_below_home_without_an_xdg_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_file() == tmp_path / ".config" / "mlx-qwenvl" / "settings.json"


def test_chosen_folder_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    assert use.main(["model"]) == 0
    monkeypatch.chdir(tmp_path)
    assert default_model() == str(tmp_path / "here" / "model")
    assert load().name == default_model()


def test_chosen_model_answers_without_being_announced(tiny_folder: Path) -> None:
    chosen = run("-m", "mlx_qwenvl", "use", tiny_folder)
    assert (chosen.code, chosen.out) == (0, "")
    assert len(chosen.err_lines) == 1 and str(settings_file()) in chosen.err
    ran = run(*GENERATE, "Hello", "--max-tokens", "2", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["model"] == str(tiny_folder)


def test_use_alone_tells_the_choice(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    assert use.main([]) == 0
    assert capsys.readouterr() == ("demo\n", "")
    use.main([str(tiny_folder)])
    capsys.readouterr()
    assert use.main([]) == 0
    assert capsys.readouterr() == (f"{tiny_folder}\n", "")


def test_demo_can_be_chosen_again(tiny_folder: Path) -> None:
    use.main([str(tiny_folder)])
    assert use.main(["demo"]) == 0
    assert default_model() == "demo"


@pytest.mark.parametrize("name", ["nope", "empty"])
def test_model_that_does_not_load_changes_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_folder: Path,
    name: str,
) -> None:
    use.main([str(tiny_folder)])
    before = settings_file().read_bytes()
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert use.main([name]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert settings_file().read_bytes() == before


def test_other_settings_are_kept() -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text('{"theme": "dark"}')
    choose_model("2b")
    assert json.loads(settings_file().read_text()) == {"theme": "dark", "model": "2b"}


def test_full_disk_leaves_the_old_choice_and_no_litter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, destination: object) -> None:
        raise OSError(28, "No space left on device")

    choose_model("2b")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(QwenVLError, match=r"settings\.json cannot be written: No space left"):
        choose_model("7b")
    assert default_model() == "2b"
    assert os.listdir(settings_file().parent) == ["settings.json"]


def test_folder_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # A file in the folder's place stops even root.
    (tmp_path / "config").write_text("")
    assert use.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "cannot be written" in captured.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config").mkdir(mode=0o555)
    assert use.main(["demo"]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', '{"model": ""}', "\xff\xfe"])
def test_damaged_settings_are_told_and_can_be_replaced(content: str) -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"settings\.json.*mlx-qwenvl use"):
        default_model()
    choose_model("2b")
    assert default_model() == "2b"


def test_damaged_settings_reach_the_command_line_as_one_line() -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text("{")
    ran = run(*GENERATE, "Hello")
    assert (ran.code, ran.out, len(ran.err_lines)) == (1, "", 1)
    assert str(settings_file()) in ran.err


def test_empty_name_is_not_taken_for_the_default() -> None:
    ran = run(*GENERATE, "--model", "", "Hello")
    assert (ran.code, ran.out, len(ran.err_lines)) == (1, "", 1)
