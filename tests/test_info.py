"""What is told of a model that is not loaded, held against loaded ones and hand-worked numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_qwenvl import CheckpointError, ModelNotFound, QwenVL, load
from mlx_qwenvl.facts import Facts, find_facts
from mlx_qwenvl.info import main
from mlx_qwenvl.inputs.pyav import EXPECTED, INSTALL
from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.models.config import Config, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.quantized_cache import KVFormat
from mlx_qwenvl.models.vision import VisionTransformer
from mlx_qwenvl.weights.bundle import MANIFEST
from mlx_qwenvl.weights.describe import Description, Part, describe
from mlx_qwenvl.weights.files import INDEX_FILE, StoredTensor, list_tensors
from mlx_qwenvl.weights.memory import (
    CHIPS,
    CPU,
    GPU,
    kv_bytes_per_token,
    memory_needed,
    tokens_per_second,
    weights_read,
)
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.quantize import quantized_tensors
from mlx_qwenvl.weights.recipes import read_recipe
from mlx_qwenvl.weights.remote import skeleton
from mlx_qwenvl.weights.resolve import DEMO_FOLDER
from mlx_qwenvl.weights.short_names import SHORT_NAMES
from mlx_qwenvl.weights.verify import verify
from tests.fake_hub import FakeHub, serving
from tests.faults import MODEL_FAULTS
from tests.golden.tiny import write_checkpoint

NAME = "people/tiny-vl"
WEIGHTS = "model.safetensors"
DECODER = 3 * (128 * 128 + 128 + 2 * (64 * 128 + 64) + 128 * 128 + 3 * 128 * 192 + 2 * 128) + 128
TOKENIZER_FAULTS = ("no tokenizer", "broken tokenizer")  # which nothing here reads

# Width, layers, MLP, heads, key-value heads, vocabulary, tied head; the towers differ in nothing.
SIZES = {
    "2b": (1536, 28, 8960, 12, 2, 151936, True),
    "7b": (3584, 28, 18944, 28, 4, 152064, False),
    "72b": (8192, 80, 29568, 64, 8, 152064, False),
}


# --- Models as they are stored ------------------------------------------------------------------


def published(size: str, recipe: str = "4bit") -> tuple[Config, dict[str, StoredTensor]]:
    """Shape and headers of a published model with its decoder quantized, without its weights."""
    width, layers, mlp, heads, kv_heads, vocabulary, tied = SIZES[size]
    raw = json.loads((DEMO_FOLDER / "config.json").read_text())
    raw |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rope_scaling": {"mrope_section": [16, 24, 24]},
    }
    raw["vision_config"] |= {
        "depth": 32,
        "embed_dim": 1280,
        "num_heads": 16,
        "mlp_ratio": 4,
        "hidden_size": width,
    }
    config = Config.from_dict(raw)
    form = read_recipe(recipe).low
    tensors = {}

    def store(name: str, dtype: str, *shape: int) -> None:
        nbytes = int(np.prod(shape)) * (4 if dtype == "U32" else 2)
        tensors[name] = StoredTensor(Path(WEIGHTS), name, shape, dtype, 0, nbytes)

    for name, array in tree_flatten(build(config).parameters()):
        if name == f"{PATCH_EMBED}.weight":
            store(name, "BF16", 1280, 3, 2, 14, 14)
        elif name.startswith("visual.") or array.ndim == 1 or form is None:
            if not name.startswith(PATCH_EMBED):  # the rest of it is made by the loader
                store(name, "BF16", *array.shape)
        else:
            rows, columns = array.shape
            store(name, "U32", rows, columns * form.bits // 32)
            for part in ("scales", "biases"):
                store(f"{name.removesuffix('weight')}{part}", "BF16", rows, columns // 64)
    return config, tensors


def quantized(folder: Path, recipe: str, *, vision: bool = False) -> dict[str, mx.array]:
    """A tiny folder's tensors with the matrices of the decoder quantized, by their names here."""
    opened = mx.load(str(folder / WEIGHTS))
    assert isinstance(opened, dict)
    tensors: dict[str, mx.array] = {}
    for name, array in opened.items():
        chosen = name.startswith(("model.", "lm_head.")) or (vision and "patch_embed" not in name)
        form = read_recipe(recipe).format_of(name.removesuffix(".weight"), 3)
        if chosen and array.ndim == 2 and form is not None:
            tensors |= quantized_tensors(name.removesuffix(".weight"), array, form)
        else:
            tensors[name] = array
    return tensors


