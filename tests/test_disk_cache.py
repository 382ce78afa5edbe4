"""What outlives the process: private, bounded, and never an answer to something else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors import safe_open

import mlx_qwenvl
from mlx_qwenvl import OptionError, QwenVL, load
from mlx_qwenvl.engine.disk_tier import ABANDONED, DiskTier
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefix_disk import BLOCK
from mlx_qwenvl.engine.stores import disk_folder
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.models.quantized_cache import PLAIN
from tests.command_lines import GENERATE, SHAPES, run
from tests.golden.tiny import picture

ONE, OTHER = picture(1, 224, 224), picture(2, 224, 224)  # 64 tokens, so a prompt has a whole block
ASK: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
ARRAYS = [mx.arange(12).reshape(3, 4).astype(mx.bfloat16), mx.zeros((2,), dtype=mx.uint32)]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "mlx-qwenvl").iterdir())


def opened(tiny_folder: Path, folder: Path | bool | None, **options: Any) -> QwenVL:
    """The model as a new process has it."""
    return load(tiny_folder, disk_cache=folder, **({"dtype": "float32"} | options))


@pytest.fixture
def tower_runs(tiny: QwenVL, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each run of any model's vision tower."""
    runs: list[int] = []
    tower = type(tiny.model.visual).begin

    def counted(this: Any, patches: mx.array, grid: Any) -> Any:
        runs.append(patches.shape[0])
        return tower(this, patches, grid)

    monkeypatch.setattr(type(tiny.model.visual), "begin", counted)
    return runs


@pytest.mark.parametrize("kv", [(None, 0), (8, 0), (4, 0), (4, BLOCK - 1), (4, 1000)])
def test_a_new_process_neither_looks_nor_reads_again(
    tiny_folder: Path, tmp_path: Path, tower_runs: list[int], kv: tuple[int | None, int]
) -> None:
    asked = {"images": [ONE], "kv_bits": kv[0], "kv_start": kv[1], **ASK}
    first = opened(tiny_folder, tmp_path).generate("What is this?", **asked)
    again = opened(tiny_folder, tmp_path).generate("What is this?", **asked)
    assert (first.usage.cached_tokens, len(tower_runs)) == (0, 1)
    assert again.usage.cached_tokens == first.usage.prompt_tokens // BLOCK * BLOCK > 0
    assert again.token_ids == first.token_ids
    other = opened(tiny_folder, tmp_path)
    moved = other.generate("And what is this?", **(asked | {"images": [OTHER, ONE]}))
    assert len(tower_runs) == 2  # the other picture's
    plain = other.generate("And what is this?", cache=False, **(asked | {"images": [OTHER, ONE]}))
    assert moved.token_ids == plain.token_ids


def test_packed_and_plain_beginnings_are_told_apart_on_disk(
    tiny_folder: Path, tmp_path: Path
) -> None:
    question = "A long question, and another sentence of it. " * 8
    packs: dict[str, Any] = {"kv_bits": 4, "kv_start": 2 * BLOCK + 5, **ASK}
    forgetful = {"prefix_bytes": 0}

    def cached(text: str, options: dict[str, Any]) -> int:
        vlm = opened(tiny_folder, tmp_path, **forgetful)
        reply = vlm.generate(text, **options)
        assert reply.token_ids == vlm.generate(text, cache=False, **options).token_ids
        return reply.usage.cached_tokens

    assert cached(question, ASK) == 0
    assert cached(question, packs) == 2 * BLOCK  # what is plain, up to the start
    whole = cached(question, packs)
    assert whole > 2 * BLOCK  # its own
    assert cached(question, {**packs, "kv_bits": 8}) == 2 * BLOCK
    assert cached(question, {**packs, "kv_start": 2 * BLOCK + 6}) == 2 * BLOCK
    assert cached(question, ASK) == whole
    assert cached(question, {"kv_bits": 4, **ASK}) == 0
    assert cached(question[:150] + "?", packs) == BLOCK


def test_another_picture_dtype_quantization_or_weights_share_nothing(
    tiny_folder: Path, tmp_path: Path, tower_runs: list[int]
) -> None:
    opened(tiny_folder, tmp_path).generate("What is this?", images=[ONE], **ASK)
    settings: list[dict[str, Any]] = [
        {"dtype": "float16"},
        {"quantize": "8bit"},
        {"quantize": "4bit"},
    ]
    for expected, options in enumerate(settings, start=2):
        vlm = opened(tiny_folder, tmp_path, **options)
        assert vlm.generate("What?", images=[ONE], max_tokens=1).usage.cached_tokens == 0
        assert len(tower_runs) == expected
    reply = opened(tiny_folder, tmp_path).generate("What is this?", images=[OTHER], **ASK)
    assert reply.usage.cached_tokens == 0
    assert len(tower_runs) == 5


