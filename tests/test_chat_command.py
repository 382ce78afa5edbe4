"""`mlx-qwenvl chat` without a terminal: plain lines in, plain answers out."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_qwenvl import chat
from mlx_qwenvl.chatting.rich_prompt import RichPrompt
from mlx_qwenvl.chatting.rich_screen import RichScreen
from tests.chatting.conftest import IMAGES, endless  # noqa: F401 - a fixture
from tests.command_lines import PATIENCE, run, start

CHAT = ("-m", "mlx_qwenvl.chat")
SHOWN = "The image shows a red circle and a blue square."
Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Pipes lines into the command, and gives exit code, stdout and stderr."""
    monkeypatch.chdir(IMAGES)

    def pipe(lines: str, *arguments: str | Path) -> tuple[int, str, str]:
        stdin = io.TextIOWrapper(io.BytesIO(lines.encode("utf-8", "surrogateescape")))
        monkeypatch.setattr(sys, "stdin", stdin)
        code = chat.main(["--model", "demo", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return pipe


def test_a_session_over_a_pipe_prints_answers_alone() -> None:
    lines = "Hello!\n\\image shapes.png What is shown in this image?\n"
    ran = run(*CHAT, stdin=lines.encode(), cwd=IMAGES)
    hello, shown = ran.out.splitlines()
    assert ran.code == 0 and hello.startswith("Hello!") and shown == SHOWN
    assert len(ran.err_lines) == 1 and "mlx-qwenvl use 2b" in ran.err


def test_the_end_of_the_lines_is_the_end(talk: Talk) -> None:
    assert talk("") == (0, "", "")
    assert talk("\n  \n") == (0, "", "")
    assert talk("\\exit\nHello!\n") == (0, "", "")


def test_a_last_line_without_its_end_is_asked(talk: Talk) -> None:
    code, out, _ = talk("\\image shapes.png What is shown in this image?")
    assert (code, out) == (0, f"{SHOWN}\n")


def test_what_commands_tell_goes_to_stderr(talk: Talk) -> None:
    code, out, err = talk("\\help\n\\stats\n\\system Be brief.\n\\clear\n\\images\n\\model\n")
    assert (code, out) == (0, "") and "\\image PATH-or-URL" in err


@pytest.mark.parametrize("line", ["\\image no.png What?", "\\nothing", "\\edit", "\\image"])
def test_a_line_that_fails_is_told_and_the_next_one_is_answered(talk: Talk, line: str) -> None:
    code, out, err = talk(f"{line}\nHello!\n")
    assert code == 1 and out.startswith("Hello!")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_pictures_of_the_command_line_go_with_the_first_question(talk: Talk) -> None:
    code, out, _ = talk("What is shown in this image?\n", "--image", "shapes.png")
    assert (code, out) == (0, f"{SHOWN}\n")


def test_lines_that_are_no_utf8_are_asked_all_the_same(talk: Talk) -> None:
    code, out, _ = talk("Hello\udcff!\n")
    assert code == 0 and out


def test_a_conversation_is_kept_and_gone_on_with(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = "\\image shapes.png What is shown in this image?\n\\maxtokens 2\n\\seed 5\n"
    assert talk(f"{lines}\\save {file}\n")[0] == 0
    assert json.loads(file.read_text())["options"] == {"max_tokens": 2, "seed": 5}
    code, out, err = talk("\\maxtokens\n", "--load", file, "--max-tokens", "3")
    assert (code, out) == (0, "") and "1 question and 1 picture" in err
    assert "at most 3 tokens" in err and "seed 5" in err, "the command line goes first"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--temperature", "-1"], 2, "from 0 to 100"),
        (["--preview", "sixel"], 2, "invalid choice"),
        (["--image", "no.png"], 1, "no such file"),
        (["--load", "no.json"], 1, "no such file"),
        (["--model", "no such model"], 1, "no model"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        got = chat.main(["--model", "demo", *arguments])
    except SystemExit as error:
        got = int(error.code or 0)
    err = capsys.readouterr().err
    assert got == code and message in err and err.count("\n") == 1
    assert err.startswith("mlx-qwenvl chat: ")


def test_a_closed_standard_input_is_an_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert chat.main(["--model", "demo"]) == 0
    assert capsys.readouterr() == ("", "")


def test_help_names_every_option_that_the_documentation_does() -> None:
    text = re.sub(r"\s+", " ", chat.parser().format_help())
    for option in ("--image", "--load", "--preview", "--no-history", "--kv-bits", "--draft"):
        assert option in text


def test_ctrl_c_ends_what_nobody_sits_at(endless: Path) -> None:  # noqa: F811
    long = ("--temperature", "0", "--max-tokens", "1000000")
    pipe = -1
    with start(*CHAT, "--model", endless, *long, stdin=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"Go on.\nHello\n")
        process.stdin.close()
        process.stdin = None
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and len(begun) == 20 and rest.endswith(b"\n")
    assert errors.decode().splitlines() == ["stopped; what was said stays in the conversation"]


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with start(*CHAT, "--model", "demo", stdin=-1) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(b"Hello!\n" * 50, timeout=PATIENCE)
    assert process.returncode == 1 and errors == b""


@pytest.mark.parametrize(
    ("stdin_is", "stdout_is", "term", "is_rich"),
    [
        (True, True, "xterm-256color", True),
        (True, True, "dumb", False),
        (True, False, "xterm-256color", False),
        (False, True, "xterm-256color", False),
    ],
)
def test_what_stands_at_both_ends_decides_how_it_looks(
    monkeypatch: pytest.MonkeyPatch, stdin_is: bool, stdout_is: bool, term: str, is_rich: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: stdin_is)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: stdout_is)
    arguments = chat.parser().parse_args(["--no-history"])
    prompt, screen = chat.terminal_of(arguments)
    assert isinstance(prompt, RichPrompt) == isinstance(screen, RichScreen) == is_rich
