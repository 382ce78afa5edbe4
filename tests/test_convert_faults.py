"""Whatever befalls a conversion: one line says what and how to go on, and nothing is lost.

Every test here also holds the source against what it was before.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import Wishes, convert, shard, tensors
from convert.__main__ import main
from convert.draft import Unfinished, draft_folder
from mlx_qwenvl import CheckpointError, QwenVLError, load
from mlx_qwenvl.weights import files
from mlx_qwenvl.weights.files import StoredTensor
from mlx_qwenvl.weights.resolve import DEMO_FOLDER
from tests.command_lines import PATIENCE, Ran, run, start
from tests.conversions import assert_same_weights, contents
from tests.faults import MODEL_FAULTS, WEIGHTS, change_config
from tests.golden.tiny import write_checkpoint

PROGRAM = "mlx-qwenvl convert: "
CONVERT = ("-m", "convert")
SOON = 10.0  # seconds, on a loaded machine; alone it is under one
ENOUGH = 9 * 10**12  # bytes
# The converter with an accident when it reads its n-th block.
SABOTAGED = """
import os, signal, sys, time
from pathlib import Path
from convert import tensors

read, count = tensors.read_rows, 0

def read_rows(tensor, begin, end):
    global count
    count += 1
    if count == {block}:
        {accident}
    return read(tensor, begin, end)

tensors.BLOCK_BYTES = 2**14
tensors.read_rows = read_rows
from convert.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WAIT = "Path('{begun}').touch()\n        while not Path('{free}').exists(): time.sleep(0.01)"
MIDDLE = 60  # a block in the middle

Refused = Callable[..., str]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A dense checkpoint in a place that may be spoiled, and that nobody else may change."""
    folder = write_checkpoint(tmp_path / "source", dtype="bfloat16", shards=2)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where to convert to; nothing else lies in its folder."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "output"


def arguments(source: Path, output: Path, *options: str | Path) -> list[str]:
    return ["--model", str(source), "--output", str(output), *map(str, options)]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that is said to a command line that fails, without the program's name."""

    def ask(code: int, source: Path, output: Path, *options: str | Path) -> str:
        capsys.readouterr()
        begin = time.perf_counter()
        try:
            got = main(arguments(source, output, *options))
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            got = exit.code
        assert time.perf_counter() - begin < SOON
        captured = capsys.readouterr()
        assert (got, captured.out) == (code, "")
        return only_line(captured.err)

    return ask


def only_line(err: str) -> str:
    assert err.count("\n") == 1 and err.startswith(PROGRAM), err
    return err.removeprefix(PROGRAM).rstrip("\n")


def sabotaged(accident: str, block: int, *options: str | Path) -> Ran:
    """Run the converter in another process and let something happen in the middle."""
    return run("-c", SABOTAGED.format(accident=accident, block=block), *options)


def fail_at(
    monkeypatch: pytest.MonkeyPatch, block: int, accident: Callable[[], object]
) -> SimpleNamespace:
    """Let something happen when the n-th block is read in this process."""
    reading = SimpleNamespace(count=0)

    def read_rows(tensor: StoredTensor, begin: int, end: int) -> mx.array:
        reading.count += 1
        if reading.count == block:
            accident()
        return files.read_rows(tensor, begin, end)

    monkeypatch.setattr(tensors, "read_rows", read_rows)
    return reading


def throw(error: BaseException) -> Callable[[], object]:
    def accident() -> None:
        raise error

    return accident


