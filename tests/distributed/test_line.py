"""Signs of life, last words and silence, between two ends of a connection."""

from __future__ import annotations

import argparse
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.arguments import load_model
from mlx_qwenvl.distributed import join
from mlx_qwenvl.distributed.commands import Close, Hello
from mlx_qwenvl.distributed.join import Place, place_of, silence_of
from mlx_qwenvl.distributed.line import Ended, Line
from mlx_qwenvl.distributed.ranks import Ranks
from mlx_qwenvl.distributed.wire import read_word, word_bytes
from mlx_qwenvl.engine.agreed import Agreed
from mlx_qwenvl.engine.fit import check_answer
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.errors import MemoryExceeded, OptionError, RanksLost
from mlx_qwenvl.inputs.messages import question_messages
from mlx_qwenvl.models.share import Share
from tests.distributed.launching import free_ports

SILENCE_S = 2.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """Rank 0's end and rank 1's."""
    one, other = pair()
    both = Line({1: one}, SILENCE_S), Line({0: other}, SILENCE_S)
    yield both
    for line in both:
        line.close(0, "")
    one.close()
    other.close()


def of(line: Line, rank: int) -> Ranks:
    """One of two ranks."""
    return Ranks(Share(rank, 2, lambda array: array), line)


def test_a_peer_that_says_nothing_counts_as_gone() -> None:
    ours, theirs = pair()
    line, told = Line({1: ours}, SILENCE_S), queue.SimpleQueue[str]()
    line.when_lost(told.put)
    begin = time.monotonic()
    with pytest.raises(RanksLost, match="rank 1 has been silent for 2 s"):
        line.hear()
    assert time.monotonic() - begin >= SILENCE_S
    assert told.get(timeout=5) == line.reason
    with pytest.raises(RanksLost):
        line.tell(Close(0))
    theirs.close()


def test_signs_of_life_are_enough(lines: tuple[Line, Line]) -> None:
    leads, follows = lines
    time.sleep(1.5 * SILENCE_S)
    assert (leads.reason, follows.reason) == (None, None)
    leads.tell(Close(7))
    assert follows.hear() == (0, Close(7))


def test_the_end_of_rank_0_is_the_end_of_all(lines: tuple[Line, Line]) -> None:
    leads, follows = lines
    leads.close(130, "")
    with pytest.raises(Ended) as ended:
        follows.hear()
    assert ended.value.code == 130
    assert follows.reason is None


def test_what_a_rank_dies_of_is_told(lines: tuple[Line, Line]) -> None:
    leads, follows = lines
    follows.close(1, "no such model")
    with pytest.raises(RanksLost, match="rank 1: no such model"):
        leads.hear()


def test_a_rank_that_hears_something_else_is_out_of_step(lines: tuple[Line, Line]) -> None:
    leads, follows = of(lines[0], 0), of(lines[1], 1)
    leads.agreed.number(3)
    assert follows.agreed.number(5) == 3
    leads.tell(Close(0))
    with pytest.raises(RanksLost, match="rank 1 has fallen out of step"):
        follows.agreed.clock()
    with pytest.raises(RanksLost, match="rank 1 has fallen out of step"):
        lines[0].hear()


def test_rank_0_reads_the_clock_for_all(lines: tuple[Line, Line]) -> None:
    leads, follows = of(lines[0], 0), of(lines[1], 1)
    readings = [leads.agreed.clock() for _ in range(3)]
    assert [follows.agreed.clock() for _ in range(3)] == readings


def test_ranks_that_differ_are_told_in_what(lines: tuple[Line, Line]) -> None:
    leads, follows = of(lines[0], 0), of(lines[1], 1)
    said: list[str] = []

    def compare() -> None:
        try:
            follows.compare({"version of MLX": "1", "dtype": "float32"})
        except RanksLost as error:
            said.append(str(error))

    thread = threading.Thread(target=compare)
    thread.start()
    why = "rank 1 has another dtype: float32, rank 0 has bfloat16"
    with pytest.raises(RanksLost, match=why):
        leads.compare({"version of MLX": "1", "dtype": "bfloat16"})
    thread.join()
    assert said == [why]


def test_a_step_that_was_broken_off_is_the_last(lines: tuple[Line, Line]) -> None:
    leads = of(lines[0], 0)
    with pytest.raises(KeyboardInterrupt), leads.working():
        raise KeyboardInterrupt
    assert not leads.go_on
    with pytest.raises(RanksLost, match="a step of several ranks was broken off"):
        leads.tell(Close(0))


