"""However a batch ends, what was answered is kept, and the same command goes on from there."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batching.conftest import COUNT, GREEDY, Gallery
from tests.command_lines import PATIENCE, ROOT, interrupted_while_loading, run, start

BATCH = ("-m", "mlx_qwenvl.batch", "--model", "demo", "--prompt", COUNT, "--temperature", "0")
SLOWLY = (*BATCH, "--max-running", "2", "--max-tokens", str(GREEDY["max_tokens"]))


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, without what a killed process left of a last one."""
    data = file.read_bytes() if file.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while len(whole_lines(file)) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A URL whose host takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.png"


def test_killed_at_any_time_it_goes_on_and_every_picture_has_one_line(
    gallery: Gallery, tmp_path: Path
) -> None:
    rng, file = random.Random(7), tmp_path / "a.jsonl"
    command = (*SLOWLY, "--images", gallery.folder, "--output", file)
    had = 0
    for _ in range(3):
        with start(*command) as process:
            wait_for_lines(file, had + rng.randint(1, 3), process)
            time.sleep(rng.random() * 0.05)
            process.kill()
        kept = whole_lines(file)
        assert len(kept) > had
        had = len(kept)
    ran = run(*command)
    assert ran.code == 0 and f" {had} were done before, 0 failed" in ran.err
    answered = {entry["image"]: entry["text"] for entry in whole_lines(file)}
    assert len(whole_lines(file)) == len(answered) == 12
    assert answered == dict(zip(map(str, gallery.paths), gallery.alone, strict=True))


def test_interrupted_once_it_keeps_what_is_complete_and_says_how_to_go_on(
    gallery: Gallery, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    command = (*SLOWLY, "--images", gallery.folder, "--output", file)
    with start(*command) as process:
        wait_for_lines(file, 1, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    kept = whole_lines(file)
    assert process.returncode == 130 and 1 <= len(kept) < 12
    assert file.read_bytes().endswith(b"\n")
    told = errors.decode().splitlines()
    assert told[0].startswith(f"{len(kept)} of 12 answered")
    left = f"interrupted; {12 - len(kept)} are left; the same command goes on"
    assert told[1:] == [f"mlx-qwenvl batch: {left}"]
    assert run(*command).code == 0 and whole_lines(file)[: len(kept)] == kept


def test_interrupted_while_a_host_is_silent_it_leaves_all_the_same(
    gallery: Gallery, tmp_path: Path, silent_url: str
) -> None:
    file = tmp_path / "a.jsonl"
    pictures = map(str, gallery.paths[:2])
    command = (*SLOWLY, "--images", silent_url, *pictures, "--output", str(file))
    with start(*command) as process:
        wait_for_lines(file, 2, process)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and b"interrupted; 1 are left" in errors
    assert time.monotonic() - begin < 15  # a host may take 30 seconds


def test_interrupted_before_it_asks_anything_is_one_line(tmp_path: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "slow")
    command = ("-m", "mlx_qwenvl.batch", ROOT / "examples" / "images", "--model", folder)
    output = ("--output", tmp_path / "a.jsonl")
    code, out, errors = interrupted_while_loading(folder, *command, *output)
    assert (code, out, errors) == (130, "", ["mlx-qwenvl batch: interrupted"])
    assert not (tmp_path / "a.jsonl").exists()


def test_a_second_instance_on_one_output_is_refused_in_one_line(
    gallery: Gallery, tmp_path: Path, silent_url: str
) -> None:
    file = tmp_path / "a.jsonl"
    pictures = map(str, gallery.paths[:2])
    command = (*SLOWLY, "--images", silent_url, *pictures, "--output", str(file))
    with start(*command) as process:
        wait_for_lines(file, 1, process)
        second = run(*command)
        process.kill()
    assert (second.code, second.out, len(second.err_lines)) == (1, "", 1)
    assert "another run is writing to" in second.err and len(whole_lines(file)) <= 2


def test_a_reader_that_leaves_early_causes_no_traceback(gallery: Gallery) -> None:
    with start(*SLOWLY, "--images", gallery.folder) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["prompt"] == COUNT
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("output", ["> /dev/full", "--output /dev/full"])
def test_a_full_device_is_one_line(gallery: Gallery, output: str) -> None:
    ran = shell(f"{sys.executable} -m mlx_qwenvl.batch {gallery.folder} --model demo {output}")
    assert ran.returncode == 1
    assert ran.stderr.decode().splitlines() == ["mlx-qwenvl batch: No space left on device"]


def test_a_file_that_may_not_grow_keeps_whole_lines_and_goes_on_when_it_may(
    gallery: Gallery, tmp_path: Path
) -> None:
    """A limit on file sizes is what a process without rights can have of a full disk."""
    file = tmp_path / "a.jsonl"
    command = f"{sys.executable} -m mlx_qwenvl.batch {gallery.folder} --model demo --output {file}"
    ran = shell(f"ulimit -f 2; {command}")
    assert ran.returncode == 1
    (line,) = ran.stderr.decode().splitlines()
    assert "no space is left for" in line and line.endswith("the same command goes on")
    kept = whole_lines(file)
    assert 0 < len(kept) < 12 and file.read_bytes().endswith(b"}\n")
    assert shell(command).returncode == 0
    assert whole_lines(file)[: len(kept)] == kept and len(whole_lines(file)) == 12


def shell(script: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE, env=env)


@pytest.mark.parametrize("to", ["file", "stdout"])
def test_a_terminal_sees_how_far_it_is_unless_the_answers_go_there_too(
    gallery: Gallery, tmp_path: Path, to: str
) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    output = ("--output", tmp_path / "a") if to == "file" else ()
    with subprocess.Popen(
        [sys.executable, *map(str, (*SLOWLY, gallery.folder, *output))],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(theirs)
        said = read_all(ours)
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert said.splitlines()[-1].startswith("12 of 12 answered")
    states = re.findall(r"(\d+)%\|.*?\| (\d+)/12 \[\d+:\d+<(\S+), +(\S+) pictures/s\]", said)
    if to == "stdout":
        assert not states and len([json.loads(line) for line in said.splitlines()[:-1]]) == 12
        return
    assert [int(state[1]) for state in states] == sorted(int(state[1]) for state in states)
    assert states[-1][:2] == ("100", "12")
    assert any(re.fullmatch(r"\d+:\d+", left) for _, _, left, _ in states)


def test_a_second_interruption_on_a_terminal_leaves_at_once(
    gallery: Gallery, tmp_path: Path
) -> None:
    """The first one is seen between two steps; this model's first step never ends."""
    stuck = (
        "import signal, sys, time\n"
        "from mlx_qwenvl.engine.scheduler import Scheduler\n"
        "from mlx_qwenvl.batch import main\n"
        "def step(scheduler):\n"
        "    print('stuck', file=sys.stderr, flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "Scheduler.step = step\n"
        "main(sys.argv[1:])\n"
    )
    file = tmp_path / "a.jsonl"
    ours, theirs = os.openpty()
    options = (*BATCH[2:], gallery.folder, "--output", file)
    with start("-c", stuck, *options, stderr=theirs) as process:
        os.close(theirs)
        assert "stuck" in read_all(ours, "stuck")
        process.send_signal(signal.SIGINT)
        assert "again leaves at once" in read_all(ours, "at once")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    os.close(ours)


def read_all(terminal: int, until: str | None = None) -> str:
    """What is said on a terminal, to the end or until some words."""
    said, end = b"", time.monotonic() + PATIENCE
    while until is None or until.encode() not in said:
        assert time.monotonic() < end
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux says so where the other side is closed
            break
        if not data:
            break
        said += data
    return said.decode()
