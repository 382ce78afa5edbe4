"""Files of weights: any reader reads them; what was broken off is finished to the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

from convert import Wishes, convert, layout
from convert.shard import Shard, journal_of, write_shard
from convert.tensors import Job, Spec
from mlx_qwenvl.weights.files import INDEX_FILE, read_header, read_metadata
from mlx_qwenvl.weights.verify import verify
from tests.conversions import bits_of, tensors_in

WISHES = Wishes(("4bit", "mixed_4_6", "8bit"), vision_bits=8, dtype="float16")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output with several variants and several files of each."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 300_000)
    convert(tiny_folder, tmp_path / "folder", WISHES)
    return tmp_path / "folder"


@pytest.fixture
def single(tiny_folder: Path, tmp_path: Path) -> Path:
    """The same in one file."""
    convert(tiny_folder, tmp_path / "single.safetensors", WISHES, single_file=True)
    return tmp_path / "single.safetensors"


# --- What was written ---------------------------------------------------------------------------


def assert_well_formed(file: Path) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__")["format"] == "mlx"
    places = [tuple(entry["data_offsets"]) for entry in header.values()]
    assert places[0][0] == 0 and places[-1][1] == len(data) - 8 - length
    assert all(end == begin for (_, end), (begin, _) in pairwise(places))


def test_two_other_readers_read_equal_tensors(folder: Path, single: Path) -> None:
    files = [single, *folder.rglob("*.safetensors")]
    assert len(files) > 6
    for file in files:
        assert_well_formed(file)
        by_mlx = tensors_in(file)
        with safe_open(file, framework="mlx") as opened:
            assert set(opened.keys()) == by_mlx.keys()
            for name, array in by_mlx.items():
                assert bits_of(opened.get_tensor(name)) == bits_of(array)


def test_checksums_in_the_indices_are_those_of_the_files(folder: Path) -> None:
    indices = list(folder.rglob(INDEX_FILE))
    stated: dict[Path, str] = {}
    for file in indices:
        index = json.loads(file.read_text())
        assert set(index["weight_map"].values()) == index["metadata"]["sha256"].keys()
        stated |= {file.parent / name: d for name, d in index["metadata"]["sha256"].items()}
        held = [t for name in index["metadata"]["sha256"] for t in read_header(file.parent / name)]
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in held)
        assert index["weight_map"] == {tensor.key: tensor.file.name for tensor in held}
    files = set(folder.rglob("*.safetensors"))
    assert len(indices) == 3 and stated.keys() == files
    assert stated == {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert all(checked.is_sound for checked in verify(folder))


def test_the_header_of_a_single_file_states_the_checksum_of_the_rest(single: Path) -> None:
    data = single.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    assert read_metadata(single)["data_sha256"] == hashlib.sha256(data[begin:]).hexdigest()
    assert [checked.is_sound for checked in verify(single)] == [True]


def test_no_trace_of_the_work_stays(folder: Path, single: Path, tmp_path: Path) -> None:
    assert {entry.name for entry in tmp_path.iterdir()} == {folder.name, single.name}
    files = {file.name for file in folder.rglob("*") if file.is_file()}
    assert all(name.endswith((".json", ".safetensors")) for name in files)
    assert "order.json" not in files


# --- Broken off and taken up --------------------------------------------------------------------


@dataclass
class Text:
    """A job of some bytes that counts how often it is done."""

    name: str
    data: bytes
    times: int = 0

    @property
    def specs(self) -> list[Spec]:
        half = len(self.data) // 2
        return [
            Spec(f"{self.name}.a", "U8", (half,)),
            Spec(f"{self.name}.b", "U8", (len(self.data) - half,)),
        ]

    @property
    def read_bytes(self) -> int:
        return len(self.data)

    def blocks(self) -> Iterator[memoryview]:
        self.times += 1
        for begin in range(0, len(self.data), 100):
            yield memoryview(self.data[begin : begin + 100])


@dataclass
class Work:
    """A file of five tensors, one of them empty.

    Attributes:
        folder: Where it is written.
        digests_itself: Whether its header states its checksum.
        jobs: The tensors.
    """

    folder: Path
    digests_itself: bool
    jobs: list[Text] = field(default_factory=list)

    def write(self) -> str:
        """Write or finish the file; counts begin anew."""
        sizes = (1000, 250, 0, 777, 64)
        chance = np.random.default_rng(5)
        self.jobs = [Text(f"t{n}", chance.bytes(size)) for n, size in enumerate(sizes)]
        jobs: list[Job] = [*self.jobs]
        shard = Shard("w.safetensors", jobs, {"format": "mlx"}, self.digests_itself)
        return write_shard(self.folder, shard, lambda job: None)

    @property
    def file(self) -> Path:
        """The file."""
        return self.folder / "w.safetensors"

    @property
    def journal(self) -> Path:
        """Its journal."""
        return journal_of(self.file)

    @property
    def done(self) -> list[str]:
        """Jobs that the last writing did."""
        assert all(job.times <= 1 for job in self.jobs)
        return [job.name for job in self.jobs if job.times]


def cut_journal(work: Work) -> None:
    lines = work.journal.read_bytes().splitlines(keepends=True)
    work.journal.write_bytes(b"".join(lines[:2]) + lines[2][:-1])


def mangle_journal(with_what: bytes) -> Callable[[Work], None]:
    def mangle(work: Work) -> None:
        lines = work.journal.read_bytes().splitlines(keepends=True)
        work.journal.write_bytes(b"".join([*lines[:2], with_what, *lines[3:]]))

    return mangle


def lose_journal(work: Work) -> None:
    work.journal.unlink()


def empty_journal(work: Work) -> None:
    work.journal.write_bytes(b"")


def prolong_journal(work: Work) -> None:
    with work.journal.open("ab") as opened:
        opened.write(b"123\n456\n")


def lose_file(work: Work) -> None:
    work.file.unlink()


def change(where: int) -> Callable[[Work], None]:
    """Change one byte, counted from the file's end."""

    def spoil(work: Work) -> None:
        data = bytearray(work.file.read_bytes())
        data[where] ^= 1
        work.file.write_bytes(data)

    return spoil