@pytest.mark.parametrize(("said", "fits"), [([-1, 0], True), ([9, 4, 1], False)])
def test_there_is_memory_where_rank_0_says_so(tiny: QwenVL, said: list[int], fits: bool) -> None:
    """Whatever this machine has: what is lacking, what cut pictures freed, what lacks still."""
    options, numbers = Options(max_tokens=4), iter(said)
    prompt = tiny.prompt(question_messages("Hello", [], None, None), options)
    agreed = Agreed(time.perf_counter, lambda ours: next(numbers))

    def check() -> None:
        check_answer(tiny.model, prompt, options, tiny.stores, tiny.stores, agreed=agreed)

    if fits:
        check()
    else:
        with pytest.raises(MemoryExceeded):
            check()
    assert list(numbers) == []


def test_the_launcher_says_who_is_who(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    environment = {"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)}
    hosts.write_text('[["10.0.0.1:5000", "10.0.1.1:5001"], ["10.0.0.2:5002"]]')
    assert place_of(environment) == Place(1, 2, "10.0.0.1", 5003)
    elsewhere = environment | {"MLX_QWENVL_RANK_ADDRESS": "mac.local:6000"}
    assert place_of(elsewhere) == Place(1, 2, "mac.local", 6000)
    hosts.write_text("\n")  # as mlx.launch -n 1 leaves it
    assert place_of(environment) is None
    assert place_of({}) is None
    devices = tmp_path / "devices.json"
    devices.write_text('[[null, "rdma_en5"], ["rdma_en5", null]]')
    jaccl = {"MLX_IBV_DEVICES": str(devices), "MLX_JACCL_COORDINATOR": "10.0.0.1:5000"}
    assert place_of({"MLX_RANK": "0"} | jaccl) == Place(0, 2, "10.0.0.1", 5001)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MLX_RANK": "first"}, "MLX_RANK is 'first', expected a number"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "/nowhere"}, "MLX_HOSTFILE is '/nowhere', which cannot"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": os.devnull}, None),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused(
    environment: dict[str, str], told: str | None
) -> None:
    if told is None:
        assert place_of(environment) is None
        return
    with pytest.raises(OptionError, match=told):
        place_of(environment)


def test_a_command_for_one_process_is_not_answered_by_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5001"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    with pytest.raises(OptionError, match="this command is for one process"):
        load_model(argparse.Namespace(model="demo"))


def test_a_rank_beyond_the_hosts_is_refused(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5001"]]')
    with pytest.raises(OptionError, match="MLX_RANK is 2 of 2 ranks"):
        place_of({"MLX_RANK": "2", "MLX_HOSTFILE": str(hosts)})
    hosts.write_text("{}")
    with pytest.raises(OptionError, match="expected a list of hosts in it"):
        place_of({"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts)})


@pytest.mark.parametrize("said", ["soon", "1", "-3", "2.5", ""])
def test_silence_is_a_number_of_seconds(said: str) -> None:
    assert (silence_of({}), silence_of({"MLX_QWENVL_RANK_SILENCE": "3"})) == (8, 3)
    with pytest.raises(OptionError, match="expected seconds from 2 up"):
        silence_of({"MLX_QWENVL_RANK_SILENCE": said})


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "JOIN_S", 0.3)
    (port,) = free_ports(1)
    with pytest.raises(RanksLost, match="rank 1, 2 did not come within 0 s"):
        join._gathered(Place(0, 3, "127.0.0.1", port), time.monotonic() + 0.3)
    with pytest.raises(RanksLost, match=f"rank 1 cannot reach rank 0 at 127.0.0.1:{port}"):
        join._reached(Place(1, 3, "127.0.0.1", port), time.monotonic() + 0.3)


def test_strangers_at_the_door_are_sent_away() -> None:
    (port,) = free_ports(1)
    place, end = Place(0, 2, "127.0.0.1", port), time.monotonic() + 20
    found: list[dict[int, socket.socket]] = []
    thread = threading.Thread(target=lambda: found.append(join._gathered(place, end)))
    thread.start()
    for words in (b"GET / HTTP/1.1\r\n\r\n", word_bytes(Hello(1, 3)), word_bytes(Hello(0, 2))):
        sock = _connected(port)
        sock.sendall(words)
        sock.settimeout(10)
        with suppress(ConnectionResetError):  # it did not read all
            assert sock.recv(1) == b""
        sock.close()
    ours = _connected(port)
    ours.sendall(word_bytes(Hello(1, 2)))
    assert read_word(ours) == Hello(0, 2)
    thread.join()
    assert list(found[0]) == [1]
    ours.close()
    found[0][1].close()


def _connected(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)
