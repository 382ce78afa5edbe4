"""The way back: a quantized model becomes a dense one as the Hub's checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from convert import Wishes, convert, tensors
from convert.__main__ import main
from convert.dequantize import dequantize
from mlx_qwenvl import CheckpointError, OptionError, load
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.files import list_tensors
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.plan import PATCH_EMBED, Plan
from mlx_qwenvl.weights.recipes import RECIPES
from tests.conversions import (
    answer,
    assert_same_weights,
    bits_of,
    contents,
    plan_for,
    tensors_in,
    weights_of,
)
from tests.golden.tiny import write_checkpoint
from tests.golden.tiny_files import DType

QUANTIZING = [name for name in RECIPES if name != "none"]
FLOATS: dict[DType, mx.Dtype] = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
}


@pytest.fixture(scope="session", params=["float32", "bfloat16", "float16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint; the three differ in dtype, layout, files and head."""
    dtype: DType = request.param
    return write_checkpoint(
        tmp_path_factory.mktemp("source") / dtype,
        dtype=dtype,
        tied=dtype == "bfloat16",
        layout="hub" if dtype == "float32" else "nested",
        shards=1 if dtype == "float32" else 2,
    )


def expected_tensors(source: Path, quantized: Path, plan: Plan) -> dict[str, mx.array]:
    """What the tensors of a dequantized folder have to be, by MLX's own word."""
    packed, expected = tensors_in(quantized), dict(tensors_in(source))
    for path, form in plan.formats.items():
        name = to_mlx(path)
        dense = mx.dequantize(
            packed[f"{name}.weight"],
            packed[f"{name}.scales"],
            packed.get(f"{name}.biases"),
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
        )
        expected[f"{path}.weight"] = dense.astype(expected[f"{path}.weight"].dtype)
    return expected


@pytest.mark.parametrize("recipe", QUANTIZING)
def test_every_mode_gives_names_shapes_and_numbers_of_the_hubs_checkpoint(
    source: Path, tmp_path: Path, recipe: str
) -> None:
    convert(source, tmp_path / "quantized", Wishes((recipe,), vision_bits=8))
    dequantize(tmp_path / "quantized", tmp_path / "dense")
    found = tensors_in(tmp_path / "dense")
    plan = plan_for(source, recipe, vision_bits=8)
    expected = expected_tensors(source, tmp_path / "quantized", plan)
    assert len(plan.formats) > 20 and found.keys() == expected.keys()
    assert found[f"{PATCH_EMBED}.weight"].shape == (64, 3, 2, 14, 14)
    for name, array in expected.items():
        assert bits_of(found[name]) == bits_of(array), name


@pytest.mark.parametrize("recipe", ["2bit", "4bit", "mxfp4", "mxfp8", "nvfp4", "mixed_3_4"])
def test_answers_are_those_of_the_quantized_model(tmp_path: Path, recipe: str) -> None:
    source = write_checkpoint(tmp_path / "source", tied=False)
    convert(source, tmp_path / "quantized", recipe)
    dequantize(tmp_path / "quantized", tmp_path / "dense")
    dense, quantized = load(tmp_path / "dense"), load(tmp_path / "quantized")
    np.testing.assert_allclose(dense.logits("Why?"), quantized.logits("Why?"), rtol=0, atol=1e-4)
    # MLX makes bfloat16 of embeddings in its float formats, and the picture is rounded with them.
    np.testing.assert_allclose(answer(dense), answer(quantized), rtol=0, atol=1e-4)
    assert np.abs(answer(dense) - answer(load(source))).max() > 0.5  # it was quantized indeed


def test_settings_are_the_sources_again(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "quantized", "4bit")
    dequantize(tmp_path / "quantized", tmp_path / "dense")
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "dense")
    )
    if "text_config" not in before:  # else it is in the Hub's layout now, see test_convert.py
        assert after == before
    assert Config.from_dict(after) == Config.from_dict(before)
    small = {file.name for file in source.iterdir() if "safetensors" not in file.name}
    kept = {file.name for file in (tmp_path / "dense").iterdir() if "safetensors" not in file.name}
    assert kept == small | {"mlx_qwenvl.json"}
    for name in small - {"config.json"}:
        assert (tmp_path / "dense" / name).read_bytes() == (source / name).read_bytes()
    index = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_in(source).keys()


def test_quantizing_again_gives_the_same_codes(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "quantized", "8bit")
    dequantize(tmp_path / "quantized", tmp_path / "dense")
    assert list_tensors(tmp_path / "dense").keys() == list_tensors(source).keys()
    convert(tmp_path / "dense", tmp_path / "again", "8bit")
    outer, inner = tensors_in(tmp_path / "quantized"), tensors_in(tmp_path / "again")
    assert {n: a.shape for n, a in outer.items()} == {n: a.shape for n, a in inner.items()}