def break_off(source: Path, output: Path, *, block: int = 20, **options: Any) -> None:
    """Convert in this process and be interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, block, throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, options.pop("wishes", Wishes(("4bit",))), **options)


def undisturbed(source: Path, folder: Path, wishes: Wishes, **options: Any) -> dict[str, str]:
    """What a conversion of its own gives."""
    convert(source, folder / "undisturbed.safetensors", wishes, **options)
    return contents(folder / "undisturbed.safetensors")


def nothing_half_made_loads(output: Path) -> None:
    """Neither the output nor anything in the draft can be taken for a model."""
    assert not output.exists()
    draft = draft_folder(output)
    for path in (draft, *draft.rglob("*.safetensors"), *draft.glob("variants/*")):
        with pytest.raises(CheckpointError):
            load(path)


# --- Broken off in the middle -------------------------------------------------------------------


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize(("accident", "code"), [(INTERRUPT, 130), (KILL, -signal.SIGKILL)])
def test_a_process_that_ends_in_the_middle_can_be_resumed_to_the_same_bytes(
    source: Path, output: Path, tmp_path: Path, accident: str, code: int, single_file: bool
) -> None:
    output = output.with_suffix(".safetensors")
    options = ["--quantize", "4bit,8bit", "--vision-bits", "8"]
    options += ["--single-file"] if single_file else []
    broken = sabotaged(accident, MIDDLE, *arguments(source, output, *options))
    assert (broken.code, broken.out) == (code, "")
    nothing_half_made_loads(output)
    if code == 130:
        said = only_line(broken.err)
        assert said.startswith("interrupted; ") and "--resume goes on" in said
    told = run(*CONVERT, *arguments(source, output, *options))
    assert (told.code, told.out) == (1, "")
    assert "--resume goes on with it, --overwrite begins anew" in only_line(told.err)
    resumed = run(*CONVERT, *arguments(source, output, *options, "--resume"))
    assert (resumed.code, resumed.out) == (0, "")
    wishes = Wishes(("4bit", "8bit"), vision_bits=8)
    expected = undisturbed(source, tmp_path, wishes, single_file=single_file, name=str(source))
    assert contents(output) == expected
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 31, 62, 78, 79, 91])
def test_resuming_gives_the_same_bytes_wherever_it_was_broken_off(
    source: Path, output: Path, tmp_path: Path, block: int, single_file: bool
) -> None:
    wishes = Wishes(("mixed_4_6", "8bit"), dtype="float16")
    output = output.with_suffix(".safetensors")
    options: dict[str, Any] = {"single_file": single_file, "name": "tiny"}
    break_off(source, output, block=block, wishes=wishes, **options)
    nothing_half_made_loads(output)
    convert(source, output, wishes, resume=True, **options)
    assert contents(output) == undisturbed(source, tmp_path, wishes, **options)
    assert list(output.parent.iterdir()) == [output]


def test_patience_gets_there_however_often_it_is_broken_off(
    source: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(("4bit", "8bit"))
    attempts = 0
    while not output.exists():
        attempts += 1
        assert attempts < 30
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            fail_at(patch, 12, throw(KeyboardInterrupt()))
            convert(source, output, wishes, resume=True, name="tiny")
    assert attempts > 5
    assert contents(output) == undisturbed(source, tmp_path, wishes, name="tiny")


def test_what_was_done_is_not_done_again(source: Path, output: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        reading = fail_at(patch, 10**9, throw(AssertionError()))
        convert(source, output.with_name("whole"), "4bit")
        in_all = reading.count
    break_off(source, output, block=50)
    with pytest.MonkeyPatch.context() as patch:
        reading = fail_at(patch, 10**9, throw(AssertionError()))
        convert(source, output, "4bit", resume=True)
    # Blocks that waited to be written when it was broken off were not vouched for.
    assert in_all - 50 < reading.count <= in_all - 49 + shard.BLOCKS_WAITING + 2


def test_dequantizing_can_be_broken_off_and_resumed(
    source: Path, output: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "packed", "4bit")
    with monkeypatch.context() as patch:
        fail_at(patch, 60, throw(KeyboardInterrupt()))
        said = refused(130, tmp_path / "packed", output, "--dequantize")
    assert "--resume goes on" in said
    nothing_half_made_loads(output)
    assert main(arguments(tmp_path / "packed", output, "--dequantize", "--resume")) == 0
    expected = tmp_path / "expected"
    assert main(arguments(tmp_path / "packed", expected, "--dequantize")) == 0
    assert contents(output) == contents(expected)


def test_an_interruption_before_the_first_tensor_leaves_nothing(
    source: Path, output: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 1, throw(KeyboardInterrupt()))
    assert refused(130, source, output) == "interrupted; nothing is left behind"
    assert list(output.parent.iterdir()) == []


# --- Taking up what is there --------------------------------------------------------------------


def flip_first_tensor(draft: Path) -> None:
    file = next(iter(sorted(draft.glob("model*.safetensors"))))
    data = bytearray(file.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 10] ^= 1
    file.write_bytes(data)


def cut_journal(draft: Path) -> None:
    journal = next(iter(sorted(draft.glob("*.journal"))))
    journal.write_bytes(journal.read_bytes()[:-2])


def damage_journal(draft: Path) -> None:
    journal = next(iter(sorted(draft.glob("*.journal"))))
    journal.write_bytes(journal.read_bytes()[:-4] + b"\0\0\0\0")


def cut_file(draft: Path) -> None:
    file = next(iter(sorted(draft.glob("model*.safetensors"))))
    os.truncate(file, file.stat().st_size * 2 // 3)


def lose_file(draft: Path) -> None:
    next(iter(sorted(draft.glob("model*.safetensors")))).unlink()


def lose_order(draft: Path) -> None:
    (draft / "order.json").unlink()


def cut_order(draft: Path) -> None:
    os.truncate(draft / "order.json", 20)


@pytest.mark.parametrize(
    "damage",
    [
        flip_first_tensor,
        cut_journal,
        damage_journal,
        cut_file,
        lose_file,
        lose_order,
        cut_order,
    ],
)
def test_a_damaged_draft_is_noticed_and_done_again(
    source: Path, output: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    wishes = Wishes(("4bit", "8bit"))
    break_off(source, output, block=70, wishes=wishes, name="tiny")
    damage(draft_folder(output))
    convert(source, output, wishes, name="tiny", resume=True)
    assert contents(output) == undisturbed(source, tmp_path, wishes, name="tiny")


OTHER_WISHES = [
    Wishes(("8bit",)),
    Wishes(("4bit", "8bit")),
    Wishes(("4bit",), vision_bits=8),
    Wishes(("4bit",), group_size=32),
    Wishes(("4bit",), dtype="float16"),
]


@pytest.mark.parametrize("wishes", OTHER_WISHES)
def test_a_draft_of_other_wishes_is_neither_resumed_nor_lost(
    source: Path, output: Path, tmp_path: Path, wishes: Wishes
) -> None:
    break_off(source, output)
    before = contents(draft_folder(output))
    with pytest.raises(Unfinished, match="of another source or with other options"):
        convert(source, output, wishes, resume=True)
    with pytest.raises(Unfinished, match="--resume goes on with it, --overwrite begins anew"):
        convert(source, output, wishes)
    assert contents(draft_folder(output)) == before
    convert(source, output, wishes, name="tiny", overwrite=True)
    assert contents(output) == undisturbed(source, tmp_path, wishes, name="tiny")


def test_a_folder_is_not_resumed_as_a_single_file(source: Path, output: Path) -> None:
    output = output.with_suffix(".safetensors")
    break_off(source, output)
    with pytest.raises(Unfinished, match="with other options"):
        convert(source, output, "4bit", resume=True, single_file=True)


def test_a_topology_that_says_the_same_is_resumed_and_another_is_not(
    source: Path, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules.yml").write_text("text 0-2: 8bit\n")
    (tmp_path / "same.yml").write_text("# said otherwise\ntext 0: 8bit\ntext 1: 8bit\n")
    (tmp_path / "other.yml").write_text("text 0-1: 8bit\n")

    def wishes(name: str) -> Wishes:
        return Wishes(("4bit",), topology=str(tmp_path / name))

    break_off(source, output, wishes=wishes("rules.yml"))
    with pytest.raises(Unfinished, match="with other options"):
        convert(source, output, wishes("other.yml"), resume=True)
    convert(source, output, wishes("same.yml"), resume=True, name="tiny")
    assert contents(output) == undisturbed(source, tmp_path, wishes("rules.yml"), name="tiny")


def test_a_changed_source_is_not_mixed_with_what_is_there(output: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "changing", shards=2)
    break_off(source, output)
    file = sorted(source.glob("*.safetensors"))[1]
    found = load_file(file)
    found[next(iter(found))] += 1
    save_file(found, file, {"format": "pt"})
    with pytest.raises(Unfinished, match="of another source"):
        convert(source, output, "4bit", resume=True)
    another = Path(shutil.copytree(source, tmp_path / "another"))
    with pytest.raises(Unfinished, match="of another source"):
        convert(another, output, "4bit", resume=True)


def test_resuming_where_nothing_is_just_converts(
    source: Path, output: Path, tmp_path: Path
) -> None:
    convert(source, output, "4bit", name="tiny", resume=True)
    assert contents(output) == undisturbed(source, tmp_path, Wishes(("4bit",)), name="tiny")


def test_beginning_anew_throws_away_what_is_there(
    source: Path, output: Path, tmp_path: Path
) -> None:
    break_off(source, output)
    (draft_folder(output) / "stray").mkdir()
    convert(source, output, "4bit", name="tiny", overwrite=True)
    assert contents(output) == undisturbed(source, tmp_path, Wishes(("4bit",)), name="tiny")
    assert not (output / "stray").exists()


# --- The disk -----------------------------------------------------------------------------------


class FullDisk(io.FileIO):
    """A file on a disk that is full after some bytes."""

    room = 200_000
    number = errno.ENOSPC

    def write(self, data: Any) -> int:
        taken = min(len(memoryview(data)), self.room - self.tell())
        if taken <= 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(memoryview(data)[:taken])


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def open_on_it(file: Any, mode: str = "r", **options: Any) -> Any:
        if "b" not in mode:
            return open(file, mode, **options)
        return io.BufferedRandom(FullDisk(file, mode.replace("b", "")))

    with monkeypatch.context() as patch:
        patch.setattr(shard, "open", open_on_it, raising=False)
        yield patch


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("single_file", [False, True])
def test_a_disk_that_becomes_full_is_told_and_resumed_when_there_is_room(
    source: Path,
    output: Path,
    tmp_path: Path,
    refused: Refused,
    full_disk: pytest.MonkeyPatch,
    number: int,
    single_file: bool,
) -> None:
    full_disk.setattr(FullDisk, "number", number)
    output = output.with_suffix(".safetensors")
    options = ["-q", "4bit", *(["--single-file"] if single_file else [])]
    said = refused(1, source, output, *options)
    assert said.startswith(f"no space is left for {output}; ") and "--resume goes on" in said
    nothing_half_made_loads(output)
    full_disk.undo()
    assert main(arguments(source, output, *options, "--resume")) == 0
    wishes, name = Wishes(("4bit",)), str(source)
    assert contents(output) == undisturbed(
        source, tmp_path, wishes, single_file=single_file, name=name
    )


def test_a_disk_that_is_full_at_once_keeps_nothing(
    source: Path, output: Path, refused: Refused, full_disk: pytest.MonkeyPatch
) -> None:
    full_disk.setattr(FullDisk, "room", 100)
    said = refused(1, source, output, "-q", "4bit")
    assert said == f"no space is left for {output}; make some; nothing is left behind"
    assert list(output.parent.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    source: Path, output: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=ENOUGH, used=ENOUGH - 10**6, free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = refused(1, source, output, "-q", "4bit")
    assert str(output) in said and "free" in said
    assert list(output.parent.iterdir()) == []


def test_what_is_written_already_needs_no_room_again(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(source, output, block=60)
    spare = 64 * 2**20
    rest = int(0.9 * convert(source, output.with_name("whole"), "4bit").output_bytes)
    usage = SimpleNamespace(total=ENOUGH, used=0, free=spare + rest)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(QwenVLError, match="free"):
        convert(source, output.with_name("anew"), "4bit")
    convert(source, output, "4bit", resume=True)


def test_a_read_only_place_is_one_line(
    source: Path, output: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def read_only(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent == output.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    said = refused(1, source, output)
    assert "Read-only file system" in said and str(output.parent) in said
    assert list(output.parent.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_permission_is_one_line(
    source: Path, output: Path, refused: Refused
) -> None:
    output.parent.chmod(0o555)
    try:
        assert "Permission denied" in refused(1, source, output)
    finally:
        output.parent.chmod(0o755)


# --- A second converter -------------------------------------------------------------------------


def test_a_second_converter_is_told_and_the_first_one_finishes(
    source: Path, output: Path, tmp_path: Path
) -> None:
    begun, free = tmp_path / "begun", tmp_path / "free"
    script = SABOTAGED.format(accident=WAIT.format(begun=begun, free=free), block=MIDDLE)
    options = arguments(source, output, "-q", "4bit")
    with start("-c", script, *options) as first:
        try:
            deadline = time.monotonic() + PATIENCE
            while not begun.exists() and first.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            for more in ([], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]):
                second = run(*CONVERT, *options, *more)
                assert (second.code, second.out) == (1, "")
                told = f"another conversion is writing to {output}; wait for it"
                assert only_line(second.err) == told
            assert not output.exists()
            free.touch()
            out, err = first.communicate(timeout=PATIENCE)
        except (subprocess.TimeoutExpired, AssertionError):
            first.kill()
            raise
    assert (first.returncode, out) == (0, b""), err
    expected = undisturbed(source, tmp_path, Wishes(("4bit",)), name=str(source))
    assert contents(output) == expected
    assert list(output.parent.iterdir()) == [output]


def test_an_output_that_appears_meanwhile_is_left_alone(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear() -> None:
        output.mkdir()
        (output / "diary.txt").write_text("mine")

    with monkeypatch.context() as patch:
        fail_at(patch, 40, appear)
        with pytest.raises(QwenVLError, match="exists already"):
            convert(source, output, "4bit")
        with pytest.raises(QwenVLError, match="no model and is not overwritten"):
            convert(source, output, "4bit", overwrite=True)
    assert (output / "diary.txt").read_text() == "mine"
    shutil.rmtree(output)
    with monkeypatch.context() as patch:
        reading = fail_at(patch, 10**9, appear)
        convert(source, output, "4bit", resume=True)
    assert reading.count == 0  # all of it was kept


# --- Outputs that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["an empty folder", "a folder", "a file", "a dangling link"])
def test_an_existing_output_is_left_alone(
    source: Path, output: Path, tmp_path: Path, refused: Refused, kind: str
) -> None:
    if "folder" in kind:
        output.mkdir()
    if kind == "a folder":
        (output / "diary.txt").write_text("mine")
    if kind == "a file":
        output.write_text("mine")
    if kind == "a dangling link":
        output.symlink_to(tmp_path / "nowhere")
    before = contents(output.parent)
    assert "exists already; --overwrite replaces it" in refused(1, source, output, "-q", "4bit")
    assert "exists already" in refused(1, source, output, "-q", "4bit", "--resume")
    if kind in ("a folder", "a file"):
        said = refused(1, source, output, "-q", "4bit", "--overwrite")
        assert "is no model and is not overwritten" in said
        assert contents(output.parent) == before
    else:
        assert contents(output.parent) == before
        assert main(arguments(source, output, "-q", "4bit", "--overwrite")) == 0
        assert not output.is_symlink() and not (tmp_path / "nowhere").exists()
        assert_same_weights(load(output).model, load(source, quantize="4bit").model)
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_model_can_be_overwritten_by_a_folder_and_by_a_file(
    source: Path, output: Path, tmp_path: Path, before: bool, after: bool
) -> None:
    output = output.with_suffix(".safetensors")
    convert(source, output, "8bit", single_file=before)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(QwenVLError, match="exists already"):
        convert(source, output, "4bit", single_file=after)
    convert(source, output, "4bit", single_file=after, overwrite=True, name="tiny")
    wishes = Wishes(("4bit",))
    expected = undisturbed(source, tmp_path, wishes, single_file=after, name="tiny")
    assert contents(output) == expected
    assert list(output.parent.iterdir()) == [output]


def test_what_is_overwritten_stays_whole_until_its_successor_is(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, output, "8bit")
    before = contents(output)
    with monkeypatch.context() as patch:
        fail_at(patch, 60, throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, "4bit", overwrite=True)
    assert contents(output) == before
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == draft_folder(output):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(QwenVLError, match=r"Input/output error.*--resume goes on"):
            convert(source, output, "4bit", overwrite=True, resume=True)
    assert contents(output) == before
    convert(source, output, "4bit", overwrite=True, resume=True)
    assert_same_weights(load(output).model, load(source, quantize="4bit").model)
    assert list(output.parent.iterdir()) == [output]


def test_a_link_is_replaced_and_not_what_it_leads_to(
    source: Path, output: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "other", "8bit")
    before = contents(tmp_path / "other")
    output.symlink_to(tmp_path / "other")
    convert(source, output, "4bit", overwrite=True)
    assert not output.is_symlink() and contents(tmp_path / "other") == before
    assert_same_weights(load(output).model, load(source, quantize="4bit").model)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_overlaps_with_the_source_is_refused(
    source: Path, tmp_path: Path, refused: Refused, overwrite: bool
) -> None:
    options = ["--overwrite"] if overwrite else []
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "link-above").symlink_to(tmp_path)
    inside = (
        source,
        source / "output",
        source / "a" / "b",
        tmp_path / "link",
        tmp_path / "link" / "output",
        tmp_path / "source" / ".." / "source" / "output",
        tmp_path / "link-above" / "source" / "output",
    )
    for output in inside:
        assert "lies inside the source" in refused(1, source, output, *options)
        assert "lies inside the source" in refused(1, tmp_path / "link", output, *options)
    for output in (tmp_path, tmp_path / "link-above"):
        assert "holds the source" in refused(1, source, output, *options)
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "link", "link-above"}


def test_a_single_file_is_not_written_over_itself(
    source: Path, output: Path, refused: Refused
) -> None:
    file = output.with_suffix(".safetensors")
    convert(source, file, single_file=True)
    before = contents(file)
    for options in (["--single-file"], []):
        said = refused(1, file, file, "-q", "4bit", "--overwrite", *options)
        assert "lies inside the source" in said
    assert "holds the source" in refused(1, file, file.parent, "-q", "4bit", "--overwrite")
    assert contents(file) == before and list(file.parent.iterdir()) == [file]


def test_a_draft_is_not_converted_into_itself(source: Path, output: Path, refused: Refused) -> None:
    convert(source, output, "8bit")
    draft = output.rename(draft_folder(output))
    before = contents(draft)
    said = refused(1, draft, output, "-q", "4bit", "--overwrite")
    assert "is the draft of" in said and contents(draft) == before


def test_an_output_behind_missing_folders_is_made(source: Path, output: Path) -> None:
    assert main(arguments(source, output / "a" / "b", "-q", "4bit")) == 0
    assert_same_weights(load(output / "a" / "b").model, load(source, quantize="4bit").model)


def test_an_output_behind_a_file_is_one_line(source: Path, output: Path, refused: Refused) -> None:
    output.write_text("mine")
    assert str(output) in refused(1, source, output / "inside")
    assert output.read_text() == "mine"


def test_relative_outputs_and_links_to_folders_work(
    source: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "door").symlink_to(output.parent)
    monkeypatch.chdir(tmp_path / "door")
    assert main(arguments(source, Path("output"), "-q", "4bit")) == 0
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("name", ["model", "model.bin", "model.safetensors.d"])
def test_a_single_file_has_to_be_called_one(
    source: Path, output: Path, refused: Refused, name: str
) -> None:
    said = refused(1, source, output.with_name(name), "-q", "4bit", "--single-file")
    assert "expected a name with .safetensors" in said
    assert list(output.parent.iterdir()) == []


# --- Sources that cannot be ---------------------------------------------------------------------


def change_tensor(change: Callable[[np.ndarray], np.ndarray], key: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        found[key] = change(found[key])
        save_file(found, folder / WEIGHTS, {"format": "pt"})

    return spoil


def claim(length: int) -> Callable[[Path], None]:
    """State another length of the header."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + data[8:])

    return spoil