def folder_of(source: Path, folder: Path, tensors: Mapping[str, mx.array]) -> Path:
    """A folder like another with other weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    mx.save_safetensors(str(folder / WEIGHTS), dict(tensors))
    return folder


def add_checksums(folder: Path) -> None:
    """Write the index that the converter writes."""
    files = sorted(folder.glob("*.safetensors"))
    weight_map = {key: file.name for file in files for key in load_file(file)}
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    index = {"metadata": {"sha256": digests}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def two_variants(folder: Path) -> tuple[dict[str, mx.array], dict[int, dict[str, mx.array]]]:
    """What 4 and 8 bits of a tiny folder share, and what each has alone, by mlx-vlm's names."""
    source = {bits: quantized(folder, f"{bits}bit") for bits in (4, 8)}
    packed = tuple(n.removesuffix("scales") for n in source[4] if n.endswith(".scales"))
    shared = {to_mlx(n): a for n, a in source[4].items() if not n.startswith(packed)}
    own = {
        bits: {to_mlx(n): a for n, a in tensors.items() if n.startswith(packed)}
        for bits, tensors in source.items()
    }
    return shared, own


def manifest_of(entries: dict[str, Any]) -> str:
    return json.dumps({"format_version": 1, "default": "4bit", "variants": entries})


