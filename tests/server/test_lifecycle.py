"""The server as a process: its lines, its signals, its exit codes and its port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests.server.conftest import body

ROOT = Path(__file__).parents[2]
SOON_S = 60.0  # in which a process has started on a busy machine, in seconds
CHAT = "/v1/chat/completions"
END_S = 3.0  # in which one that nobody waits for has ended, in seconds
SLACK_S = 5.0  # that a busy machine may take in addition, in seconds

# A server whose model takes its time to load; it says so on stderr when it begins.
SLOW = """
import sys, time
from mlx_qwenvl import command
from server import __main__ as program
def load(**options):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(60)
program.load = load
sys.exit(program.main(sys.argv[1:]))
"""


class Process:
    """A server.

    Args:
        arguments: Its command line.
        program: What Python runs.
        environment: What it has beside the usual variables.
    """

    def __init__(
        self,
        *arguments: str,
        program: Sequence[str] = ("-m", "server"),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    @property
    def stderr(self) -> IO[str]:
        assert self.popen.stderr is not None
        return self.popen.stderr

    def until(self, beginning: str) -> str:
        """Read lines until one begins so."""
        for line in self.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(beginning):
                return line
        raise AssertionError(f"it ended without saying {beginning!r}: {self.lines}")

    def ready(self) -> str:
        """Where it listens, once it is ready."""
        return self.until("mlx-qwenvl serves").split()[-1]

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self, seconds: float = SOON_S) -> int:
        """Its exit code; all it said is in `lines` then."""
        code = self.popen.wait(seconds)
        self.lines += self.stderr.read().splitlines()
        return code


class Started:
    """Starts servers, which are gone when the test ends."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened

    def __call__(
        self,
        *arguments: str,
        program: Sequence[str] = ("-m", "server"),
        environment: dict[str, str] | None = None,
    ) -> Process:
        process = Process(*arguments, program=program, environment=environment)
        self._opened.enter_context(process.popen)
        self._opened.callback(process.popen.kill)
        return process