def shorten(nbytes: int) -> Callable[[Work], None]:
    def cut(work: Work) -> None:
        work.file.write_bytes(work.file.read_bytes()[:-nbytes])

    return cut


def lengthen(work: Work) -> None:
    with work.file.open("ab") as opened:
        opened.write(b"what another program left")


def spoil_header(work: Work) -> None:
    work.file.write_bytes(work.file.read_bytes().replace(b'"U8"', b'"I8"', 1))


ALL, LAST = ["t0", "t1", "t2", "t3", "t4"], ["t2", "t3", "t4"]
# What befell a finished file and its journal, and which tensors have to be made again.
DAMAGES: dict[str, tuple[Callable[[Work], None], list[str]]] = {
    "nothing": (lambda work: None, []),
    "a line cut short": (cut_journal, LAST),
    "a line of zeros": (mangle_journal(b"\0\0\0\0\n"), LAST),
    "a line of other bytes": (mangle_journal(b"\xff\xfe9\n"), LAST),
    "an empty line": (mangle_journal(b"\n"), LAST),
    "a negative line": (mangle_journal(b"-1\n"), LAST),
    "a line of digits that int() refuses": (mangle_journal(b"7" * 5000 + b"\n"), LAST),
    "another checksum": (mangle_journal(b"4294967295\n"), LAST),
    "a number that is no checksum of ours": (mangle_journal(b"01\n"), LAST),
    "no journal": (lose_journal, ALL),
    "an empty journal": (empty_journal, ALL),
    "a longer journal": (prolong_journal, []),
    "no file": (lose_file, ALL),
    "a changed byte in the last tensor": (change(-1), ["t4"]),
    "a changed byte in the fourth": (change(-65), ["t3", "t4"]),
    "a changed byte in the first": (change(-64 - 777 - 250 - 1), ALL),
    "the last byte lost": (shorten(1), ["t4"]),
    "the last tensors lost": (shorten(64 + 777 + 1), ["t1", "t2", "t3", "t4"]),
    "all but a part of the header lost": (shorten(64 + 777 + 250 + 1000 + 20), ALL),
    "bytes behind the end": (lengthen, []),
    "another header": (spoil_header, ALL),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("digests_itself", [False, True])
def test_what_is_taken_up_ends_as_if_nothing_had_happened(
    tmp_path: Path, damage: str, digests_itself: bool
) -> None:
    undisturbed = Work(tmp_path / "a", digests_itself)
    expected, spoil = undisturbed.write(), DAMAGES[damage]
    assert undisturbed.done == ALL
    work = Work(tmp_path / "b", digests_itself)
    work.write()
    spoil[0](work)
    assert work.write() == expected
    assert work.done == spoil[1]
    assert work.file.read_bytes() == undisturbed.file.read_bytes()
    assert work.journal.read_bytes() == undisturbed.journal.read_bytes()


@pytest.mark.parametrize("digests_itself", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_error_between_blocks_loses_no_finished_tensor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    digests_itself: bool,
) -> None:
    expected = Work(tmp_path / "a", digests_itself)
    digest, blocks = expected.write(), Text.blocks

    def broken(job: Text) -> Iterator[memoryview]:
        for number, block in enumerate(blocks(job)):
            if job.name == "t3" and number == 3:
                raise error
            yield block

    work = Work(tmp_path / "b", digests_itself)
    monkeypatch.setattr(Text, "blocks", broken)
    with pytest.raises(error):
        work.write()
    monkeypatch.undo()
    vouched = len(work.journal.read_bytes().splitlines())
    assert vouched <= 3  # never for what is not written whole
    assert work.write() == digest
    assert work.done == ALL[vouched:]
    assert work.file.read_bytes() == expected.file.read_bytes()


def test_an_empty_small_file_and_a_single_row_are_written(tmp_path: Path) -> None:
    work = Work(tmp_path, digests_itself=True)
    work.write()
    assert_well_formed(work.file)
    found = tensors_in(work.file)
    assert found["t2.a"].shape == found["t2.b"].shape == (0,)
    assert bytes(np.asarray(found["t4.b"])) == work.jobs[4].data[32:]
    assert found["t0.a"].dtype == mx.uint8
