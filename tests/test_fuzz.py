"""What takes bytes from strangers, under inputs that nobody wrote: a bounded, seeded run.

`python -m benchmarks.fuzz` goes on for as long as it is told, guided by coverage.
"""

from __future__ import annotations

import random
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fuzz import bodies, pictures
from benchmarks.fuzz.coverage import Coverage
from benchmarks.fuzz.loop import Found, fuzz
from benchmarks.fuzz.mutate import mutate_bytes
from benchmarks.fuzz.target import Target, judge
from benchmarks.fuzz.targets import SHARES, target_of
from mlx_qwenvl.errors import MediaError

INPUTS = {"pictures": 4000, "texts": 3000, "messages": 2000, "calls": 1000, "app": 500}
CORPUS = Path(__file__).parent / "fuzz_corpus"
GOOD = {
    "pictures": "picture",
    "texts": "picture",
    "messages": "messages",
    "calls": "1 calls",
    "app": "200",
}
BAD = {
    "pictures": "MediaError",
    "texts": "MediaError",
    "messages": "PromptError",
    "calls": "0 calls",
    "app": "400",
}


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for name in SHARES:
        target_of(name).close()


@pytest.mark.parametrize("name", SHARES)
def test_nothing_but_refusals_comes_of_mutated_inputs(name: str) -> None:
    found = fuzz(target_of(name), 20, lambda found: found.inputs >= INPUTS[name])
    assert found.faults == {}
    assert found.outcomes[GOOD[name]] > 5 and found.outcomes[BAD[name]] > 50


@pytest.mark.parametrize(
    "file", sorted(CORPUS.rglob("*.bin")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_what_broke_once_breaks_no_more(file: Path) -> None:
    verdict = judge(target_of(file.parent.name), file.read_bytes())
    assert verdict.fault == "", verdict


def test_seeds_are_good() -> None:
    for data in pictures.seeds():
        assert judge(pictures.PICTURES, data).outcome == "picture"
    formats = {data[:4] for data in pictures.seeds()}
    assert len(formats) > 6


def _planted(fault: str) -> Target:
    """A target with a bug behind one byte."""

    def run(data: bytes) -> str:
        if b"!" not in data:
            return "fine"
        if fault == "raises":
            raise ValueError("planted")
        if fault == "tells":
            raise MediaError("bad file <_io.BytesIO object at 0x7f35f86c2d40>")
        if fault == "lines":
            raise MediaError("one\ntwo")
        if fault == "slow":
            time.sleep(5)
        if fault == "large":
            bytearray(b"x") * (100 * 2**20)
        return "fine"

    def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
        return data + drawn.choice((b"a", b"!"))

    return Target("planted", lambda: [b"a"], mutate, run, most_s=0.4, most_bytes=2**25)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raises", "ValueError at test_fuzz.py"),
        ("tells", "shows insides"),
        ("lines", "of several lines"),
        ("slow", "longer than 0.4 s"),
        ("large", "MiB of memory"),
    ],
)
def test_a_planted_fault_is_found(fault: str, told: str) -> None:
    found = fuzz(_planted(fault), 0, lambda found: found.inputs >= 5)
    assert found.outcomes["fine"] >= 1
    assert [told in text for text in found.faults] == [True]
    assert all(b"!" in data for data in found.faults.values())


def test_an_address_that_the_input_named_may_be_quoted() -> None:
    target = Target("quoting", list, mutate_bytes, _quote)
    assert judge(target, b"0x7f35f86c2d40").fault == ""


def _quote(data: bytes) -> str:
    raise MediaError(f"no such picture: {data.decode()}")


def _deep(data: bytes) -> str:
    if data[:1] != b"F":
        return "fine"
    if data[1:2] != b"U":
        return "fine"
    if data[2:3] != b"Z":
        return "fine"
    raise ValueError("deep")


def test_coverage_leads_to_what_chance_alone_does_not_reach() -> None:
    def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
        changed = bytearray(data)
        changed[drawn.randrange(3)] = drawn.randrange(256)
        return bytes(changed)

    def enough(found: Found) -> bool:
        return bool(found.faults) or found.inputs > 20_000

    target = Target("deep", lambda: [b"\0\0\0"], mutate, _deep)
    assert not fuzz(target, 1, enough).faults
    guided = fuzz(target, 1, enough, Coverage((Path(__file__),)))
    assert [data[:3] for data in guided.faults.values()] == [b"FUZ"]
    assert guided.corpus > 2 and guided.edges > 4


def test_the_clock_of_whoever_runs_it_goes_on() -> None:
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    judge(_planted("raises"), b"a")
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (left > 0)


def test_an_edited_png_has_right_checksums() -> None:
    drawn, seeds = random.Random(3), pictures.seeds()
    for _ in range(200):
        data = pictures._mutate_png(drawn, seeds[0], seeds[1])
        place = len(pictures.PNG)
        while place < len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            end = place + 8 + length
            assert int.from_bytes(data[end : end + 4], "big") == zlib.crc32(data[place + 4 : end])
            place = end + 4
        assert place == len(data)


def test_mutated_bodies_are_mostly_json_and_never_the_same() -> None:
    drawn, seeds = random.Random(4), bodies.seeds()
    made = {bodies.mutate(drawn, seeds[i % len(seeds)], seeds[-i % len(seeds)]) for i in range(400)}
    assert len(made) > 380
    assert sum(bodies.split(data)[1][:1] in b"{[" for data in made) > 300
