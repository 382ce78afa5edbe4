"""What a checkpoint says about its own shape, read from `config.json`.

Two layouts are in use: the hub's, with the decoder's keys at the top level, and that of
Transformers 5, with `text_config` and `rope_parameters`. Both become the same frozen dataclasses.
Nothing that a checkpoint states has a default here: a missing key is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json

MODEL_TYPE = "qwen2_vl"


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision tower.

    Attributes:
        depth: Number of blocks.
        embed_dim: Width of a patch vector.
        num_heads: Attention heads; `embed_dim / num_heads` is a multiple of four.
        mlp_dim: Width inside a block's MLP.
        hidden_size: Width after the merger, the decoder's.
        in_channels: Colour channels, 3.
        patch_size: Side of a patch in pixels.
        spatial_merge_size: Side of the square of patches that becomes one token.
        temporal_patch_size: Frames in one patch.
    """

    depth: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    hidden_size: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True)
class TextConfig:
    """Shape of the decoder.

    Attributes:
        vocab_size: Rows of the embedding, padding rows included.
        hidden_size: Width of a token vector.
        num_hidden_layers: Number of decoder layers.
        intermediate_size: Width inside the gated MLP.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        rms_norm_eps: Epsilon of every RMSNorm.
        rope_theta: Base of the rotary frequencies.
        mrope_section: Frequencies given to time, height and width; they sum to `head_dim / 2`.
        max_position_embeddings: Longest context in tokens.
        tie_word_embeddings: Whether the head is the embedding.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Config:
    """A whole Qwen2-VL.

    Attributes:
        vision: The vision tower.
        text: The decoder.
        image_token_id: Id that fills an image's slots in a prompt.
        video_token_id: Id that fills a video's slots in a prompt.
        vision_start_token_id: Id before the slots of a picture.
        vision_end_token_id: Id after them.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @classmethod
    def from_folder(cls, folder: Path) -> Config:
        """Read `config.json` of a model folder.

        Raises:
            CheckpointError: The file is missing, is no JSON object, or is not a Qwen2-VL.
        """
        return cls.from_dict(read_json(folder / "config.json"))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read either layout of a configuration.

        Raises:
            CheckpointError: Another family, a missing key, or a value of the wrong type.
        """
        model_type = raw.get("model_type")
        if model_type != MODEL_TYPE:
            raise CheckpointError(
                f"this is a {model_type!r} checkpoint; only {MODEL_TYPE!r} models are supported"
            )
        root = _Reader(raw, "")
        _refuse_other_quantization(root)
        text = root.section("text_config") if "text_config" in raw else root
        config = cls(
            vision=_vision(root.section("vision_config")),
            text=_text(root, text),
            image_token_id=root.integer("image_token_id"),
            video_token_id=root.integer("video_token_id"),
            vision_start_token_id=root.integer("vision_start_token_id"),
            vision_end_token_id=root.integer("vision_end_token_id"),
        )
        _check(config)
        return config


def _vision(reader: _Reader) -> VisionConfig:
    embed_dim = reader.integer("embed_dim")
    return VisionConfig(
        depth=reader.integer("depth"),
        embed_dim=embed_dim,
        num_heads=reader.integer("num_heads"),
        mlp_dim=int(embed_dim * reader.number("mlp_ratio")),
        hidden_size=reader.integer("hidden_size"),
        in_channels=reader.integer("in_chans" if "in_chans" in reader.raw else "in_channels"),
        patch_size=reader.integer("patch_size"),
        spatial_merge_size=reader.integer("spatial_merge_size"),
        temporal_patch_size=reader.integer("temporal_patch_size"),
    )


def _text(root: _Reader, text: _Reader) -> TextConfig:
    nested = "rope_parameters" in text.raw
    rope = text.section("rope_parameters" if nested else "rope_scaling")
    section = rope.raw.get("mrope_section")
    if not (isinstance(section, list) and len(section) == 3 and all(map(_is_integer, section))):
        raise CheckpointError(
            f"config.json: {rope.path('mrope_section')} is {section!r}, expected three integers"
        )
    # Transformers 5 writes the flag at the root; before, it stood beside the decoder's keys.
    tied = root.raw.get("tie_word_embeddings", False) or text.raw.get("tie_word_embeddings", False)
    return TextConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        num_hidden_layers=text.integer("num_hidden_layers"),
        intermediate_size=text.integer("intermediate_size"),
        num_attention_heads=text.integer("num_attention_heads"),
        num_key_value_heads=text.integer("num_key_value_heads"),
        rms_norm_eps=text.number("rms_norm_eps"),
        rope_theta=(rope if "rope_theta" in rope.raw else text).number("rope_theta"),
        mrope_section=(section[0], section[1], section[2]),
        max_position_embeddings=text.integer("max_position_embeddings"),
        tie_word_embeddings=bool(tied),
    )


def _refuse_other_quantization(root: _Reader) -> None:
    """MLX's own formats are told from the tensors' shapes; other tools name their method."""
    stated = root.raw.get("quantization_config")
    if isinstance(stated, dict) and "quant_method" in stated:
        raise CheckpointError(
            f"the checkpoint is quantized with {stated['quant_method']!r}; "
            "only MLX quantization or full precision can be loaded"
        )


def _check(config: Config) -> None:
    vision, text = config.vision, config.text
    claims = [
        (vision.embed_dim % vision.num_heads == 0, "vision embed_dim is a multiple of num_heads"),
        (vision.head_dim % 4 == 0, "a vision head is a multiple of four wide"),
        (text.hidden_size % text.num_attention_heads == 0, "hidden_size is a multiple of heads"),
        (
            text.num_attention_heads % text.num_key_value_heads == 0,
            "num_attention_heads is a multiple of num_key_value_heads",
        ),
        (2 * sum(text.mrope_section) == text.head_dim, "mrope_section sums to half a head"),
        (vision.hidden_size == text.hidden_size, "the merger ends in the decoder's width"),
    ]
    for holds, claim in claims:
        if not holds:
            raise CheckpointError(f"config.json contradicts itself: expected that {claim}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class _Reader:
    """Typed look-ups in one section of `config.json` whose errors name the full key."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        self.raw = raw
        self.name = name

    def path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def section(self, key: str) -> _Reader:
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return _Reader(value, self.path(key))

    def integer(self, key: str) -> int:
        value = self._get(key)
        if not _is_integer(value) or value < 0:
            raise self._wrong(key, value, "a whole number")
        return int(value)

    def number(self, key: str) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def _get(self, key: str) -> Any:
        if key not in self.raw:
            raise CheckpointError(f"config.json has no {self.path(key)!r}")
        return self.raw[key]

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"config.json: {self.path(key)} is {value!r}, expected {expected}")
