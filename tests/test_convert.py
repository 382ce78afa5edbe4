"""Converting: the copy answers as the original would, and nothing is lost when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from convert import convert
from convert.__main__ import main
from mlx_qwenvl import CheckpointError, QwenVL, QwenVLError, load
from tests.golden.tiny import picture, write_checkpoint

QUESTION, PICTURE = "What is this?", picture(31, 84, 84)


def answer(vlm: QwenVL) -> np.ndarray:
    return vlm.logits(QUESTION, images=[PICTURE])


def test_a_full_precision_copy_answers_the_same(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path
) -> None:
    convert(tiny_folder, tmp_path / "copy")
    copied = load(tmp_path / "copy", dtype="float32")
    np.testing.assert_allclose(answer(copied), answer(tiny), rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", ["4bit", "8bit", "mxfp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_converting_and_quantizing_at_load_give_the_same_weights(
    tmp_path: Path, recipe: str, dtype: str
) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=dtype, shards=2)  # type: ignore[arg-type]
    convert(source, tmp_path / "copy", recipe)
    np.testing.assert_array_equal(
        answer(load(tmp_path / "copy")), answer(load(source, quantize=recipe))
    )


def test_the_copy_has_the_names_and_statement_of_mlx_folders(
    tiny_folder: Path, tmp_path: Path
) -> None:
    convert(tiny_folder, tmp_path / "copy", "4bit")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    names = set(index["weight_map"])
    assert "language_model.model.layers.0.mlp.down_proj.scales" in names
    assert "vision_tower.blocks.0.attn.qkv.weight" in names
    assert not any(n.startswith("vision_tower.") and n.endswith(".scales") for n in names)
    (file,) = set(index["weight_map"].values())
    tensors = mx.load(str(tmp_path / "copy" / file))
    assert isinstance(tensors, dict)
    assert tensors["vision_tower.patch_embed.proj.weight"].shape == (64, 2, 14, 14, 3)


def test_an_existing_output_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(QwenVLError, match="exists already"):
        convert(tiny_folder, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_an_output_inside_the_source_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "m"
    shutil.copytree(tiny_folder, source)
    with pytest.raises(QwenVLError, match="inside the source"):
        convert(source, source / "copy")


def test_a_failure_leaves_nothing_behind(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        convert(tiny_folder, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_source_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    convert(tiny_folder, tmp_path / "copy", "4bit")
    with pytest.raises(CheckpointError, match="quantized already"):
        convert(tmp_path / "copy", tmp_path / "again", "8bit")


def test_the_command_line_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["--model", "demo", "--output", str(tmp_path / "o"), "--quantize", "7bit"],
        ["--model", "no-such-model", "--output", str(tmp_path / "o")],
        ["--model", "demo", "--output", str(tmp_path)],
    ):
        assert main(arguments) in (1, 2)
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