def test_weights_that_changed_in_place_share_nothing(
    tiny_folder: Path, tmp_path: Path, tower_runs: list[int]
) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    opened(copy, tmp_path).generate("What is this?", images=[ONE], **ASK)
    times = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\x00\x00\x00\x00"
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    reply = opened(copy, tmp_path).generate("What is this?", images=[ONE], **ASK)
    assert (reply.usage.cached_tokens, len(tower_runs)) == (0, 2)


def test_another_version_shares_nothing(
    tiny_folder: Path, tmp_path: Path, tower_runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny_folder, tmp_path).generate("What is this?", images=[ONE], **ASK)
    with monkeypatch.context() as patched:
        patched.setattr(mlx_qwenvl, "__version__", "9.9.9")
        opened(tiny_folder, tmp_path).generate("What is this?", images=[ONE], **ASK)
    assert len(tower_runs) == 2
    monkeypatch.setattr("mlx_qwenvl.engine.disk_tier.FORMAT_VERSION", 99)
    opened(tiny_folder, tmp_path).generate("What is this?", images=[ONE], **ASK)
    assert len(tower_runs) == 3


def test_it_is_off_where_nobody_asked(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["XDG_CACHE_HOME"])
    opened(tiny_folder, None).generate("What?", images=[ONE], **ASK)
    assert not home.exists()
    assert disk_folder(None) is None
    assert disk_folder(True) == home
    monkeypatch.setenv("MLX_QWENVL_DISK_CACHE", "/elsewhere")
    assert disk_folder(None) == disk_folder(True) == Path("/elsewhere")
    assert disk_folder("/here") == Path("/here")
    assert disk_folder(False) is None


def test_without_cache_nothing_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    opened(tiny_folder, tmp_path).generate("What?", images=[ONE], cache=False, **ASK)
    assert files(tmp_path) == []


def test_files_are_for_their_owner_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mlx-qwenvl").mkdir(mode=0o755)
    before = stat.S_IMODE(tmp_path.stat().st_mode)
    mask = os.umask(0)
    try:
        opened(tiny_folder, tmp_path).generate("What is this?", images=[ONE], **ASK)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "mlx-qwenvl").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(tmp_path)} == {0o600}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == before


def test_a_folder_of_someone_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "mlx-qwenvl").symlink_to(tmp_path / "target")
    with pytest.raises(OptionError, match="is no folder of yours"):
        DiskTier(tmp_path, 100, "model")
    (tmp_path / "mlx-qwenvl").unlink()
    (tmp_path / "mlx-qwenvl").write_text("a file")
    with pytest.raises(OptionError, match="is no folder of yours"):
        DiskTier(tmp_path, 100, "model")
    (tmp_path / "mlx-qwenvl").unlink()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(OptionError, match="is no folder of yours"):
        DiskTier(tmp_path, 100, "model")


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    arrays = [
        mx.array([0.1, -0.0, float("inf"), float("nan")]).astype(dtype).reshape(2, 2)
        for dtype in (mx.float32, mx.float16, mx.bfloat16)
    ]
    arrays += [mx.array([[2**32 - 1, 0]], dtype=mx.uint32), arrays[0].T, arrays[1][:, 1:]]
    tier.put("kind", b"key", arrays)
    found = tier.get("kind", b"key")
    assert found is not None
    for old, new in zip(arrays, found, strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        assert mx.array_equal(mx.contiguous(old).view(mx.uint8), new.view(mx.uint8))


def test_files_are_safetensors_that_others_can_read(tmp_path: Path) -> None:
    DiskTier(tmp_path, 2**20, "model").put("kind", b"key", ARRAYS)
    with safe_open(files(tmp_path)[0], framework="numpy") as other:
        assert sorted(other.keys()) == ["0", "1"]
        assert other.metadata()["kind"] == "kind"
        assert other.metadata()["model"] == "model"
        assert other.get_tensor("1").tolist() == [0, 0]


def test_every_damaged_byte_is_noticed_and_the_file_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    tier.put("kind", b"key", ARRAYS)
    file = files(tmp_path)[0]
    whole = file.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x41
        file.write_bytes(bytes(data))
        found = tier.get("kind", b"key")
        assert found is None, place
        assert not file.exists()
    assert len(caplog.records) == len(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"PK\x03\x04" * 50],
    ids=["empty", "short", "huge header", "no metadata", "a zip"],
)
def test_a_foreign_file_is_removed(tmp_path: Path, content: bytes) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    tier.put("kind", b"key", ARRAYS)
    file = files(tmp_path)[0]
    file.write_bytes(content)
    assert tier.get("kind", b"key") is None
    assert not file.exists()


