"""Signs of life, last words and silence, between two ends of a connection."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import convert.__main__
from mlx_qwenvl import QwenVL, bench, info, load
from mlx_qwenvl.distributed import join
from mlx_qwenvl.distributed.commands import Close, Hello
from mlx_qwenvl.distributed.join import Place, place_of, silence_of
from mlx_qwenvl.distributed.line import Ended, Line
from mlx_qwenvl.distributed.ranks import Ranks
from mlx_qwenvl.distributed.wire import BEAT, read_word, word_bytes
from mlx_qwenvl.engine import fit
from mlx_qwenvl.engine.agreed import Agreed
from mlx_qwenvl.engine.fit import check_answer
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.errors import MemoryExceeded, OptionError, RanksLost
from mlx_qwenvl.inputs.messages import question_messages
from mlx_qwenvl.models.share import Share
from tests.crowds import Question
from tests.distributed.launching import free_ports

SILENCE_S = 2.0
BRIEF_S = 1.0  # where silence is what comes


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
    line, told = Line({1: ours}, BRIEF_S), queue.SimpleQueue[str]()
    line.when_lost(told.put)
    begin = time.monotonic()
    with pytest.raises(RanksLost, match="rank 1 has been silent for 1 s"):
        line.hear()
    assert time.monotonic() - begin >= BRIEF_S
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


def test_a_word_that_was_broken_off_is_the_last(
    lines: tuple[Line, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(word: object) -> None:
        raise KeyboardInterrupt

    leads = of(lines[0], 0)
    monkeypatch.setattr(lines[0], "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        leads.tell(Close(0))
    assert not leads.go_on


def test_the_first_sign_of_life_may_take_longer() -> None:
    ours, theirs = pair()
    line = Line({1: ours}, BRIEF_S, first_s=60.0)
    time.sleep(1.5 * BRIEF_S)
    assert line.reason is None
    theirs.sendall(BEAT)
    with pytest.raises(RanksLost, match="rank 1 has been silent for 1 s"):
        line.hear()
    theirs.close()


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (SystemExit(), 0), (SystemExit(3), 3), (ValueError("no"), 1)]
)
def test_the_others_end_as_the_block_does(
    lines: tuple[Line, Line], error: BaseException | None, code: int
) -> None:
    with suppress(SystemExit, ValueError), of(lines[0], 0):
        if error is not None:
            raise error
    with pytest.raises(Ended) as ended:
        lines[1].hear()
    assert ended.value.code == code


def test_a_step_that_was_broken_off_is_the_last(lines: tuple[Line, Line]) -> None:
    leads = of(lines[0], 0)
    with pytest.raises(KeyboardInterrupt), leads.working():
        raise KeyboardInterrupt
    assert not leads.go_on
    with pytest.raises(RanksLost, match="a step of several ranks was broken off"):
        leads.tell(Close(0))


def test_what_is_kept_for_one_process_is_refused(lines: tuple[Line, Line]) -> None:
    ranks = of(lines[0], 0)
    with pytest.raises(OptionError, match=r"^a draft model is for one process, and 2 hold this"):
        load("demo", draft="demo", ranks=ranks)
    with pytest.raises(OptionError, match=r"^a cache on disk is for one process, and 2 hold this"):
        load("demo", disk_cache=True, ranks=ranks)


def test_logits_are_computed_by_one_process(
    tiny: QwenVL, lines: tuple[Line, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "ranks", of(lines[0], 0))
    with pytest.raises(OptionError, match=r"^logits are computed by one process, and several hold"):
        tiny.logits("Hello")


def test_a_question_that_rank_0_took_is_not_refused_elsewhere(
    tiny: QwenVL, lines: tuple[Line, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "memory_limit", lambda: 1)
    scheduler = tiny.scheduler(1)
    with pytest.raises(MemoryExceeded):
        Question("Hello").add(tiny, scheduler)
    monkeypatch.setattr(scheduler, "_agreed", of(lines[1], 1).agreed)
    Question("Hello").add(tiny, scheduler)
    assert scheduler.queued == 1


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
        ({"MLX_RANK": "0", "MLX_WORLD_SIZE": "2"}, "ranks meet over ring or jaccl"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": os.devnull}, None),
        ({"MLX_RANK": "0", "MLX_WORLD_SIZE": "1"}, None),
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


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (bench.main, ["--model", "demo"]),
        (info.main, ["demo"]),
        (convert.__main__.main, ["--model", "demo", "--output", "/nowhere/out"]),
    ],
)
def test_a_command_for_one_process_is_not_done_by_several(
    main: Callable[[list[str]], int],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5001"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    assert main(arguments) == 2
    out, told = capsys.readouterr()
    assert out == ""
    assert told.endswith(": this command is for one process, and mlx.launch started 2\n")
    assert told.count("\n") == 1


def test_a_rank_beyond_the_hosts_is_refused(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5001"]]')
    with pytest.raises(OptionError, match="MLX_RANK is 2 of 2 ranks"):
        place_of({"MLX_RANK": "2", "MLX_HOSTFILE": str(hosts)})
    elsewhere = {"MLX_QWENVL_RANK_ADDRESS": "mac.local:soon"}
    with pytest.raises(OptionError, match=r"meet at mac\.local:0"):
        place_of({"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)} | elsewhere)


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        ("{}", "expected a list of hosts in it"),
        ('["10.0.0.1:5000", "10.0.0.2:5000"]', "expected a list of hosts in it"),
        ('[["10.0.0.1"], ["10.0.0.2"]]', "meet at no host:0"),
        ("[", "which cannot be read"),
    ],
)
def test_hosts_that_are_none_are_refused(tmp_path: Path, hosts: str, told: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(hosts)
    with pytest.raises(OptionError, match=told):
        place_of({"MLX_RANK": "1", "MLX_HOSTFILE": str(file)})


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
