"""How several processes end: together, soon, with a reason, and never by hanging."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlx_qwenvl.batch
import mlx_qwenvl.generate
from mlx_qwenvl import QwenVL
from tests.distributed.launching import ROOT, START_S, ends, free_ports, ranks

SOON_S = 30.0  # 3 of silence, 2 of grace, and what a busy machine adds
STAR = "examples/images/star.png"
LONG = ["--max-tokens", "1500", "--temperature", "0", "Say", "much"]


def generate(model: Path | str, *options: str) -> list[str]:
    """Arguments of Python that ask one question."""
    return ["-m", "mlx_qwenvl.generate", "--model", str(model), *options]


def last_line(text: str) -> str:
    """The last line; MLX's ring writes others before it."""
    return text.splitlines()[-1] if text else ""


@pytest.mark.parametrize(
    ("sent", "to", "told"),
    [
        (signal.SIGKILL, 1, "rank 1 is gone: its connection was closed"),
        (signal.SIGSTOP, 1, "rank 1 has been silent for 3 s"),
        (signal.SIGKILL, 0, "rank 0 is gone: its connection was closed"),
    ],
)
def test_a_rank_that_is_gone_ends_the_others(
    tiny_folder: Path, tmp_path: Path, sent: signal.Signals, to: int, told: str
) -> None:
    with ranks(2, generate(tiny_folder, *LONG), tmp_path) as started:
        assert started[0].stdout is not None
        started[0].stdout.read(1)  # the answer has begun
        begin = time.monotonic()
        started[to].send_signal(sent)
        other = started[1 - to]
        _, errors = other.communicate(timeout=START_S)
        assert time.monotonic() - begin < SOON_S
        assert other.returncode == 1
        assert told in errors
        assert "Traceback" not in errors
        if sent == signal.SIGSTOP:
            started[to].send_signal(signal.SIGCONT)
            started[to].communicate(timeout=START_S)
            assert started[to].returncode == 1


def test_ctrl_c_at_rank_0_ends_all(tiny_folder: Path, tmp_path: Path) -> None:
    with ranks(2, generate(tiny_folder, *LONG), tmp_path) as started:
        assert started[0].stdout is not None
        started[0].stdout.read(1)
        for process in reversed(started):  # as a terminal sends it to all
            process.send_signal(signal.SIGINT)
        (first, _, said), (second, told, errors) = ends(started)
    assert first == 130
    assert "interrupted\n" in said
    assert (second, told) == (130, "")
    assert "rank" not in errors


def test_a_rank_with_another_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with ranks(2, generate("demo", "Hello"), tmp_path, generate(tiny_folder)) as started:
        (first, said, error), (second, *_, other) = ends(started)
    assert (first, second, said) == (1, 1, "")
    assert "rank 1 has another shape of the model" in error
    assert last_line(error) == last_line(other)


def test_a_rank_without_the_model_says_so_to_all(tiny_folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with ranks(2, generate(tiny_folder, "Hello"), tmp_path, generate(missing)) as started:
        (first, said, error), (second, *_) = ends(started)
    assert (first, second, said) == (1, 1, "")
    assert last_line(error).startswith("mlx-qwenvl generate: rank 1: ")
    assert str(missing) in last_line(error)


def test_the_chat_answers_the_lines_of_rank_0(demo: QwenVL, tmp_path: Path) -> None:
    command = ["-m", "mlx_qwenvl.chat", "--model", "demo", "--dtype", "float32"]
    with ranks(2, command, tmp_path, stdin=subprocess.PIPE) as started:
        lines, started[0].stdin = started[0].stdin, None
        assert lines is not None
        lines.write(f"\\image {STAR} What is shown?\n\\model demo\nWhat color is it?\n\\quit\n")
        lines.flush()  # and stays open, as mlx.launch leaves it
        (code, said, errors), second = ends(started)
        lines.close()
    chat = demo.chat()
    first = chat.ask("What is shown?", images=[STAR]).text
    assert said == f"{first}\n{chat.ask('What color is it?').text}\n"
    assert "2 processes hold this model; start them with another one\n" in errors
    assert (code, second) == (1, (1, "", ""))  # a line that went wrong is told in the exit code


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["generate", "--image", "-", "Hello"], "--image - reads standard input"),
        (["batch", "--images-from", "-", "--prompt", "Hello"], "files named on standard input"),
    ],
)
def test_standard_input_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    told: str,
) -> None:
    module = {"generate": mlx_qwenvl.generate, "batch": mlx_qwenvl.batch}[command[0]]
    monkeypatch.setattr(module, "launched", lambda: SimpleNamespace(leads=True))
    assert module.main(command[1:]) != 0
    assert capsys.readouterr().err.startswith(f"mlx-qwenvl {command[0]}: {told}")


def test_three_ranks_cannot_share_two_heads(tmp_path: Path) -> None:
    with ranks(3, generate("demo", "Hello"), tmp_path) as started:
        told = ends(started)
    said = "3 ranks cannot share 2 key-value heads evenly; this model runs on 2"
    assert [code for code, *_ in told] == [2, 2, 2]
    assert told[0][1:] == ("", f"mlx-qwenvl generate: {said}\n")


def test_mlx_launch_prints_one_answer() -> None:
    question = [sys.executable, *generate("demo", "--image", STAR, "What is shown?")]
    alone = subprocess.run(
        question, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )
    port = free_ports(3)[0]
    launch = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2"]
    both = subprocess.run(
        [*launch, "--starting-port", str(port), "--env", f"PYTHONPATH={ROOT}", "--", *question],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=START_S,
        check=True,
    )
    assert both.stdout == alone.stdout
    assert both.stderr == ""


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    first, taken = free_ports(2)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{taken - 1}"]]))
    with socket.create_server(("127.0.0.1", taken)):
        ended = subprocess.run(
            [sys.executable, *generate("demo", "Hello")],
            cwd=ROOT,
            env={"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"mlx-qwenvl generate: rank 0 cannot listen at 127.0.0.1:{taken}: Address already in use; "
        "take other ports (mlx.launch --starting-port) or MLX_QWENVL_RANK_ADDRESS=HOST:PORT\n"
    )
