"""Converting: the copy is what quantizing at load would give, and says of itself what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from convert import Wishes, convert, layout, tensors
from convert.__main__ import main
from mlx_qwenvl import OptionError, QwenVL, load
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.files import list_tensors
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.recipes import RECIPES
from tests.conversions import (
    answer,
    assert_same_weights,
    contents,
    peak_of,
    plan_for,
    quantized_at_load,
    tensors_in,
    weights_of,
    write_hollow_checkpoint,
)
from tests.golden.tiny import write_checkpoint
from tests.golden.tiny_files import DType, Layout

QUANTIZING = [name for name in RECIPES if name != "none"]
TOPOLOGY = """\
text 0: 8bit
text 1-3: {quantize: 3bit, group_size: 32}
embeddings: none
vision: mxfp4
/mlp\\.gate_proj/: {isq: Q6K}
"""
# One of each kind of source, so that all kinds meet all recipes.
SOURCES: dict[str, tuple[DType, Layout, int, bool]] = {
    "float32 in one file": ("float32", "hub", 1, True),
    "bfloat16 in three files": ("bfloat16", "nested", 3, True),
    "float16 with a head": ("float16", "hub", 2, False),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: write_checkpoint(folder / name, dtype=dtype, layout=layout, shards=shards, tied=tied)
        for name, (dtype, layout, shards, tied) in SOURCES.items()
    }


# --- The same weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_a_full_precision_copy_is_the_same_model(
    sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    convert(sources[kind], tmp_path / "copy")
    copied, original = load(tmp_path / "copy"), load(sources[kind])
    assert_same_weights(copied.model, original.model)
    np.testing.assert_array_equal(answer(copied), answer(original))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("recipe", QUANTIZING)
def test_converting_and_quantizing_at_load_give_the_same_model(
    sources: dict[str, Path], tmp_path: Path, recipe: str, kind: str
) -> None:
    convert(sources[kind], tmp_path / "copy", recipe)
    converted, quantized = load(tmp_path / "copy"), load(sources[kind], quantize=recipe)
    assert_same_weights(converted.model, quantized.model)
    np.testing.assert_array_equal(answer(converted), answer(quantized))


@pytest.mark.parametrize("vision_bits", [None, 16, 8, 4])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("recipe", ["4bit", "mixed_3_6"])
def test_group_sizes_and_bits_of_the_tower_give_the_same_model(
    sources: dict[str, Path], tmp_path: Path, recipe: str, group_size: int, vision_bits: int | None
) -> None:
    source = sources["bfloat16 in three files"]
    wishes = Wishes((recipe,), vision_bits=vision_bits, group_size=group_size)
    outcome = convert(source, tmp_path / "copy", wishes)
    quantized = quantized_at_load(source, recipe, group_size=group_size, vision_bits=vision_bits)
    assert_same_weights(load(tmp_path / "copy").model, quantized)
    plan = plan_for(source, recipe, group_size=group_size, vision_bits=vision_bits)
    assert outcome.ungrouped == plan.ungrouped
    has_quantized_tower = any(path.startswith("visual.") for path in plan.formats)
    assert has_quantized_tower == (vision_bits in (8, 4))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_topology_gives_the_same_model(
    sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(TOPOLOGY)
    convert(sources[kind], tmp_path / "copy", Wishes(("4bit",), topology=str(rules)))
    converted = load(tmp_path / "copy")
    quantized = load(sources[kind], quantize="4bit", topology=rules)
    assert_same_weights(converted.model, quantized.model)
    np.testing.assert_array_equal(answer(converted), answer(quantized))


@pytest.mark.parametrize("recipe", ["none", "4bit", "mxfp4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_dtype_is_taken_on_before_quantizing(
    sources: dict[str, Path], tmp_path: Path, kind: str, dtype: str, recipe: str
) -> None:
    convert(sources[kind], tmp_path / "dense", Wishes(dtype=dtype))
    convert(sources[kind], tmp_path / "copy", Wishes((recipe,), dtype=dtype))
    converted = load(tmp_path / "copy")
    assert_same_weights(converted.model, load(tmp_path / "dense", quantize=recipe).model)
    expected = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[dtype]
    found = {array.dtype for array in tensors_in(tmp_path / "copy").values()}
    assert found - {mx.uint32, mx.uint8} == {expected}


def test_a_dense_copy_converts_like_the_original(tmp_path: Path, sources: dict[str, Path]) -> None:
    source = sources["float16 with a head"]
    convert(source, tmp_path / "dense")
    convert(source, tmp_path / "dense.safetensors", single_file=True)
    convert(source, tmp_path / "direct", "4bit")
    for dense in ("dense", "dense.safetensors"):
        convert(tmp_path / dense, tmp_path / f"of-{dense}", "4bit")
        assert_same_weights(load(tmp_path / f"of-{dense}").model, load(tmp_path / "direct").model)


def test_a_tied_heads_copy_is_left_out(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tied=False)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    convert(source, tmp_path / "copy", "4bit")
    assert not any("lm_head" in name for name in tensors_in(tmp_path / "copy"))
    assert_same_weights(load(tmp_path / "copy").model, load(source, quantize="4bit").model)


@pytest.mark.parametrize(
    ("wishes", "single_file"),
    [
        (Wishes(), False),
        (Wishes(("4bit",), vision_bits=8), False),
        (Wishes(("nvfp4", "mxfp8", "mixed_2_6"), dtype="bfloat16"), False),
        (Wishes(("5bit", "none"), vision_bits=4, group_size=32), True),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 3000])
def test_blocks_of_any_size_give_the_same_bytes(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wishes: Wishes,
    single_file: bool,
    block_bytes: int,
) -> None:
    whole, pieces = tmp_path / "a" / "o.safetensors", tmp_path / "b" / "o.safetensors"
    convert(tiny_folder, whole, wishes, single_file=single_file)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    convert(tiny_folder, pieces, wishes, single_file=single_file)
    assert contents(pieces) == contents(whole)


def test_the_same_wishes_give_the_same_bytes_again(tiny_folder: Path, tmp_path: Path) -> None:
    wishes = Wishes(("4bit", "mixed_4_6"), vision_bits=8)
    for name in ("a", "b"):
        convert(tiny_folder, tmp_path / name, wishes, name="tiny")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_many_small_files_hold_the_same_model(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_folder, tmp_path / "one", "4bit")
    monkeypatch.setattr(layout, "SHARD_BYTES", 100_000)
    convert(tiny_folder, tmp_path / "many", "4bit")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 5
    expected = [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert [file.name for file in files] == expected
    assert_same_weights(load(tmp_path / "many").model, load(tmp_path / "one").model)
    # A file holds one tensor at least, and no more than fit.
    assert all(f.stat().st_size < 120_000 or len(tensors_in(f)) == 1 for f in files)


# --- What the copy says of itself ---------------------------------------------------------------


def read_as_mlx_lm_does(config: dict[str, Any], path: str, has_scales: bool) -> dict[str, Any]:
    """Format of a module by the rule that loaders of mlx-community folders follow.

    What `quantization` says under the module's path goes first, a format or false. Else a module
    has the format at the top if scales are stored for it.
    """
    stated = config.get("quantization", {})
    own = stated.get(path)
    if own is False or (own is None and not has_scales):
        return {}
    return {key: (own or stated)[key] for key in ("group_size", "bits", "mode")}


@pytest.mark.parametrize("vision_bits", [None, 4])
@pytest.mark.parametrize(
    ("group_size", "has_topology"), [(None, False), (None, True), (32, False), (128, True)]
)
@pytest.mark.parametrize("recipe", ["none", "4bit", "mxfp4", "nvfp4", "mixed_4_6"])
def test_other_loaders_read_the_right_format_of_every_module(
    sources: dict[str, Path],
    tmp_path: Path,
    recipe: str,
    group_size: int | None,
    vision_bits: int | None,
    has_topology: bool,
) -> None:
    source = sources["float16 with a head"]
    (tmp_path / "rules.yml").write_text(TOPOLOGY)
    rules = str(tmp_path / "rules.yml") if has_topology else None
    wishes = Wishes((recipe,), vision_bits=vision_bits, group_size=group_size, topology=rules)
    convert(source, tmp_path / "copy", wishes)
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config.get("quantization_config") == config.get("quantization")
    stored = tensors_in(tmp_path / "copy")
    for path, module in build(Config.from_folder(source)).named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)) or path == PATCH_EMBED:
            continue
        name, (rows, inputs) = to_mlx(path), module.weight.shape
        form = read_as_mlx_lm_does(config, name, f"{name}.scales" in stored)
        if not form:
            assert stored[f"{name}.weight"].shape == (rows, inputs)
            assert f"{name}.scales" not in stored
            continue
        assert stored[f"{name}.weight"].shape == (rows, inputs * form["bits"] // 32)
        assert stored[f"{name}.scales"].shape == (rows, inputs // form["group_size"])
        assert (f"{name}.biases" in stored) == (form["mode"] == "affine")
        assert (stored[f"{name}.scales"].dtype == mx.uint8) == (form["mode"] != "affine")
    assert to_mlx(f"{PATCH_EMBED}.scales") not in stored


def test_the_copy_has_the_names_and_layout_of_mlx_folders(
    tiny_folder: Path, tmp_path: Path
) -> None:
    convert(tiny_folder, tmp_path / "copy", "4bit")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    stored = tensors_in(tmp_path / "copy")
    assert "language_model.model.layers.0.mlp.down_proj.scales" in stored
    assert "vision_tower.blocks.0.attn.qkv.weight" in stored
    assert not any(n.startswith("vision_tower.") and n.endswith(".scales") for n in stored)
    assert stored["vision_tower.patch_embed.proj.weight"].shape == (64, 2, 14, 14, 3)


def assert_hub_layout(settings: dict[str, Any], folder: Path) -> None:
    """Settings say what those of the same model in the Hub's layout say, at the same places."""
    twin = write_checkpoint(folder / "twin", layout="hub", dtype="bfloat16")
    hub = json.loads((twin / "config.json").read_text())
    for ours, theirs in ((settings, hub), (settings["vision_config"], hub["vision_config"])):
        kept = {key: ours.get(key) for key in theirs}
        differing = {key for key in theirs if kept[key] != theirs[key]}
        assert differing <= {"vision_config", "transformers_version", "vision_token_id"} | {
            "sliding_window"  # which Transformers 5 leaves out where it is not used
        }
    assert not {"text_config", "dtype", "rope_parameters"} & set(settings)