def quantize_already(folder: Path) -> None:
    convert(folder, folder.with_name("quantized"), "4bit")
    shutil.rmtree(folder)
    folder.with_name("quantized").rename(folder)


def become(model_type: str) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, model_type=model_type)


def become_awq(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4})


PATCH_EMBED = "visual.patch_embed.proj.weight"
NORM = "model.norm.weight"
SOURCE_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{name: fault for name, fault in MODEL_FAULTS.items() if "tokenizer" not in name},
    "a llama": (become("llama"), "this is a 'llama' checkpoint; only 'qwen2_vl', 'qwen2_5"),
    "the next one": (become("qwen4_vl"), "this is a 'qwen4_vl' checkpoint; only 'qwen2_vl', 'qwen"),
    "by another name": (become("qwen2_5_vl"), "no 'vision_config.out_hidden_size'"),
    "quantized already": (quantize_already, "quantized already"),
    "quantized by AWQ": (become_awq, "quantized with 'awq'"),
    "a header of 2^63 bytes": (claim(2**63), "damaged or was cut short"),
    "a header of no bytes": (claim(0), "damaged or was cut short"),
    "float64": (change_tensor(lambda a: a.astype(np.float64), NORM), f"{NORM} in"),
    "int8": (change_tensor(lambda a: a.astype(np.int8), NORM), "dtype I8, expected one of F32"),
    "an embedding of pictures in rows": (
        change_tensor(lambda a: a.reshape(64, -1), PATCH_EMBED),
        f"{PATCH_EMBED} has shape (64, 1176)",
    ),
    "an embedding of pictures in bits": (
        change_tensor(lambda a: a.ravel()[:1].reshape(()), PATCH_EMBED),
        f"{PATCH_EMBED} has shape ()",
    ),
}


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
@pytest.mark.parametrize("options", [(), ("-q", "4bit,8bit"), ("--overwrite", "--resume")])
def test_a_bad_source_is_one_line_and_leaves_nothing_behind(
    tiny_folder: Path, tmp_path: Path, refused: Refused, fault: str, options: tuple[str, ...]
) -> None:
    spoil, words = SOURCE_FAULTS[fault]
    spoil(Path(shutil.copytree(tiny_folder, tmp_path / "source")))
    before = contents(tmp_path / "source")
    assert words in refused(1, tmp_path / "source", tmp_path / "output", *options)
    assert contents(tmp_path / "source") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["model.gguf", "weights.bin", "notes"])
