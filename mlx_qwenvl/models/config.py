"""What a checkpoint says about its own shape, read from `config.json`.

Two layouts are in use: the hub's, with the decoder's keys at the top level, and that of
Transformers 5, with `text_config` and `rope_parameters`. Both become the same frozen dataclasses.
Nothing that a checkpoint states has a default here: a missing key is an error that names it.
These are Qwen2-VL's shapes; a member of another shape derives its own from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.reader import Reader

if TYPE_CHECKING:
    from typing_extensions import Self


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

    @property
    def mlp_matrices(self) -> int:
        """Matrices of a block's MLP."""
        return 2

    @property
    def has_patch_bias(self) -> bool:
        """Whether the patch embedding is stored with a bias."""
        return False

    @property
    def feature_size(self) -> int:
        """Numbers that the tower gives for one token."""
        return self.hidden_size

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read `vision_config`."""
        embed_dim = reader.integer("embed_dim")
        return cls(
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

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the tower to work, each with its words."""
        return [
            (self.embed_dim % self.num_heads == 0, "vision embed_dim is a multiple of num_heads"),
            (self.head_dim % 4 == 0, "a vision head is a multiple of four wide"),
        ]


def younger_tower(reader: Reader) -> VisionConfig:
    """Read the `vision_config` of younger members, whose `hidden_size` is the tower's own."""
    return VisionConfig(
        depth=reader.integer("depth"),
        embed_dim=reader.integer("hidden_size"),
        num_heads=reader.integer("num_heads"),
        mlp_dim=reader.integer("intermediate_size"),
        hidden_size=reader.integer("out_hidden_size"),
        in_channels=reader.integer("in_chans" if "in_chans" in reader.raw else "in_channels"),
        patch_size=reader.integer("patch_size"),
        spatial_merge_size=reader.integer("spatial_merge_size"),
        temporal_patch_size=reader.integer("temporal_patch_size"),
    )


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

    @property
    def mlp_words(self) -> str:
        """What an MLP is, for people."""
        return f"MLP of {self.intermediate_size}"

    @property
    def mlp_values(self) -> int:
        """Numbers that an MLP makes of one token: gate, up and their product."""
        return 3 * self.intermediate_size

    @property
    def active_experts(self) -> Fraction:
        """The part of the experts that a token is computed with."""
        return Fraction(1)

    @property
    def attention_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return True

    @property
    def mrope_interleaved(self) -> bool:
        """Whether the frequencies of the three axes take turns."""
        return False

    @classmethod
    def read(cls, root: Reader, text: Reader) -> Self:
        """Read the decoder's keys.

        Args:
            root: The whole file.
            text: The section that holds them, which may be the same.
        """
        rope = text.section("rope_parameters" if "rope_parameters" in text.raw else "rope_scaling")
        # Transformers 5 writes the flag at the root; before, it stood beside the decoder's keys.
        tied = (section.raw.get("tie_word_embeddings", False) for section in (root, text))
        return cls(
            vocab_size=text.integer("vocab_size"),
            hidden_size=text.integer("hidden_size"),
            num_hidden_layers=text.integer("num_hidden_layers"),
            intermediate_size=text.integer("intermediate_size"),
            num_attention_heads=text.integer("num_attention_heads"),
            num_key_value_heads=text.integer("num_key_value_heads"),
            rms_norm_eps=text.number("rms_norm_eps"),
            rope_theta=(rope if "rope_theta" in rope.raw else text).number("rope_theta"),
            mrope_section=rope.three_integers("mrope_section"),
            max_position_embeddings=text.integer("max_position_embeddings"),
            tie_word_embeddings=any(tied),
        )

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the decoder to work, each with its words."""
        heads = self.num_attention_heads
        return [
            (heads * self.head_dim == self.hidden_size, "hidden_size is a multiple of heads"),
            (
                heads % self.num_key_value_heads == 0,
                "num_attention_heads is a multiple of num_key_value_heads",
            ),
            (2 * sum(self.mrope_section) == self.head_dim, "mrope_section sums to half a head"),
        ]


@dataclass(frozen=True)
class Config:
    """A whole model.

    Attributes:
        vision_type: What `vision_config` is read into.
        text_type: What the decoder's keys are read into.
        is_nested: Whether the hub's own files have the decoder's keys in `text_config`, and its
            names begin as those of Transformers 5 do.
        vision: The vision tower.
        text: The decoder.
        image_token_id: Id that fills an image's slots in a prompt.
        video_token_id: Id that fills a video's slots in a prompt.
        vision_start_token_id: Id before the slots of a picture.
        vision_end_token_id: Id after them.
    """

    vision_type: ClassVar[type[VisionConfig]] = VisionConfig
    text_type: ClassVar[type[TextConfig]] = TextConfig
    is_nested: ClassVar[bool] = False

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
            CheckpointError: The file is missing, is no JSON object, or is of another family.
        """
        return cls.from_dict(read_json(folder / "config.json"))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read either layout of a configuration.

        Raises:
            CheckpointError: Another family, a missing key, or a value of the wrong type.
        """
        # Not at the top: the members' classes are built on this file.
        from mlx_qwenvl.models.families import MEMBERS

        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in MEMBERS:
            raise CheckpointError(
                f"this is a {model_type!r} checkpoint; only {', '.join(map(repr, MEMBERS))} models "
                "are supported"
            )
        root = Reader(raw, "")
        _refuse_other_quantization(root)
        config = MEMBERS[model_type].config_type.read(root)
        config.check()
        return config

    @classmethod
    def read(cls, root: Reader) -> Self:
        """Read the whole file of a member."""
        text = root.section("text_config") if "text_config" in root.raw else root
        return cls(
            vision=cls.vision_type.read(root.section("vision_config")),
            text=cls.text_type.read(root, text),
            image_token_id=root.integer("image_token_id"),
            video_token_id=root.integer("video_token_id"),
            vision_start_token_id=root.integer("vision_start_token_id"),
            vision_end_token_id=root.integer("vision_end_token_id"),
        )

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the model to work, each with its words."""
        fits = self.vision.hidden_size == self.text.hidden_size
        return [
            *self.vision.claims(),
            *self.text.claims(),
            (fits, "the merger ends in the decoder's width"),
        ]

    def check(self) -> None:
        """See that the parts fit.

        Raises:
            CheckpointError: They do not.
        """
        for holds, claim in self.claims():
            if not holds:
                raise CheckpointError(f"config.json contradicts itself: expected that {claim}")


def _refuse_other_quantization(root: Reader) -> None:
    """MLX's own formats are told from the tensors' shapes; other tools name their method."""
    stated = root.raw.get("quantization_config")
    if isinstance(stated, dict) and "quant_method" in stated:
        raise CheckpointError(
            f"the checkpoint is quantized with {stated['quant_method']!r}; "
            "only MLX quantization or full precision can be loaded"
        )