@pytest.mark.parametrize("layout", ["hub", "nested"])
def test_settings_change_where_they_must_and_nowhere_else(tmp_path: Path, layout: Layout) -> None:
    source = write_checkpoint(tmp_path / "source", layout=layout)
    (source / "merges.txt").write_text("a b\n")
    (source / "notes.md").write_text("not copied")
    convert(source, tmp_path / "copy", Wishes(("8bit",), dtype="bfloat16"))
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "copy" / "config.json").read_text())
    statement = after.pop("quantization")
    assert after.pop("quantization_config") == statement
    if layout == "hub":
        assert after == before | {"torch_dtype": "bfloat16"}
    else:
        assert_hub_layout(after, tmp_path)
    small = {file.name for file in source.iterdir()} - {"model.safetensors", "notes.md"}
    copied = {file.name for file in (tmp_path / "copy").iterdir()}
    assert copied == small | {
        "mlx_qwenvl.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    }
    for name in small - {"config.json"}:
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()


def test_what_cannot_be_grouped_stays_dense_and_is_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-q", "4bit", "--group-size", "128", "--vision-bits", "4"]
    assert main(["--model", str(tiny_folder), "--output", str(tmp_path / "copy"), *options]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    stored = tensors_in(tmp_path / "copy")
    told = [line for line in captured.err.splitlines() if "stays dense" in line]
    rows_of = {128: "q_proj", 192: "down_proj", 64: "attn.qkv", 1176: "patch_embed.proj"}
    for length, part in rows_of.items():
        paths = [line.split()[0] for line in told if line.split()[0].endswith(part)]
        assert bool(paths) == (length != 128)
        for path in paths:
            assert to_mlx(f"{path}.scales") not in stored
        assert all(str(length) in line for line in told if line.split()[0] in paths)


def test_the_outcome_states_sizes_that_are_on_the_disk(tiny_folder: Path, tmp_path: Path) -> None:
    outcome = convert(tiny_folder, tmp_path / "copy", Wishes(("4bit", "8bit")))
    source = tensors_in(tiny_folder)
    assert outcome.source_bytes == sum(array.nbytes for array in source.values())
    default = tensors_in(tmp_path / "copy")
    assert outcome.variants["4bit"] == sum(array.nbytes for array in default.values())
    files = (tmp_path / "copy").rglob("*.safetensors")
    held = sum(array.nbytes for file in files for array in tensors_in(file).values())
    assert outcome.output_bytes == held


def test_a_name_of_another_project_is_explained(tiny_folder: Path, tmp_path: Path) -> None:
    outcome = convert(tiny_folder, tmp_path / "copy", "Q4_K_M")
    assert [note for note in outcome.notes if "mixed_4_6" in note and "Q4_K_M" in note]
    convert(tiny_folder, tmp_path / "named", "mixed_4_6")
    assert weights_of(tmp_path / "copy") == weights_of(tmp_path / "named")


def test_repeated_options_and_commas_name_variants_alike(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spellings = (["-q", "4bit", "8bit"], ["-q", "4bit,8bit"], ["-q", "4bit,", "-q", "8bit"])
    for number, spelling in enumerate(spellings):
        output = tmp_path / str(number)
        assert main(["--model", str(tiny_folder), "--output", str(output), *spelling]) == 0
        manifest = json.loads((output / "mlx_qwenvl.json").read_text())
        assert list(manifest["variants"]) == ["4bit", "8bit"]
        assert contents(output) == contents(tmp_path / "0")
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", [("4bit", "Q4K"), ("4bit", "AFQ4"), ("8bit", "3bit", "8")])
def test_two_names_of_one_recipe_are_refused(
    tiny_folder: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError, match="two of the recipes are the same"):
        convert(tiny_folder, tmp_path / "copy", Wishes(names))
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_in_a_name_goes_before_the_option(tiny_folder: Path, tmp_path: Path) -> None:
    wishes = Wishes(("4bit-g32",))
    convert(tiny_folder, tmp_path / "a", wishes)
    convert(tiny_folder, tmp_path / "b", replace(wishes, group_size=128))
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization"]["group_size"] == 32


# --- Memory -------------------------------------------------------------------------------------

CONVERTING = """
from pathlib import Path
from convert import Wishes, convert, tensors
tensors.BLOCK_BYTES = 2**20
def work(source, output, *recipes):
    convert(Path(source), Path(output), Wishes(recipes, vision_bits=8))
"""
LOADING = """
from mlx_qwenvl import load
def work(source):
    load(source, quantize="4bit")
"""
BLOCKS = 32 * 2**20  # bytes; room for some blocks of 1 MiB in every form they take
NOISE = 6 * 2**20  # bytes by which two runs of one program differ


def test_memory_grows_with_neither_the_layers_nor_the_largest_tensor(tmp_path: Path) -> None:
    shapes = {"small": (4, 32768, 512), "deep": (16, 32768, 512), "large": (4, 131072, 512)}
    peaks, largest = {}, {}
    for name, (layers, rows, hidden) in shapes.items():
        nbytes = write_hollow_checkpoint(
            tmp_path / name, layers=layers, vocab_size=rows, hidden=hidden, dtype="BF16", shards=3
        )
        assert nbytes > 1.9 * BLOCKS
        largest[name] = 2 * rows * hidden
        output = tmp_path / f"{name}-output"
        peaks[name] = peak_of(CONVERTING, tmp_path / name, output, "4bit", "mixed_3_6")
        shutil.rmtree(output)
    assert max(peaks.values()) < BLOCKS
    assert peaks["deep"] < peaks["small"] + NOISE
    # Scales and biases wait until their packed weights are written: 4 bytes for 64 of 2 bytes.
    waiting = (largest["large"] - largest["small"]) * 4 // (64 * 2)
    assert peaks["large"] < peaks["small"] + waiting + NOISE


def test_quantizing_at_load_holds_the_quantized_model_and_one_layer(tmp_path: Path) -> None:
    dense = write_hollow_checkpoint(
        tmp_path / "source", layers=12, vocab_size=4096, hidden=1024, dtype="F32", shards=3
    )
    stored = list_tensors(tmp_path / "source")
    layer = sum(t.nbytes for name, t in stored.items() if name.startswith("model.layers.0."))
    quantized = dense * 5 // 32  # 4 bits and two float32 for each 64 weights
    peak = peak_of(LOADING, tmp_path / "source")
    assert quantized < peak < quantized + 2 * layer + BLOCKS < dense / 2