@pytest.fixture
def variants(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with a default of 4 bits, and 8 bits beside it."""
    shared, own = two_variants(tiny_folder)
    common, default, other = "model-00001.safetensors", "model-00002.safetensors", WEIGHTS
    folder = folder_of(tiny_folder, tmp_path / "several", {})
    (folder / WEIGHTS).unlink()
    aside = folder / "variants" / "8bit"
    aside.mkdir(parents=True)
    mx.save_safetensors(str(folder / common), shared)
    mx.save_safetensors(str(folder / default), own[4])
    mx.save_safetensors(str(aside / other), own[8])
    add_checksums(folder)
    add_checksums(aside)
    files = {"4bit": [common, default], "8bit": [common, f"variants/8bit/{other}"]}
    entries = {name: {"files": paths} for name, paths in files.items()}
    (folder / MANIFEST).write_text(manifest_of(entries))
    return folder


@pytest.fixture
def single_file(tiny_folder: Path, tmp_path: Path) -> Path:
    """The same as one file."""
    shared, own = two_variants(tiny_folder)
    tensors = {name: np.array(array) for name, array in shared.items()}
    for bits, held in own.items():
        tensors |= {f"{bits}bit/{name}": np.array(array) for name, array in held.items()}
    small = {file.name: file.read_bytes() for file in tiny_folder.glob("*.json")}
    entries = {f"{bits}bit": {"prefixes": ["", f"{bits}bit/"]} for bits in own}
    small[MANIFEST] = manifest_of(entries).encode()
    tensors |= {f"files/{n}": np.frombuffer(text, np.uint8) for n, text in small.items()}
    file = tmp_path / "tiny.safetensors"
    save_file(tensors, file)
    data = file.read_bytes()
    behind = data[8 + int.from_bytes(data[:8], "little") :]
    save_file(tensors, file, {"data_sha256": hashlib.sha256(behind).hexdigest()})
    return file


def part(description: Description, name: str) -> Part:
    return next(part for part in description.parts if part.name == name)


def described(folder: Path) -> Description:
    return describe(Config.from_folder(folder), list_tensors(folder))


# --- Parameters, bytes, formats -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("2b", 2_208_985_600), ("7b", 8_291_375_616), ("72b", 73_405_560_320)],
)
@pytest.mark.parametrize("recipe", ["none", "4bit"])
def test_published_sizes_have_the_parameters_that_the_hub_states(
    size: str, parameters: int, recipe: str
) -> None:
    assert describe(*published(size, recipe)).parameters == parameters


def test_parts_of_the_tiny_model_are_as_worked_by_hand(tiny_folder: Path) -> None:
    description = described(tiny_folder)
    assert {p.name: p.parameters for p in description.parts} == {
        "vision tower": 64 * 1176 + 2 * (4 * 64 + 3 * 64 * 65 + 64 * 65 + 256 * 65 + 64 * 257),
        "merger": 2 * 64 + 256 * 257 + 128 * 257,
        "embeddings": 512 * 128,
        "decoder": DECODER,
    }
    assert all(p.bits_per_weight == 32 and set(p.formats) == {"float32"} for p in description.parts)
    assert description.stored_bytes == 4 * description.parameters
    assert not any(p.dense for p in description.parts)


def test_quantizing_changes_bytes_and_formats_and_no_parameters(
    tiny_folder: Path, tmp_path: Path
) -> None:
    dense = described(tiny_folder)
    packed = described(folder_of(tiny_folder, tmp_path / "q", quantized(tiny_folder, "4bit")))
    assert [p.parameters for p in packed.parts] == [p.parameters for p in dense.parts]
    assert part(packed, "vision tower") == part(dense, "vision tower")
    # Scales and biases are float32 here: 4 + 2 * 32 / 64 bits.
    assert part(packed, "embeddings").stored_bytes * 8 == 5 * 512 * 128
    vectors = 3 * (128 + 2 * 64 + 2 * 128) + 128
    assert part(packed, "decoder").stored_bytes * 8 == 5 * (DECODER - vectors) + 32 * vectors
    assert part(packed, "decoder").formats == {"4bit (groups of 64)": 21}


def test_mixed_formats_are_counted_each(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = quantized(tiny_folder, "mixed_4_6")
    mixed = part(described(folder_of(tiny_folder, tmp_path / "q", tensors)), "decoder")
    # Of three layers the last is both the last eighth and a third one: its value and down.
    assert mixed.formats == {"4bit (groups of 64)": 19, "6bit (groups of 64)": 2}
    assert mixed.parameters == DECODER


def test_matrices_left_dense_in_a_quantized_part_are_listed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    tensors = quantized(tiny_folder, "8bit", vision=True)
    packed = described(folder_of(tiny_folder, tmp_path / "q", tensors))
    tower = part(packed, "vision tower")
    assert tower.dense == (f"{PATCH_EMBED}.weight",)
    assert tower.formats == {"8bit (groups of 64)": 8, "float32": 1}
    assert part(packed, "merger").formats == {"8bit (groups of 64)": 2}
    assert part(packed, "merger").dense == ()


@pytest.mark.parametrize("recipe", ["none", "4bit", "3bit", "mxfp4", "mxfp8", "nvfp4", "mixed_2_6"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("padding", ["off", "on"])
def test_loaded_bytes_are_those_of_the_loaded_model(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    dtype: str,
    padding: str,
) -> None:
    monkeypatch.setenv("MLX_QWENVL_PAD_MLP", padding)
    folder = folder_of(tiny_folder, tmp_path / "q", quantized(tiny_folder, recipe, vision=True))
    loaded = load(folder, dtype=dtype).model.parameters()
    held = sum(array.nbytes for _, array in tree_flatten(loaded))
    backend = replace(CPU, float_bytes=4 if dtype == "float32" else 2)
    needed = memory_needed(described(folder), backend, context=1, patches=4, prefill_step=1)
    assert needed.weights == held


def test_the_padding_of_the_2b_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    description = describe(*published("2b"))
    monkeypatch.setenv("MLX_QWENVL_PAD_MLP", "off")
    plain = memory_needed(description, GPU, context=64, patches=4, prefill_step=64)
    read = weights_read(description)
    monkeypatch.delenv("MLX_QWENVL_PAD_MLP")
    padded = memory_needed(description, GPU, context=64, patches=4, prefill_step=64)
    # 256 more columns in each of 28 layers' three matrices, at 4 bits and 32 for each group of 64.
    assert padded.weights - plain.weights == 28 * 3 * 256 * 1536 * (4 + 32 / 64) / 8
    assert weights_read(description) - read == padded.weights - plain.weights
    assert padded.prefill - plain.prefill == 64 * 3 * 256 * 2


def test_both_dialects_and_all_layouts_are_described_alike(
    tiny_folder: Path, variants: Path, single_file: Path, tmp_path: Path
) -> None:
    ours = folder_of(tiny_folder, tmp_path / "ours", quantized(tiny_folder, "4bit"))
    theirs = {to_mlx(name): array for name, array in quantized(tiny_folder, "4bit").items()}
    converted = folder_of(tiny_folder, tmp_path / "theirs", theirs)
    alike = [find_facts(str(path)).description for path in (ours, converted, variants, single_file)]
    for other in alike[1:]:
        assert {p.name: (p.parameters, p.stored_bytes, p.formats) for p in other.parts} == {
            p.name: (p.parameters, p.stored_bytes, p.formats) for p in alike[0].parts
        }


def test_a_separate_head_is_a_part_and_a_stored_copy_of_a_tied_one_is_not(tmp_path: Path) -> None:
    untied = write_checkpoint(tmp_path / "untied", tied=False, layout="nested", shards=2)
    assert part(described(untied), "head").parameters == 512 * 128
    tied = write_checkpoint(tmp_path / "tied")
    before = described(tied)
    tensors = load_file(tied / WEIGHTS)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tied / WEIGHTS)
    assert described(tied) == before


# --- Variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["variants", "single_file"])
def test_variants_are_listed_with_their_bytes_and_can_be_chosen(
    form: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(form)
    facts = {name: find_facts(str(path), variant=name) for name in (None, "4bit", "8bit")}
    sizes = {name: of.description.stored_bytes for name, of in facts.items()}
    assert sizes[None] == sizes["4bit"] < sizes["8bit"]
    for of in facts.values():
        assert of.default == "4bit"
        assert of.variants == {"4bit": sizes["4bit"], "8bit": sizes["8bit"]}
    bits = part(facts["8bit"].description, "decoder").formats
    assert bits == {"8bit (groups of 64)": 21}


def test_disk_bytes_count_every_file_of_all_variants_once(variants: Path) -> None:
    on_disk = sum(file.stat().st_size for file in variants.rglob("*.safetensors"))
    assert find_facts(str(variants)).to_dict()["disk_bytes"] == on_disk


def test_a_variant_that_was_not_downloaded_is_told_so(
    variants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(variants / "variants")
    assert find_facts(str(variants)).variants["8bit"] is None
    assert main([str(variants)]) == 0
    assert "variant 8bit: not here" in capsys.readouterr().out


# --- Memory and speed ---------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "nbytes"), [("2b", 28_672), ("7b", 57_344), ("72b", 327_680)])
def test_keys_and_values_of_published_sizes(size: str, nbytes: int) -> None:
    config, _ = published(size)
    assert kv_bytes_per_token(config, GPU) == nbytes
    # A byte a number, and for 64 of them a scale and a bias of 16 bits: 17/32 of 16 bits.
    assert kv_bytes_per_token(config, GPU, KVFormat(8)) == nbytes * 17 // 32


@pytest.mark.parametrize("kv_bits", [None, 8, 4])
def test_keys_and_values_take_what_a_real_cache_takes(
    tiny_folder: Path, kv_bits: int | None
) -> None:
    model = load(tiny_folder, dtype="float32").model
    cache = model.make_cache(KVFormat(kv_bits))
    mx.eval(model(mx.zeros((1, 256), mx.int32), cache))
    per_token = kv_bytes_per_token(model.config, CPU, KVFormat(kv_bits))
    assert sum(layer.nbytes for layer in cache) == 256 * per_token


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU never holds attention scores")
@pytest.mark.parametrize(("width", "mlp_ratio", "side"), [(256, 4, 8), (256, 2, 16), (128, 4, 32)])
def test_the_vision_tower_needs_about_what_is_computed(
    width: int, mlp_ratio: int, side: int
) -> None:
    vision = VisionConfig(2, width, 8, mlp_ratio * width, 64, 3, 14, 2, 2)
    tower = VisionTransformer(vision, TWINS)
    patches = mx.zeros((1, side * side, 588), mx.uint8)
    mx.eval(tower.parameters(), patches)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(tower(patches, (1, side, side)))
    peak = mx.get_peak_memory() - before
    text = Config.from_folder(DEMO_FOLDER)
    config = Config(vision, text.text, 0, 0, 0, 0)
    needed = memory_needed(
        Description(config, ()), CPU, context=1, patches=side * side, prefill_step=1
    )
    assert 0.7 < peak / needed.vision < 1.3


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="computed for a CPU here")
def test_an_answer_needs_about_what_is_computed(demo: QwenVL) -> None:
    image = np.random.default_rng(0).integers(0, 256, (168, 168, 3), dtype=np.uint8)
    mx.clear_cache()
    before = mx.get_active_memory()
    reply = demo.generate("What?", images=[image], max_tokens=8, temperature=0)
    facts = find_facts("demo", context=reply.usage.total_tokens, image=(168, 168))
    needed = facts.memory(CPU)
    assert 0.7 < (reply.peak_memory_bytes - before) / (needed.total - needed.weights) < 1.3


def test_memory_adds_up_and_grows_with_what_is_asked(tiny_folder: Path) -> None:
    small = find_facts(str(tiny_folder), context=300, image=(56, 56)).memory(GPU)
    more_context = find_facts(str(tiny_folder), context=600, image=(56, 56)).memory(GPU)
    more_pixels = find_facts(str(tiny_folder), context=300, image=(280, 280)).memory(GPU)
    assert small.total == small.weights + small.kv_cache + max(small.vision, small.prefill)
    assert more_context.kv_cache == 2 * small.kv_cache == 600 * 768
    assert more_context.vision == small.vision
    assert more_pixels.vision > 25 * small.vision  # heads of 32 hold scores on a GPU too
    assert more_pixels.kv_cache == small.kv_cache


# Tokens per second at 4 bits and an empty context, worked out by hand from the shapes.
FLOORS = {
    "2b": {"M1": 78, "M2": 115, "M4": 138, "M3 Pro": 173, "M4 Pro": 314, "M1 Max": 461,
           "M4 Max (40-core GPU)": 629, "M3 Ultra": 943},
    "7b": {"M1": 17, "M2": 25, "M4": 30, "M3 Pro": 38, "M4 Pro": 69, "M1 Max": 101,
           "M4 Max (40-core GPU)": 137, "M3 Ultra": 206},
    "72b": {"M1 Max": 10, "M4 Max (40-core GPU)": 14, "M3 Ultra": 20},
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "read", "context_read"),
    [("2b", 0.87e9, 28_672), ("7b", 3.98e9, 57_344), ("72b", 40.2e9, 327_680)],
)
def test_ceilings_of_published_sizes(
    monkeypatch: pytest.MonkeyPatch, size: str, read: float, context_read: int
) -> None:
    monkeypatch.setenv("MLX_QWENVL_PAD_MLP", "off")
    description = describe(*published(size))
    assert description.read_bytes_per_token(2) == pytest.approx(read, rel=0.02)
    for chip, rate in FLOORS[size].items():
        computed = tokens_per_second(description, 0, CHIPS[chip])
        assert computed == pytest.approx(rate, rel=0.02, abs=0.5)
    at_context = tokens_per_second(description, 10_000, 100.0)
    seconds = (description.read_bytes_per_token(2) + 10_000 * context_read) / 100e9
    assert at_context == pytest.approx(1 / seconds, rel=1e-9)


def test_a_tied_embedding_is_read_as_the_head_and_an_untied_one_is_not(tmp_path: Path) -> None:
    tied, untied = (
        described(write_checkpoint(tmp_path / str(tied), tied=tied)) for tied in (True, False)
    )
    assert tied.read_bytes_per_token(2) == untied.read_bytes_per_token(2) == 2 * (DECODER + 65536)


# --- The command --------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    value = json.loads(captured.out)
    assert isinstance(value, dict)
    return value


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("mlx-qwenvl info: ")
    return captured.err


def test_json_holds_everything_in_bytes(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = told(capsys, tiny_folder, "--context", "1000", "--image", "300x200")
    weights = (tiny_folder / WEIGHTS).stat().st_size
    assert value["disk_bytes"] == weights == value["weight_files"][WEIGHTS]
    assert value["parameters"] == sum(p["parameters"] for p in value["parts"])
    assert value["bits_per_weight"] == 32
    # 300 x 200 pixels become 308 x 196: 11 x 7 tokens.
    assert value["pixels"]["image"] == {"size": [308, 196], "tokens": 77, "patches": 308}
    assert value["pixels"]["checkpoint_tokens"] == [4, 16384]
    assert value["pixels"]["tokens"] == [4, 1280]
    memory = value["memory"]
    assert (memory["context"], memory["kv_bytes_per_token"]) == (1000, 768)
    assert memory["kv_cache"] == 768_000
    assert memory["total"] > memory["weights"] + memory["kv_cache"]
    assert value["machine"]["fits"] is True and value["machine"]["memory"] > 10**8
    assert value["ceilings"]["measured"] is False
    assert set(value["ceilings"]["tokens_per_second"]) == set(CHIPS)
    assert (value["default_variant"], value["variants"]) == (None, {})


def test_whether_videos_can_be_decoded_is_told(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")

    def said() -> tuple[str, dict[str, Any]]:
        assert main([str(tiny_folder)]) == 0
        return capsys.readouterr().out, told(capsys, tiny_folder)["machine"]

    out, machine = said()
    assert f"\nVideos\n  decoded by PyAV {av.__version__}; expected is {EXPECTED} or later\n" in out
    assert (machine["pyav"], machine["decodes_videos"]) == (av.__version__, True)
    monkeypatch.setattr(av, "__version__", "16.0.1")
    out, machine = said()
    assert "cannot be decoded here: PyAV 16.0.1 can crash" in out and INSTALL in out
    assert (machine["pyav"], machine["decodes_videos"]) == ("16.0.1", False)
    monkeypatch.setitem(sys.modules, "av", None)
    out, machine = said()
    assert f"one more package: {INSTALL}" in out and f"PyAV {EXPECTED} or later" in out
    assert (machine["pyav"], machine["decodes_videos"]) == (None, False)


def test_a_model_larger_than_memory_does_not_fit(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = told(capsys, tiny_folder)["machine"]["needed"]
    for recommended, fits in ((needed, True), (needed - 1, False)):
        device = {"max_recommended_working_set_size": recommended}
        monkeypatch.setattr(mx, "device_info", lambda device=device: device)
        assert told(capsys, tiny_folder)["machine"]["fits"] is fits
        assert main([str(tiny_folder)]) == 0
        assert ("it fits." if fits else "it does not fit.") in capsys.readouterr().out


def test_the_text_tells_the_same_and_marks_what_is_computed(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = quantized(tiny_folder, "4bit", vision=True)
    folder = folder_of(tiny_folder, tmp_path / "q", tensors)
    assert main([str(folder), "--image", "300x200", "--max-pixels", "50000"]) == 0
    out = capsys.readouterr().out
    for words in (
        "3 layers of 128, MLP of 192, 4 query and 2 key-value heads of 32",
        "8 x 4bit (groups of 64), 1 x float32",
        f"left dense: {PATCH_EMBED}.weight",
        "4 to 63 tokens a picture",
        "the checkpoint's own limits are 4 to 16384",
        "Computed from memory bandwidth, not measured",
        "M4 Max (40-core GPU)",
    ):
        assert words in out
    assert all(len(line) <= 110 for line in out.splitlines())


def test_a_limit_on_pixels_limits_tokens(tiny_folder: Path) -> None:
    facts = find_facts(str(tiny_folder), max_pixels=100 * 784)
    assert facts.tokens(facts.budget) == (4, 100)
    assert (facts.look.tokens, facts.look.patches) == (100, 400)
    assert find_facts(str(tiny_folder), max_pixels=100 * 784, image=(4000, 3000)).look.tokens <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "big"], "--image big is no size"),
        (["--image", "0x10"], "is no size"),
        (["--image", "10x"], "is no size"),
        (["--image", "1e3x10"], "is no size"),
        (["--context", "0"], "1 to 2048"),
        (["--context", "2049"], "1 to 2048"),
        (["--context", "10", "--image", "300x200"], "takes 77 tokens"),
        (["--max-pixels", "0"], "max_pixels 0"),
        (["--variant", "6bit"], "no variants"),
    ],
)
def test_a_wrong_option_is_one_line_and_a_usage_error(
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert words in refused(capsys, 2, tiny_folder, *arguments)


@pytest.mark.parametrize("fault", [name for name in MODEL_FAULTS if name not in TOKENIZER_FAULTS])
def test_what_load_refuses_is_refused_in_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    damage, words = MODEL_FAULTS[fault]
    damage(folder)
    message = refused(capsys, 1, folder)
    assert words in message
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(caught.value) in message


def test_a_patch_embedding_of_another_shape_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = quantized(tiny_folder, "none")
    tensors[f"{PATCH_EMBED}.weight"] = tensors[f"{PATCH_EMBED}.weight"][:, :, :1]
    folder = folder_of(tiny_folder, tmp_path / "m", tensors)
    assert f"{PATCH_EMBED}.weight has shape" in refused(capsys, 1, folder)


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model 'nope'" in refused(capsys, 1, "nope")


# --- On the Hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Iterator[FakeHub]:
    """A Hub with the tiny model, and an empty cache."""
    from huggingface_hub import constants

    files = {f.name: f.read_bytes() for f in tiny_folder.iterdir()}
    files["pytorch_model.bin"] = b"a pickle"
    with serving(FakeHub(NAME, files)) as server:
        address = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


def publish(hub: FakeHub, folder: Path) -> None:
    files = (file for file in folder.rglob("*") if file.is_file())
    hub.files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def without_origin(facts: Facts) -> dict[str, Any]:
    return {k: v for k, v in facts.to_dict().items() if k not in ("model", "headers_only")}


def test_of_a_model_on_the_hub_only_descriptions_and_headers_are_read(
    hub: FakeHub, tiny_folder: Path, tmp_path: Path
) -> None:
    facts = find_facts(NAME)
    assert facts.is_remote
    assert without_origin(facts) == without_origin(find_facts(str(tiny_folder)))
    assert {name for name in hub.sent if name} == {
        "config.json",
        "preprocessor_config.json",
        WEIGHTS,
    }
    assert hub.sent[WEIGHTS] <= 100_000 < len(hub.files[WEIGHTS]) // 10
    assert not (tmp_path / "cache").exists()


def test_a_long_header_is_read_whole_and_nothing_behind_it(
    hub: FakeHub, tiny_folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_folder / WEIGHTS)
    save_file(tensors, tmp_path / WEIGHTS, {"remark": "x" * 150_000})
    hub.files[WEIGHTS] = (tmp_path / WEIGHTS).read_bytes()
    assert find_facts(NAME).description == find_facts(str(tiny_folder)).description
    length = 8 + int.from_bytes(hub.files[WEIGHTS][:8], "little")
    assert length <= hub.sent[WEIGHTS] <= length + 100_000


def test_a_server_without_ranges_is_left_before_it_has_sent_the_weights(hub: FakeHub) -> None:
    hub.knows_ranges = False
    header = b"{}".ljust(200_000)
    hub.files[WEIGHTS] = len(header).to_bytes(8, "little") + header + bytes(50_000_000)
    with skeleton(NAME) as folder:
        held = (folder / WEIGHTS).stat()
        assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert held.st_size == 50_200_008
    assert held.st_blocks * 512 < 1_000_000
    assert hub.sent[WEIGHTS] < 25_000_000


def test_variants_on_the_hub_are_told_with_their_bytes(hub: FakeHub, variants: Path) -> None:
    publish(hub, variants)
    for variant in (None, "8bit"):
        remote, local = (
            find_facts(NAME, variant=variant),
            find_facts(str(variants), variant=variant),
        )
        assert remote.is_remote and without_origin(remote) == without_origin(local)


def test_sharded_weights_on_the_hub_are_those_of_the_index(hub: FakeHub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", tied=False, layout="nested", shards=3)
    publish(hub, folder)
    assert without_origin(find_facts(NAME)) == without_origin(find_facts(str(folder)))
    del hub.files["model-00002-of-00003.safetensors"]
    with pytest.raises(CheckpointError, match=f"^{NAME} lacks model-00002-of-00003"):
        find_facts(NAME)


def test_a_downloaded_model_is_not_asked_for(hub: FakeHub) -> None:
    load(NAME)
    hub.requests.clear()
    assert not find_facts(NAME).is_remote
    assert hub.requests == []


@pytest.mark.parametrize("short", ["2b", "2B-8bit"])
def test_a_short_name_is_looked_up_under_its_repository(hub: FakeHub, short: str) -> None:
    hub.repository = SHORT_NAMES[short.lower()]
    facts = find_facts(short)
    assert facts.is_remote and facts.model == short


def test_what_is_wrong_on_the_hub_is_one_line_that_names_the_repository(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    assert "no such repository" in refused(capsys, 1, "people/other")
    whole = hub.files[WEIGHTS]
    hub.files[WEIGHTS] = whole[: len(whole) // 2]
    message = refused(capsys, 1, NAME)
    assert f"{NAME}/{WEIGHTS} is damaged or was cut short" in message and "/tmp" not in message
    hub.files[WEIGHTS] = (2**63).to_bytes(8, "little") + bytes(1000)
    assert f"{NAME}/{WEIGHTS} is damaged" in refused(capsys, 1, NAME)
    hub.files[WEIGHTS] = b""
    assert f"{NAME}/{WEIGHTS} is damaged" in refused(capsys, 1, NAME)
    hub.files[WEIGHTS] = whole
    hub.files["config.json"] = b'{"model_type": "llava"}'
    assert "this is a 'llava' checkpoint" in refused(capsys, 1, NAME)
    hub.withheld.add("config.json")
    assert "answered 403" in refused(capsys, 1, NAME)


def test_offline_says_that_it_is_not_downloaded(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        find_facts(NAME)
    assert hub.requests == []


# --- Checksums ----------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def test_files_of_all_variants_are_checked(
    variants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    checked = verify(variants, lambda done, total: seen.append((done, total)))
    files = {file: file.read_bytes() for file in variants.rglob("*.safetensors")}
    assert {c.file: c.found for c in checked} == {
        file: hashlib.sha256(data).hexdigest() for file, data in files.items()
    }
    assert all(c.is_sound and c.nbytes == len(files[c.file]) for c in checked)
    total = sum(map(len, files.values()))
    assert seen[-1] == (total, total) and seen == sorted(seen)
    assert main([str(variants), "--verify"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and all(line.startswith("ok ") for line in out)


@pytest.mark.parametrize("name", ["model-00001.safetensors", f"variants/8bit/{WEIGHTS}"])
def test_one_flipped_bit_is_found_and_both_digests_are_told(
    variants: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = hashlib.sha256((variants / name).read_bytes()).hexdigest()
    flip_a_bit(variants / name)
    after = hashlib.sha256((variants / name).read_bytes()).hexdigest()
    assert main([str(variants), "--verify"]) == 1
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()].count("damaged") == 1
    assert captured.err.count("\n") == 1
    assert all(words in captured.err for words in (str(variants / name), before, after))


def test_a_missing_file_is_found(variants: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (variants / "model-00002.safetensors").unlink()
    message = refused(capsys, 1, variants, "--verify", "--json")
    assert "model-00002.safetensors is missing" in message


def test_a_single_file_is_checked_behind_its_header(
    single_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checked,) = verify(single_file)
    data = single_file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert checked.is_sound and checked.nbytes == len(data) - header
    flip_a_bit(single_file)
    message = refused(capsys, 1, single_file, "--verify")
    assert checked.expected in message and str(single_file) in message


def test_links_are_followed_as_in_the_cache(variants: Path, tmp_path: Path) -> None:
    blobs, linked = tmp_path / "blobs", tmp_path / "linked"
    blobs.mkdir()
    for number, file in enumerate(f for f in variants.rglob("*") if f.is_file()):
        link = linked / file.relative_to(variants)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(blobs / str(number)))
    assert all(checked.is_sound for checked in verify(linked))
    flip_a_bit((linked / "model-00001.safetensors").resolve())
    assert sum(not checked.is_sound for checked in verify(linked)) == 1


def test_a_model_without_checksums_is_told_so(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "has no checksums" in refused(capsys, 1, tiny_folder, "--verify")
    assert "has no checksums" in refused(capsys, 1, tiny_folder / WEIGHTS, "--verify")


@pytest.mark.parametrize("place", [".", "variants/8bit"])
def test_a_variant_without_checksums_is_not_passed_over(variants: Path, place: str) -> None:
    (variants / place / INDEX_FILE).unlink()
    with pytest.raises(CheckpointError, match="has no checksums"):
        verify(variants)


def test_a_file_that_no_checksum_covers_is_told(variants: Path) -> None:
    index = json.loads((variants / INDEX_FILE).read_text())
    del index["metadata"]["sha256"]["model-00002.safetensors"]
    (variants / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no checksum of model-00002\.safetensors"):
        verify(variants)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_file_outside_the_folder_is_not_read(variants: Path, name: str) -> None:
    index = json.loads((variants / INDEX_FILE).read_text())
    index["metadata"]["sha256"][name] = "0" * 64
    (variants / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside"):
        verify(variants)


def test_a_model_that_stays_on_the_hub_cannot_be_verified(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not downloaded" in refused(capsys, 1, NAME, "--verify")