def test_a_file_of_another_kind_is_one_line(output: Path, refused: Refused, name: str) -> None:
    file = output.with_name(name)
    file.write_bytes(b"GGUF" + bytes(1000))
    said = refused(1, file, output)
    assert name in said and "expected a folder with config.json and weights" in said
    assert list(output.parent.iterdir()) == [file]


def test_an_absent_source_is_one_line(tmp_path: Path, output: Path, refused: Refused) -> None:
    assert "no model" in refused(1, tmp_path / "absent", output)
    assert list(output.parent.iterdir()) == []


def test_the_process_says_it_in_one_line_too(tmp_path: Path, output: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "other" / WEIGHTS).write_bytes(bytes(8))
    for options, code in (([], 1), (["-q", "7bit"], 2), (["--dtype", "int8"], 2)):
        ran = run(*CONVERT, *arguments(tmp_path / "other", output, *options))
        assert (ran.code, ran.out) == (code, "") and ran.seconds < SOON
        only_line(ran.err)


# --- Numbers that are none ----------------------------------------------------------------------

SPOILT = "model.layers.1.mlp.down_proj.weight"


def spoilt_number(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[77, 100] = value
        return array

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("recipe", ["none", "4bit", "mxfp4"])
@pytest.mark.parametrize("key", [SPOILT, PATCH_EMBED, "visual.blocks.0.norm1.bias"])
def test_numbers_that_are_none_are_named_and_pass_if_they_must(
    tiny_folder: Path,
    output: Path,
    tmp_path: Path,
    refused: Refused,
    *,
    key: str,
    recipe: str,
    value: float,
) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "bad"))

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[array.size // 2] = value
        return array

    change_tensor(change, key)(source)
    said = refused(1, source, output, "-q", recipe)
    assert said.startswith(f"{key} in ") and "holds NaN or infinity; --allow-nonfinite" in said
    nothing_half_made_loads(output)
    # What it advises works as it is said, whether or not something was kept.
    options = ["-q", recipe, "--allow-nonfinite", "--resume"]
    assert main(arguments(source, output, *options)) == 0
    anew = tmp_path / "anew"
    assert main(arguments(source, anew, "-q", recipe, "--allow-nonfinite")) == 0
    assert contents(output) == contents(anew)


@pytest.mark.parametrize("recipe", ["none", "4bit", "nvfp4"])
def test_what_float16_cannot_hold_is_named(
    tiny_folder: Path, output: Path, tmp_path: Path, refused: Refused, recipe: str
) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "large"))
    change_tensor(spoilt_number(-70000.0), SPOILT)(source)
    said = refused(1, source, output, "-q", recipe, "--dtype", "float16")
    assert said.startswith(f"{SPOILT} has values up to 7e+04, too large for F16; bfloat16 holds")
    nothing_half_made_loads(output)
    for dtype in ("bfloat16", "float32"):
        options = ["-q", recipe, "--dtype", dtype, "--overwrite"]
        assert main(arguments(source, output, *options)) == 0
    shutil.rmtree(output)
    options = ["-q", recipe, "--dtype", "float16", "--allow-nonfinite"]
    assert main(arguments(source, output, *options)) == 0


