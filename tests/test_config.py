"""Configurations: what the hub has, what Transformers 5 writes, and what is wrong with others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import CheckpointError
from mlx_qwenvl.models.config import Config
from tests.golden.tiny_files import config as tiny_config

# The shapes of the published models: width, layers, MLP, heads, key-value heads, vocabulary, tied.
PUBLISHED = {
    "2B": (1536, 28, 8960, 12, 2, 151936, True),
    "7B": (3584, 28, 18944, 28, 4, 152064, False),
    "72B": (8192, 80, 29568, 64, 8, 152064, False),
}


def hub_config(size: str) -> dict[str, Any]:
    hidden, layers, mlp, heads, kv_heads, vocabulary, tied = PUBLISHED[size]
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_shapes_are_read(size: str) -> None:
    config = Config.from_dict(hub_config(size))
    assert config.text.head_dim == 128
    assert config.vision.head_dim == 80
    assert config.text.tie_word_embeddings is (size == "2B")
    assert config.vision.mlp_dim == 5120


def test_both_layouts_say_the_same() -> None:
    for tied in (True, False):
        hub = Config.from_dict(tiny_config("hub", tied=tied, dtype="float32"))
        nested = Config.from_dict(tiny_config("nested", tied=tied, dtype="float32"))
        assert hub == nested


def test_a_tied_head_that_only_the_text_section_states_is_seen() -> None:
    raw: Any = copy.deepcopy(tiny_config("nested", tied=True, dtype="float32"))
    raw["text_config"]["tie_word_embeddings"] = True
    raw.pop("tie_word_embeddings", None)
    assert Config.from_dict(raw).text.tie_word_embeddings


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "vocab_size",
        "image_token_id",
        "vision_config",
        "vision_config.depth",
        "vision_config.patch_size",
    ],
)
def test_a_missing_key_is_named(key: str) -> None:
    raw = hub_config("2B")
    section: dict[str, Any] = raw
    *parents, last = key.split(".")
    for parent in parents:
        section = section[parent]
    del section[last]
    with pytest.raises(CheckpointError, match=f"no '{key}'"):
        Config.from_dict(raw)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "1536", "hidden_size is '1536', expected a whole number"),
        ("hidden_size", True, "hidden_size is True"),
        ("rms_norm_eps", None, "rms_norm_eps is None, expected a positive number"),
        ("rope_theta", -1, "rope_theta is -1"),
        ("vision_config", [], r"vision_config is \[\], expected an object"),
        ("rope_scaling", {"type": "mrope"}, "rope_scaling.mrope_section is None"),
        ("rope_scaling", {"mrope_section": [16, 24, 25]}, "mrope_section sums to half a head"),
        ("num_attention_heads", 5, "hidden_size is a multiple of heads"),
        ("model_type", "llava", "'llava' checkpoint; only 'qwen2_vl'"),
        ("model_type", "qwen2_audio", "'qwen2_audio' checkpoint"),
        ("quantization_config", {"quant_method": "gptq"}, "quantized with 'gptq'"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(key: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Config.from_dict(hub_config("2B") | {key: value})


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000])
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        Config.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Config.from_folder(tmp_path)


def test_mlx_quantization_is_no_obstacle() -> None:
    statement = {"group_size": 64, "bits": 4}
    raw = hub_config("2B") | {"quantization": statement, "quantization_config": statement}
    assert Config.from_dict(raw) == Config.from_dict(hub_config("2B"))
