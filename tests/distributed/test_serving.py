"""The server of several processes: rank 0 faces the network, all of them compute."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import server.__main__
from mlx_qwenvl import QwenVL
from tests.distributed.launching import START_S, ends, free_ports, ranks

SOON_S = 30.0
QUESTIONS = ["Name it.", "And what else is there?", "How many?"]


def ask(port: int, text: str, **options: Any) -> HTTPResponse:
    """Ask a server."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "tiny", "messages": messages, "temperature": 0} | options
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=START_S)
    return answer


def text_of(port: int, text: str, **options: Any) -> str:
    """An answer as a whole."""
    said: str = json.load(ask(port, text, **options))["choices"][0]["message"]["content"]
    return said


def command(folder: Path, port: int, *options: str) -> list[str]:
    """Arguments of Python that serve a model."""
    model = ["--model", str(folder), "--dtype", "float32"]
    return ["-m", "server", *model, "--port", str(port), *options]


def test_askers_are_answered_side_by_side_and_leave_when_they_like(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    heard: dict[str, str] = {}
    with ranks(2, command(tiny_folder, port), tmp_path) as started:
        assert started[0].stderr is not None
        assert "serves" in started[0].stderr.readline()

        def work(text: str) -> None:
            heard[text] = text_of(port, text, max_tokens=6)

        threads = [threading.Thread(target=work, args=(text,)) for text in QUESTIONS]
        leaves = ask(port, "Tell me a long story.", max_tokens=1500, stream=True)
        leaves.readline()
        for thread in threads:
            thread.start()
        leaves.close()
        for thread in threads:
            thread.join()
        again = text_of(port, QUESTIONS[0], max_tokens=6)
        started[0].send_signal(signal.SIGTERM)
        (first, *_), second = ends(started)
    for text in QUESTIONS:
        assert heard[text] == tiny.generate(text, temperature=0, max_tokens=6).text
    assert again == heard[QUESTIONS[0]]
    assert (first, second) == (0, (0, "", ""))


def test_who_waits_is_told_when_a_rank_is_gone(tiny_folder: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with ranks(2, command(tiny_folder, port), tmp_path) as started:
        assert started[0].stderr is not None
        assert "serves" in started[0].stderr.readline()
        waits = ask(port, "Tell me a long story.", max_tokens=1500, stream=True)
        waits.readline()
        begin = time.monotonic()
        started[1].send_signal(signal.SIGSTOP)
        last = waits.read().decode().strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        _, errors = started[0].communicate(timeout=START_S)
        assert time.monotonic() - begin < SOON_S
        assert started[0].returncode == 1
        assert "rank 1 has been silent for 3 s" in errors
        assert "Traceback" not in errors
        started[1].send_signal(signal.SIGCONT)
        assert ends(started[1:])[0][0] == 1


def test_a_port_that_is_taken_ends_all(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ranks(2, command(tiny_folder, port), tmp_path) as started:
            first, second = ends(started)
    told = f"127.0.0.1:{port} cannot be listened on: Address already in use"
    assert first == (1, "", f"mlx-qwenvl serve: {told}\n")
    assert second == (1, "", "")


def test_an_idle_model_of_several_processes_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.__main__, "launched", lambda: SimpleNamespace(leads=True))
    assert server.__main__.main(["--model", "demo", "--idle-unload", "10m"]) == 2
    told = "--idle-unload is for one process, and several hold the model together"
    assert capsys.readouterr().err == f"mlx-qwenvl serve: {told}\n"
