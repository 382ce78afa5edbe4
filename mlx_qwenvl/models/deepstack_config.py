"""What `config.json` says of a Qwen3-VL beyond what it says of a Qwen2-VL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlx_qwenvl.models.config import Config, TextConfig, VisionConfig, younger_tower
from mlx_qwenvl.models.reader import Reader

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class DeepstackVisionConfig(VisionConfig):
    """Shape of a tower that is also looked into half-way.

    Attributes:
        num_position_embeddings: Learned positions, a square of them.
        deepstack_visual_indexes: Blocks whose output goes to the decoder too.
    """

    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]

    @property
    def position_side(self) -> int:
        """Side of the square of learned positions."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def has_patch_bias(self) -> bool:
        """Whether the patch embedding is stored with a bias."""
        return True

    @property
    def feature_size(self) -> int:
        """Numbers that the tower gives for one token."""
        return (1 + len(self.deepstack_visual_indexes)) * self.hidden_size

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read `vision_config`, whose `hidden_size` is the tower's own."""
        return cls(
            **vars(younger_tower(reader)),
            num_position_embeddings=reader.integer("num_position_embeddings"),
            deepstack_visual_indexes=reader.integers("deepstack_visual_indexes"),
        )

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the tower to work, each with its words."""
        indexes = self.deepstack_visual_indexes
        return [
            *super().claims(),
            (
                self.position_side**2 == self.num_position_embeddings > 0,
                "num_position_embeddings is a square",
            ),
            (
                indexes == tuple(sorted(set(indexes))) and all(i < self.depth for i in indexes),
                "deepstack_visual_indexes are blocks of the tower in order",
            ),
        ]


@dataclass(frozen=True)
class NormedTextConfig(TextConfig):
    """Shape of a decoder whose heads are normed and have a width of their own.

    Attributes:
        stated_head_dim: Width of one attention head.
    """

    stated_head_dim: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.stated_head_dim

    @property
    def attention_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return False

    @property
    def mrope_interleaved(self) -> bool:
        """Whether the frequencies of the three axes take turns."""
        return True

    @classmethod
    def read(cls, root: Reader, text: Reader) -> Self:
        """Read the decoder's keys."""
        return cls(**vars(TextConfig.read(root, text)), stated_head_dim=text.integer("head_dim"))

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the decoder to work, each with its words."""
        time, height, width = self.mrope_section
        return [
            (
                self.num_attention_heads % self.num_key_value_heads == 0,
                "num_attention_heads is a multiple of num_key_value_heads",
            ),
            (2 * sum(self.mrope_section) == self.head_dim, "mrope_section sums to half a head"),
            (
                max(3 * height - 1, 3 * width) <= time + height + width,
                "mrope_section leaves each third turn to height and width",
            ),
        ]


@dataclass(frozen=True)
class DeepstackConfig(Config):
    """A whole Qwen3-VL."""

    vision_type = DeepstackVisionConfig
    text_type: ClassVar[type[TextConfig]] = NormedTextConfig
    is_nested = True
    vision: DeepstackVisionConfig

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the parts to fit, each with its words."""
        taken = len(self.vision.deepstack_visual_indexes)
        fits = taken <= self.text.num_hidden_layers
        return [*super().claims(), (fits, "the decoder has a layer for each deepstack block")]
