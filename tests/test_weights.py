"""Loading: every dialect and format of a checkpoint, and nothing that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import CheckpointError, OptionError, QwenVL, load
from mlx_qwenvl.models.linear import DequantizingEmbedding, DequantizingLinear
from mlx_qwenvl.models.text import DecoderLayer
from mlx_qwenvl.models.vision import PIXEL_CENTRE, PatchEmbed
from mlx_qwenvl.weights.fold import fold_motion, fold_patch_embed
from tests.golden.tiny import picture, write_checkpoint

QUESTION, PICTURE = "What is this?", picture(21, 84, 84)


def answer(vlm: QwenVL) -> np.ndarray:
    return vlm.logits(QUESTION, images=[PICTURE])


def tensors_of(folder: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def variant(
    source: Path, folder: Path, change: Callable[[dict[str, mx.array]], dict[str, mx.array]]
) -> Path:
    """A copy of a model folder with changed tensors."""
    shutil.copytree(source, folder)
    tensors = change(tensors_of(source))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def to_mlx_vlm(name: str) -> str:
    return "vision_tower." + name[7:] if name.startswith("visual.") else "language_model." + name


def to_transformers_5(name: str) -> str:
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("rename", [to_mlx_vlm, to_transformers_5])
def test_other_dialects_of_names_give_the_same_answer(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    folder = variant(
        tiny_folder, tmp_path / "m", lambda w: {rename(name): array for name, array in w.items()}
    )
    np.testing.assert_array_equal(answer(load(folder, dtype="float32")), answer(tiny))


def test_a_patch_embedding_in_mlx_order_gives_the_same_answer(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path
) -> None:
    def change(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        name = "visual.patch_embed.proj.weight"
        return weights | {name: mx.contiguous(weights[name].transpose(0, 2, 3, 4, 1))}

    folder = variant(tiny_folder, tmp_path / "m", change)
    np.testing.assert_allclose(answer(load(folder, dtype="float32")), answer(tiny), atol=1e-6)


def quantized(
    weights: dict[str, mx.array], bits: Callable[[str], int | None]
) -> dict[str, mx.array]:
    """Weights as `mlx-vlm` stores them, with bits chosen for each module."""
    out: dict[str, mx.array] = {}
    for name, array in weights.items():
        path = name.removesuffix(".weight")
        chosen = bits(path) if array.ndim == 2 and name.endswith(".weight") else None
        if chosen is None or array.shape[-1] % 64:
            out[to_mlx_vlm(name)] = array
            continue
        packed, scales, biases = mx.quantize(array, group_size=64, bits=chosen)
        out |= {
            to_mlx_vlm(f"{path}.weight"): packed,
            to_mlx_vlm(f"{path}.scales"): scales,
            to_mlx_vlm(f"{path}.biases"): biases,
        }
    return out


def dequantized(
    weights: dict[str, mx.array], bits: Callable[[str], int | None]
) -> dict[str, mx.array]:
    """What those weights stand for, as a full-precision checkpoint."""
    out = {}
    for name, array in weights.items():
        path = name.removesuffix(".weight")
        chosen = bits(path) if array.ndim == 2 and name.endswith(".weight") else None
        if chosen is not None and array.shape[-1] % 64 == 0:
            array = mx.dequantize(*mx.quantize(array, group_size=64, bits=chosen), 64, chosen)
        out[name] = array
    return out


def old_style(path: str) -> int | None:
    """Everything at 4 bits, the vision tower too, as conversions of 2024 have it."""
    return 4


def new_style(path: str) -> int | None:
    """The decoder alone; values and down projections at 6 bits, as mixed recipes have it."""
    if path.startswith("visual."):
        return None
    return 6 if path.endswith(("v_proj", "down_proj")) else 4


@pytest.mark.parametrize("bits", [old_style, new_style])
def test_quantized_folders_answer_as_the_weights_they_stand_for(
    tiny_folder: Path, tmp_path: Path, bits: Callable[[str], int | None]
) -> None:
    packed = variant(tiny_folder, tmp_path / "packed", lambda w: quantized(w, bits))
    plain = variant(tiny_folder, tmp_path / "plain", lambda w: dequantized(w, bits))
    config = json.loads((packed / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4}  # old files have no mode
    (packed / "config.json").write_text(json.dumps(config))
    ours, expected = (answer(load(folder, dtype="float32")) for folder in (packed, plain))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4)


def test_merging_keeps_projections_of_different_bits_apart(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = variant(tiny_folder, tmp_path / "m", lambda w: quantized(w, new_style))
    attention = load(folder).model.layers[0].self_attn
    assert [layer.bits for layer in attention["qkv_proj"]] == [4, 6]
    assert "gate_up_proj" in load(folder).model.layers[0].mlp


def test_merged_projections_equal_separate_ones(
    tiny: QwenVL, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "qkv_proj" in tiny.model.layers[0].self_attn
    monkeypatch.setattr(DecoderLayer, "merge_projections", lambda self: None)
    separate = load(tiny_folder, dtype="float32")
    assert "q_proj" in separate.model.layers[0].self_attn
    np.testing.assert_allclose(answer(separate), answer(tiny), rtol=0, atol=5e-5)


def test_folded_patch_embedding_equals_normalized_convolution(tiny: QwenVL) -> None:
    config = tiny.config.vision
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 3, 2, 14, 14)).astype(np.float32)
    pixels = rng.integers(0, 256, size=(5, 3, 14, 14))
    small = type(config)(**{**vars(config), "embed_dim": 8, "num_heads": 1})
    normalization = tiny.processor.normalization
    folded, bias = fold_patch_embed(mx.array(weight), normalization, small)
    centred = mx.array(pixels.reshape(5, -1).astype(np.float32)) - PIXEL_CENTRE
    ours = np.array(centred @ folded.T + bias)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (normalization.mean, normalization.std))
    frames = np.repeat(((pixels / 255 - mean) / std)[:, :, None], 2, axis=2)
    expected = np.einsum("nctij,dctij->nd", frames, weight.astype(np.float64))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-4)  # values reach about 100


@pytest.mark.parametrize("recipe", ["8bit", "4bit", "mxfp8", "mxfp4"])
def test_quantizing_in_place_keeps_the_answer_near(
    tiny: QwenVL, tiny_folder: Path, recipe: str
) -> None:
    exact = answer(tiny)
    rough = answer(load(tiny_folder, quantize=recipe))
    error = np.sqrt(np.mean((rough - exact) ** 2)) / exact.std()
    assert 0 < error < {"8bit": 0.05, "4bit": 0.6, "mxfp8": 0.4, "mxfp4": 1.0}[recipe]


def test_on_the_cpu_quantized_layers_dequantize_for_many_rows(tiny_folder: Path) -> None:
    if mx.default_device() != mx.cpu:
        pytest.skip("the GPU's quantized matmul needs no help")
    vlm = load(tiny_folder, quantize="4bit")
    layer = vlm.model.layers[0].mlp.down_proj
    assert type(layer) is DequantizingLinear
    assert type(vlm.model.model.embed_tokens) is DequantizingEmbedding
    x = mx.random.normal((1, 9, layer.weight.shape[1] * 8), key=mx.random.key(0))
    rows = mx.concatenate([layer(x[:, i : i + 1]) for i in range(9)], axis=1)
    assert float(mx.abs(layer(x) - rows).max()) < 1e-4


def test_dtype_is_float32_on_the_cpu_and_follows_the_caller(tiny_folder: Path) -> None:
    def dtypes(vlm: QwenVL) -> set[str]:
        layer = vlm.model.layers[0]
        return {str(a.dtype) for a in (layer.mlp.down_proj.weight, layer.input_layernorm.weight)}

    if mx.default_device() == mx.cpu:
        assert dtypes(load(tiny_folder)) == {"mlx.core.float32"}
    assert dtypes(load(tiny_folder, dtype="bfloat16")) == {"mlx.core.bfloat16"}
    assert load(tiny_folder, dtype="bfloat16").model.visual.dtype == mx.bfloat16


def test_unknown_dtypes_and_recipes_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(OptionError, match="unknown dtype 'int4'"):
        load(tiny_folder, dtype="int4")
    with pytest.raises(
        OptionError, match="unknown quantization '7bit'; expected one of none, 2bit"
    ):
        load(tiny_folder, quantize="7bit")


def test_a_quantized_model_is_not_quantized_again(tiny_folder: Path, tmp_path: Path) -> None:
    folder = variant(tiny_folder, tmp_path / "m", lambda w: quantized(w, old_style))
    with pytest.raises(CheckpointError, match="quantized already"):
        load(folder, quantize="4bit")


def without(*names: str) -> Callable[[dict[str, mx.array]], dict[str, mx.array]]:
    return lambda weights: {n: a for n, a in weights.items() if n not in names}


def with_extra(name: str, array: mx.array) -> Callable[[dict[str, mx.array]], dict[str, mx.array]]:
    return lambda weights: weights | {name: array}


NORM = "model.layers.1.input_layernorm.weight"
DOWN = "model.layers.0.mlp.down_proj"
MISFITS = {
    "missing": (without(NORM), f"lacks {NORM}"),
    "missing vision": (without("visual.merger.mlp.2.bias"), "lacks visual.merger.mlp.2.bias"),
    "extra": (
        with_extra("model.layers.9.x.weight", mx.zeros(3)),
        "unknown model.layers.9.x.weight",
    ),
    "wrong shape": (with_extra(NORM, mx.zeros(7)), rf"{NORM} has shape \(7,\), expected \(128,\)"),
    "wrong patches": (
        with_extra("visual.patch_embed.proj.weight", mx.zeros((64, 3, 2, 7, 7))),
        r"patch_embed.*\(64, 3, 2, 7, 7\), expected \(64, 3, 2, 14, 14\)",
    ),
    "packed without scales": (
        with_extra(f"{DOWN}.weight", mx.zeros((128, 24), dtype=mx.uint32)),
        f"{DOWN}.scales is missing",
    ),
    "scales that fit nothing": (
        with_extra(f"{DOWN}.scales", mx.zeros((128, 5))),
        f"{DOWN} has weight .* no quantization of rows of 192",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_tensor_that_does_not_fit_is_named(
    tiny_folder: Path, tmp_path: Path, misfit: str
) -> None:
    change, message = MISFITS[misfit]
    folder = variant(tiny_folder, tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_tied_head_that_is_stored_again_is_no_error(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path
) -> None:
    change = with_extra("lm_head.weight", mx.zeros((2, 2)))
    vlm = load(variant(tiny_folder, tmp_path / "m", change), dtype="float32")
    np.testing.assert_array_equal(answer(vlm), answer(tiny))


def test_a_file_cut_at_any_place_is_told_with_its_size(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    whole = (tiny_folder / "model.safetensors").read_bytes()
    for eighth in range(8):
        cut = whole[: len(whole) * eighth // 8]
        (folder / "model.safetensors").write_bytes(cut)
        with pytest.raises(CheckpointError, match=f"cut short.*it has {len(cut)} bytes"):
            load(folder)


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_lying_header_is_told(tiny_folder: Path, tmp_path: Path, header: bytes) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(CheckpointError, match="damaged"):
        load(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors"):
        load(folder)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"] = dict.fromkeys(raw["weight_map"], "../other.safetensors")
    index.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)


def test_pickled_weights_are_not_opened(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(folder)


def test_folded_frames_of_a_video_equal_the_normalized_convolution(tiny: QwenVL) -> None:
    """For a depth of three frames too, and whatever order the columns of later frames have."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(8, 3, 3, 14, 14)).astype(np.float32)
    pixels = rng.integers(0, 256, size=(5, 3, 3, 14, 14))  # patch, frame, channel, row, column
    small = replace(tiny.config.vision, embed_dim=8, num_heads=1, temporal_patch_size=3)
    normalization = tiny.processor.normalization
    embed = PatchEmbed(small)
    embed.proj.weight, embed.proj.bias = fold_patch_embed(mx.array(weight), normalization, small)
    embed.proj.motion = fold_motion(mx.array(weight), normalization, small)
    ours = np.array(embed(mx.array(pixels.reshape(1, 5, -1).astype(np.uint8))))[0]
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (normalization.mean, normalization.std))
    frames = ((pixels / 255 - mean) / std).swapaxes(1, 2)
    expected = np.einsum("nctij,dctij->nd", frames, weight.astype(np.float64))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-4)  # values reach about 100


def test_frames_that_do_not_move_are_a_still(tiny: QwenVL) -> None:
    embed = tiny.model.visual.patch_embed
    one = mx.random.randint(0, 256, (1, 8, 588), key=mx.random.key(0)).astype(mx.uint8)
    still, video = embed(one), embed(mx.concatenate([one, one], axis=-1))
    assert mx.array_equal(still, video)