# --- Accidents to the source --------------------------------------------------------------------


def test_a_source_that_goes_away_in_the_middle_is_told_and_can_come_back(
    output: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "leaving")
    with monkeypatch.context() as patch:
        fail_at(patch, 40, lambda: source.rename(tmp_path / "gone"))
        said = refused(1, source, output, "-q", "4bit")
    assert "No such file" in said and str(source) in said and "--resume goes on" in said
    nothing_half_made_loads(output)
    (tmp_path / "gone").rename(source)
    assert main(arguments(source, output, "-q", "4bit", "--resume")) == 0
    assert_same_weights(load(output).model, load(source, quantize="4bit").model)


def test_a_source_that_is_cut_in_the_middle_is_told(
    output: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "shrinking")
    fail_at(monkeypatch, 40, lambda: os.truncate(source / WEIGHTS, 100_000))
    assert "was cut short while it was read" in refused(1, source, output, "-q", "4bit")
    nothing_half_made_loads(output)


# --- Command lines that make no sense -----------------------------------------------------------

NONSENSE: dict[str, tuple[list[str], str]] = {
    "a recipe that nobody knows": (["-q", "7bit"], "unknown quantization '7bit'; expected one of"),
    "one unknown among known ones": (["-q", "4bit,9bit"], "unknown quantization '9bit'"),
    "no recipe": (["-q", ","], "names no recipe"),
    "an empty recipe": (["-q", ""], "names no recipe"),
    "a dtype that nobody knows": (["--dtype", "int8"], "invalid choice"),
    "seven bits for the tower": (["--vision-bits", "7"], "invalid choice"),
    "groups of 48": (["-q", "4bit", "--group-size", "48"], "invalid choice"),
    "a group size that is none": (["-q", "4bit-g48"], "48"),
    "a missing topology": (["--topology", "absent.yml"], "absent.yml is missing"),
    "a variant of a dense model": (["--variant", "4bit"], "--variant goes with --dequantize"),
    "two ways at once": (["--dequantize", "-q", "4bit"], "--quantize does not go with"),
    "groups of what is dense": (["--dequantize", "--group-size", "32"], "--group-size does not go"),
    "the same twice": (["-q", "4bit", "Q4_0"], "two of the recipes are the same"),
    "an unknown option": (["--quantise", "4bit"], "unrecognized arguments"),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_one_line_of_its_own_exit_code(
    source: Path, output: Path, refused: Refused, nonsense: str
) -> None:
    options, words = NONSENSE[nonsense]
    assert words in refused(2, source, output, *options)
    assert list(output.parent.iterdir()) == []


def test_the_embedded_model_stays_as_it_is(output: Path, refused: Refused) -> None:
    before = contents(DEMO_FOLDER)
    said = refused(1, Path("demo"), DEMO_FOLDER / "output")
    assert "lies inside the source" in said and contents(DEMO_FOLDER) == before
