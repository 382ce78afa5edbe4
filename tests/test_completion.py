"""`mlx-qwenvl completion`: what real shells make of a word and the tabulator."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_qwenvl.command import COMMANDS, EXIT_USAGE
from mlx_qwenvl.completion import FILE, SHELLS, find_parser, main, script, values_of, whole
from mlx_qwenvl.weights.resolve import DEMO
from mlx_qwenvl.weights.short_names import SHORT_NAMES
from tests.command_lines import run

PATIENCE = 20.0  # seconds for a shell on a busy machine
PHOTO = "Screenshot 2026-01-02 at 10.00.00.png"  # as macOS names them

TYPED = {
    "a command": ("mlx-qwenvl gen", "generate"),
    "an option": ("mlx-qwenvl generate --max-t", "--max-tokens"),
    "an option of a wing": ("mlx-qwenvl serve --on-cr", "--on-crash"),
    "a choice": ("mlx-qwenvl serve --on-crash res", "restart"),
    "a short name": ("mlx-qwenvl generate --model dem", "demo"),
    "a folder for a model": ("mlx-qwenvl use my-mo", "my-model"),
    "a dtype": ("mlx-qwenvl bench --dtype bf", "bfloat16"),
    "a recipe": ("mlx-qwenvl convert --quantize nv", "nvfp4"),
    "a picture": ("mlx-qwenvl generate --image pho", "photo.png"),
    "a second picture": ("mlx-qwenvl generate --image x.png --image pho", "photo.png"),
    "a name with spaces": ("mlx-qwenvl generate --image Scr", PHOTO),
    "the rest of one": (r"mlx-qwenvl generate --image Screenshot\ 2026", PHOTO),
    "a shell": ("mlx-qwenvl completion fi", "fish"),
}

# How a shell that reads no one's settings is started, and what loads the script.
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ./script"),
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D"),
    "fish": (["fish", "--no-config", "-i"], "source ./script"),
}
TO_LINE_START = "\x01"  # Ctrl-A
# Becomes a shell whose terminal is its standard input, as job control wants it.
AT_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: script(shell) for shell in SHELLS}


@pytest.fixture
def folder(tmp_path: Path, scripts: dict[str, str], request: pytest.FixtureRequest) -> Path:
    """A folder with a shell's script, pictures and a folder that may be a model."""
    shell = request.getfixturevalue("shell")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / ("_mlx-qwenvl" if shell == "zsh" else "script")).write_text(scripts[shell])
    for name in ("photo.png", PHOTO):
        (tmp_path / name).touch()
    (tmp_path / "my-model").mkdir()
    return tmp_path


@contextmanager
def terminal(command: list[str], cwd: Path) -> Iterator[int]:
    """A shell at a terminal of its own; gives the end to write to and read from."""
    ours, theirs = pty.openpty()
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        [sys.executable, "-c", AT_TERMINAL, *command],
        cwd=cwd,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            yield ours
        finally:
            process.kill()
            os.close(ours)


def read_until(descriptor: int, mark: str) -> str:
    """What a terminal shows up to a mark, or until it says nothing more."""
    shown, deadline = b"", time.monotonic() + PATIENCE
    while mark.encode() not in shown and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.2)[0]:
            shown += os.read(descriptor, 65536)
    return shown.decode("utf-8", "replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_what_is_typed(shell: str, folder: Path) -> None:
    command, setup = START[shell]
    told: dict[str, str] = {}
    with terminal(command, folder) as end:
        os.write(end, f"{setup}; echo RE''ADY\n".encode())
        read_until(end, "READY")
        for name, (line, _) in TYPED.items():
            # What the shell makes of the completed line is printed word by word, by itself.
            os.write(end, f"{line}\t{TO_LINE_START}printf '<%s>' \n echo DO''NE\n".encode())
            shown = read_until(end, "DONE")
            words = re.findall(r"<([^<>\r\n]*)>", shown[shown.rfind("<mlx-qwenvl>") :])
            told[name] = words[-1].rstrip("/") if words else shown  # zsh takes it away again
    expected = {name: completed for name, (_, completed) in TYPED.items()}
    if shell == "bash" and "version 3" in subprocess.check_output(["bash", "--version"], text=True):
        for name in ("a folder for a model", "a name with spaces", "the rest of one"):
            del expected[name], told[name]  # bash of macOS, of 2007, quotes nothing it inserts
    assert told == expected


def test_every_command_has_a_parser_of_its_name() -> None:
    for name in COMMANDS:
        found = find_parser(name)
        assert found is not None and found.prog == f"mlx-qwenvl {name}"


def test_all_that_takes_a_path_completes_paths() -> None:
    """Whatever help calls a path, or code reads as one."""
    found = 0
    for name in COMMANDS:
        parser = find_parser(name)
        assert parser is not None
        for action in parser._actions:
            said = str(action.metavar or "")
            if action.type is Path or {"DIR", "FILE", "PATH"} & set(re.split(r"\W", said)):
                values = values_of(action)
                assert values is not None and values.paths != "none", (name, action)
                found += 1
    assert found > 10


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_of_every_command_is_in_the_script(
    shell: str, scripts: dict[str, str]
) -> None:
    for name in COMMANDS:
        parser = find_parser(name)
        assert parser is not None
        options = [option for action in parser._actions for option in action.option_strings]
        for option in options:
            written = f"-l {option[2:]} " if shell == "fish" else option
            if not option.startswith("--") and shell == "fish":
                written = f"-s {option[1:]} "
            assert written in scripts[shell], (name, option)


def test_models_complete_by_the_names_that_the_code_knows() -> None:
    action = argparse.ArgumentParser().add_argument("--model", metavar="NAME|DIR")
    values = values_of(action)
    assert values is not None and values.words == (DEMO, *SHORT_NAMES)


def test_a_path_that_help_calls_by_another_name_completes_too() -> None:
    action = argparse.ArgumentParser().add_argument("--log", type=Path, metavar="LOG")
    assert values_of(action) == FILE


def test_a_command_that_is_not_installed_completes_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COMMANDS, "serve", ("mlx_qwenvl.gone.__main__", "not here"))
    assert find_parser("serve") is None
    assert "serve" in whole().format_help()


def test_a_command_that_fails_to_import_is_not_taken_for_one_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fails_here.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "serve", ("fails_here", "fails"))
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        find_parser("serve")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(
    shell: str, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([shell]) == 0
    assert capsys.readouterr() == (scripts[shell], "")


def test_another_shell_is_wrong_usage() -> None:
    ran = run("-m", "mlx_qwenvl", "completion", "csh")
    assert (ran.code, ran.out, len(ran.err_lines)) == (EXIT_USAGE, "", 1)
    assert "bash" in ran.err and "zsh" in ran.err and "fish" in ran.err


def test_no_other_command_pays_for_completion() -> None:
    program = "import sys, mlx_qwenvl.generate; sys.exit('shtab' in sys.modules)"
    assert run("-c", program).code == 0