def test_a_sound_file_under_another_name_is_removed(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    tier.put("kind", b"one", ARRAYS)
    one = files(tmp_path)[0]
    tier.put("kind", b"other", [mx.ones(3)])
    (other,) = set(files(tmp_path)) - {one}
    other.write_bytes(one.read_bytes())
    assert tier.get("kind", b"other") is None
    assert files(tmp_path) == [one]
    assert DiskTier(tmp_path, 2**20, "another model").get("kind", b"one") is None
    assert tier.get("another kind", b"one") is None
    assert tier.get("kind", b"one") is not None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    tier.put("kind", b"key", ARRAYS)
    file = files(tmp_path)[0]
    aside = tmp_path / "aside"
    file.rename(aside)
    file.symlink_to(aside)
    assert tier.get("kind", b"key") is None
    assert aside.exists() and not file.is_symlink()


def test_the_bound_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 4000, "model")
    for index in range(3):
        tier.put("kind", bytes([index]), [mx.zeros(200)])
        os.utime(files(tmp_path)[0].parent / tier._name("kind", bytes([index])), (index, index))
    assert tier.get("kind", b"\x00") is not None  # used now
    tier.put("kind", b"\x03", [mx.zeros(200)])
    kept = [index for index in range(4) if tier.has("kind", bytes([index]))]
    assert kept == [0, 2, 3]
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 4000
    tier.put("kind", b"huge", [mx.zeros(10**4)])
    assert not tier.has("kind", b"huge")
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 4000


def test_abandoned_drafts_go_and_those_of_a_running_process_stay(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2**20, "model")
    old, new = (tier.folder / f".{name}.draft" for name in ("old", "new"))
    for draft in (old, new):
        draft.write_bytes(b"half")
    os.utime(old, (0, new.stat().st_mtime - ABANDONED - 10))
    tier.put("kind", b"key", ARRAYS)
    assert new.exists() and not old.exists()


def test_a_full_disk_costs_one_warning_and_no_answer(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    vlm = opened(tiny_folder, tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    for _ in range(2):
        assert vlm.generate("What is this?", images=[ONE], **ASK).token_ids
    assert [record.message.split(": ")[-1] for record in caplog.records] == [
        "No space left on device"
    ]
    assert files(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx_qwenvl.engine.disk_tier import DiskTier
tier = DiskTier(Path(sys.argv[1]), 40_000, "model")
for turn in range(60):
    key = turn % 20
    tier.put("kind", bytes([key]), [mx.full((1000,), float(key))])
    found = tier.get("kind", bytes([key]))
    assert found is None or found[0].tolist() == [key] * 1000
"""


def test_two_processes_at_once_read_nothing_wrong_and_keep_the_bound(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in running] == ["", ""]
    assert [process.returncode for process in running] == [0, 0]
    # Each counts before it removes, so together they may be one file over.
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 40_000 + 5000
    assert not list((tmp_path / "mlx-qwenvl").glob("*.draft"))


def test_a_prefix_with_a_lost_block_is_used_up_to_it(tiny_folder: Path, tmp_path: Path) -> None:
    vlm = opened(tiny_folder, tmp_path, prefix_bytes=0)
    question = "A long question, and another sentence of it. " * 8
    first = vlm.generate(question, images=[ONE], **ASK)
    blocks = first.usage.prompt_tokens // BLOCK
    assert blocks >= 3
    disk = vlm.stores.prefixes._disk
    assert disk is not None
    prompt = vlm.prompt([user_message(question, [ONE])], Options())
    assert disk.longest(prompt, PLAIN) == (prompt.token_ids.size - 1) // BLOCK * BLOCK
    second = list(disk._keys(prompt, PLAIN, prompt.token_ids.size))[1]
    (disk._disk.folder / disk._disk._name("prefix", second)).write_bytes(b"damaged")
    again = vlm.generate(question, images=[ONE], **ASK)
    assert again.usage.cached_tokens == BLOCK
    assert again.token_ids == first.token_ids


def test_the_command_line_keeps_on_disk_where_asked(tmp_path: Path) -> None:
    command: list[str | Path] = [
        *GENERATE,
        "--model",
        "demo",
        "--image",
        SHAPES,
        "--temperature",
        "0",
        "--json",
    ]
    env = {"MLX_QWENVL_DISK_CACHE": "", "XDG_CACHE_HOME": str(tmp_path)}
    replies = []
    for options in ([], ["--disk-cache"], ["--disk-cache"], ["--no-cache", "--disk-cache"]):
        ran = run(*command, "--max-tokens", "70", *options, env=env)
        assert (ran.code, ran.err) == (0, "")
        replies.append(json.loads(ran.out))
        assert (tmp_path / "mlx-qwenvl").exists() == (len(replies) > 1)
    assert len({reply["text"] for reply in replies}) == 1
    assert files(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disk_cache": ""}, "disk_cache is empty"),
        ({"disk_cache_bytes": -1}, "disk_cache_bytes is -1, expected"),
        ({"disk_cache": "/dev/null"}, "cannot be used"),
    ],
)
def test_bad_settings_are_one_line(
    tiny_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        load(tiny_folder, **options)