@pytest.fixture
def start() -> Iterator[Started]:
    with ExitStack() as opened:
        yield Started(opened)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(
    url: str, path: str, asked: object = None, headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    """Ask a server; what it answers may still be on its way."""
    host = url.removeprefix("http://").split("/")[0]
    connection = http.client.HTTPConnection(host, timeout=SOON_S)
    data = None if asked is None else json.dumps(asked)
    sent = {"Connection": "close", "Content-Type": "application/json", **(headers or {})}
    connection.request("GET" if asked is None else "POST", path, data, sent)
    return connection.getresponse()


def long_answer(url: str, letters: int) -> http.client.HTTPResponse:
    """A stream whose form makes it long; left to itself the demo would soon end."""
    form = {"type": "regex", "value": f"a{{{letters}}}"}
    asked = body(stream=True, max_tokens=letters, grammar=form)
    return ask(url, CHAT, asked)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_stream_finish_and_ends_with_success(
    start: Started, number: signal.Signals
) -> None:
    port = free_port()
    process = start("--model", "demo", "--port", str(port))
    url = process.ready()
    assert url == f"http://127.0.0.1:{port}/v1"
    with long_answer(url, 150) as response:
        said = [response.readline() for _ in range(9)]
        process.send(number)
        assert process.until(number.name) == f"{number.name}: ending; once more ends at once\n"
        said += response
    assert said[-2:] == [b"data: [DONE]\n", b"\n"]
    assert sum(b"content" in line for line in said) > 50
    assert process.end(END_S + SLACK_S) == 0
    assert len(process.lines) == 2
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_second_signal_ends_at_once(start: Started) -> None:
    port = free_port()
    process = start("--model", "demo", "--port", str(port))
    url = process.ready()
    with long_answer(url, 3000) as response:
        response.readline()
        process.send(signal.SIGTERM)
        process.until("SIGTERM")
        process.send(signal.SIGINT)
        assert process.end(END_S) == 128 + signal.SIGINT
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            response.read()
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_what_takes_longer_than_the_operator_allows_is_cut_off(start: Started) -> None:
    process = start("--model", "demo", "--port", "0", "--drain", "1")
    url = process.ready()
    with long_answer(url, 8000) as response:
        response.readline()
        process.send(signal.SIGTERM)
        begin = time.monotonic()
        said = response.read().split(b"\n\n")
    assert b"the server is ending" in said[-2] and b"[DONE]" not in said[-2]
    assert process.end() == 0
    assert time.monotonic() - begin < 1 + END_S + SLACK_S
    assert len(process.lines) == 2


def test_a_port_that_is_taken_is_told_in_one_line(start: Started) -> None:
    first = start("--model", "demo", "--port", "0")
    port = first.ready().split(":")[-1].removesuffix("/v1")
    second = start("--model", "demo", "--port", port)
    assert second.end() == 1
    assert second.lines == [
        f"mlx-qwenvl serve: 127.0.0.1:{port} cannot be listened on: Address already in use"
    ]
    with ask(f"http://127.0.0.1:{port}", "/health") as response:
        assert json.load(response)["state"] == "ready"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prot", "80"], 2, "--help"),
        (["--port", "65536"], 2, "--port is 65536"),
        (["--max-queue", "-1"], 2, "--max-queue is -1"),
        (["--idle-unload", "soon"], 2, "--idle-unload is 'soon'"),
        (["--on-crash", "laugh"], 2, "--on-crash"),
        (["--host", "0.0.0.0"], 2, "needs an API key"),
        (["--model", "./nowhere"], 1, "nowhere"),
        (["--model", "demo", "--quantize", "3.5bit"], 2, "3.5bit"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    start: Started, arguments: list[str], code: int, said: str
) -> None:
    with_port = arguments if "--port" in arguments else [*arguments, "--port", "0"]
    process = start(*([] if "--model" in arguments else ["--model", "demo"]), *with_port)
    assert process.end() == code
    (line,) = process.lines
    assert line.startswith("mlx-qwenvl serve: ") and said in line


def test_there_is_a_page_of_help(start: Started) -> None:
    process = start("--help")
    out, err = process.popen.communicate(timeout=SOON_S)
    assert process.popen.returncode == 0 and not err
    assert out.startswith("usage: mlx-qwenvl serve")
    for flag in ("--model", "--port", "--idle-unload", "--on-crash", "--api-key-file"):
        assert flag in out


def test_a_key_in_the_environment_is_asked_for(start: Started) -> None:
    key = {"MLX_QWENVL_API_KEY": "a long secret".replace(" ", "-")}
    process = start("--model", "demo", "--port", "0", environment=key)
    url = process.ready()
    with ask(url, "/v1/models") as response:
        assert response.status == 401
    headers = {"Authorization": f"Bearer {key['MLX_QWENVL_API_KEY']}"}
    with ask(url, "/v1/models", headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_still_loads_says_so_and_ends_at_once(
    start: Started, number: signal.Signals
) -> None:
    port = free_port()
    process = start("--model", "demo", "--port", str(port), program=["-c", SLOW])
    process.until("loading")
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + SOON_S
    while True:
        try:
            response = ask(url, "/health")
            break
        except ConnectionError:  # the port is taken before the loop runs
            assert time.monotonic() < end
    with response:
        assert response.status == 503 and json.load(response)["status"] == "loading"
        assert int(response.headers["Retry-After"]) >= 1
    with ask(url, CHAT, body()) as response:
        assert response.status == 503 and int(response.headers["Retry-After"]) >= 1
        assert json.load(response)["error"]["code"] == "unavailable"
    process.send(number)
    assert process.end(END_S + SLACK_S) == 0
    assert process.lines == ["loading", f"{number.name}: ending; once more ends at once"]