@pytest.mark.parametrize("recipe", ["4bit", "mxfp4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_dtype_can_be_chosen(source: Path, tmp_path: Path, recipe: str, dtype: DType) -> None:
    convert(source, tmp_path / "quantized", recipe)
    dequantize(tmp_path / "quantized", tmp_path / "kept")
    dequantize(tmp_path / "quantized", tmp_path / "dense", dtype=dtype)
    kept, found = tensors_in(tmp_path / "kept"), tensors_in(tmp_path / "dense")
    assert {array.dtype for array in found.values()} == {FLOATS[dtype]}
    for name, array in found.items():
        np.testing.assert_allclose(
            np.array(array.astype(mx.float32)),
            np.array(kept[name].astype(FLOATS[dtype]).astype(mx.float32)),
            rtol=0 if kept[name].dtype == mx.float32 or recipe == "4bit" else 1e-2,
        )
    settings = json.loads((tmp_path / "dense" / "config.json").read_text())
    stated = settings.get("torch_dtype", settings.get("dtype"))
    assert stated == dtype


@pytest.mark.parametrize("variant", [None, "4bit", "8bit"])
@pytest.mark.parametrize("single_file", [False, True])
def test_variants_and_single_files_can_be_made_dense(
    tiny_folder: Path, tmp_path: Path, single_file: bool, variant: str | None
) -> None:
    packed = tmp_path / "packed.safetensors"
    convert(tiny_folder, packed, Wishes(("8bit", "4bit")), single_file=single_file)
    convert(tiny_folder, tmp_path / "alone", variant or "8bit")
    dequantize(packed, tmp_path / "found", variant=variant)
    dequantize(tmp_path / "alone", tmp_path / "expected")
    found, expected = tensors_in(tmp_path / "found"), tensors_in(tmp_path / "expected")
    assert {n: bits_of(a) for n, a in found.items()} == {n: bits_of(a) for n, a in expected.items()}
    assert_same_weights(load(tmp_path / "found").model, load(tmp_path / "expected").model)


def test_blocks_of_any_size_give_the_same_bytes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_folder, tmp_path / "packed", Wishes(("mixed_2_6",), vision_bits=4, group_size=32))
    dequantize(tmp_path / "packed", tmp_path / "whole")
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 1000)
    dequantize(tmp_path / "packed", tmp_path / "blocks")
    assert contents(tmp_path / "blocks") == contents(tmp_path / "whole")


def test_the_command_line_leads_back_and_leaves_its_source_alone(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, dense = str(tmp_path / "packed"), str(tmp_path / "dense")
    assert main(["--model", str(tiny_folder), "--output", packed, "-q", "4bit,8bit"]) == 0
    before = contents(tmp_path / "packed")
    options = ["--model", packed, "--output", dense, "--dequantize"]
    assert main([*options, "--variant", "8bit", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == ""
    dequantize(tmp_path / "packed", tmp_path / "expected", variant="8bit", dtype="bfloat16")
    assert weights_of(tmp_path / "dense") == weights_of(tmp_path / "expected")
    assert contents(tmp_path / "packed") == before


# --- What is refused ----------------------------------------------------------------------------


def test_a_dense_model_has_nothing_to_undo(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not quantized"):
        dequantize(tiny_folder, tmp_path / "dense")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variant_lists_those_there(tiny_folder: Path, tmp_path: Path) -> None:
    convert(tiny_folder, tmp_path / "packed", Wishes(("8bit", "4bit")))
    with pytest.raises(OptionError, match="it has 8bit, 4bit"):
        dequantize(tmp_path / "packed", tmp_path / "dense", variant="3bit")
    assert not (tmp_path / "dense").exists()


def spoil_scale(folder: Path, value: float) -> str:
    """Change a scale in a folder's only file; the name of its module."""
    (file,) = folder.glob("*.safetensors")
    found, name = tensors_in(file), to_mlx("model.layers.1.mlp.up_proj")
    found[f"{name}.scales"][3, 1] = value
    mx.save_safetensors(str(file), found, {"format": "mlx"})
    return name.removeprefix("language_model.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_what_is_not_finite_is_named_and_passes_if_it_must(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    convert(tiny_folder, tmp_path / "packed", "4bit")
    name = spoil_scale(tmp_path / "packed", value)
    paths = ["--model", str(tmp_path / "packed"), "--output", str(tmp_path / "dense")]
    options = [*paths, "--dequantize", "--dtype", "float16"]
    assert main(options) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{name}.weight" in said and "--allow-nonfinite" in said
    assert main([*options, "--resume", "--allow-nonfinite"]) == 0
    found = tensors_in(tmp_path / "dense")[f"{name}.weight"]
    assert not mx.isfinite(found[3, 64:128]).all()
    assert mx.isfinite(found[:3]).all() and mx.isfinite(found[4:]).all()


def test_a_scale_without_its_weight_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    convert(tiny_folder, tmp_path / "packed", "4bit")
    (file,) = (tmp_path / "packed").glob("*.safetensors")
    found = tensors_in(file)
    del found["language_model.model.layers.1.mlp.up_proj.biases"]
    mx.save_safetensors(str(file), found)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.biases"):
        dequantize(tmp_path / "packed", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
