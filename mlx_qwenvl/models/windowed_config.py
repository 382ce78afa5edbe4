"""What `config.json` says of a Qwen2.5-VL beyond what it says of a Qwen2-VL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_qwenvl.models.config import Config, VisionConfig, younger_tower
from mlx_qwenvl.models.reader import Reader

if TYPE_CHECKING:
    from typing_extensions import Self

# Some copies leave out keys whose values are Transformers' own defaults, which are these in 5.24.
_LEFT_OUT: Mapping[str, Any] = {
    "depth": 32,
    "num_heads": 16,
    "intermediate_size": 3420,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@dataclass(frozen=True)
class WindowedVisionConfig(VisionConfig):
    """Shape of a tower whose blocks see windows.

    Attributes:
        window_size: Side of a window in pixels.
        fullatt_block_indexes: Blocks that see the whole picture.
        tokens_per_second: Positions on the time axis for each second of a video.
    """

    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    tokens_per_second: float

    @property
    def window_tokens(self) -> int:
        """Side of a window in tokens."""
        return self.window_size // self.patch_size // self.spatial_merge_size

    @property
    def mlp_matrices(self) -> int:
        """Matrices of a block's MLP, which is gated."""
        return 3

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read `vision_config`, whose `hidden_size` is the tower's own."""
        reader = Reader({**_LEFT_OUT, **reader.raw}, reader.name)
        return cls(
            **vars(younger_tower(reader)),
            window_size=reader.integer("window_size"),
            fullatt_block_indexes=reader.integers("fullatt_block_indexes"),
            tokens_per_second=reader.number("tokens_per_second"),
        )

    def claims(self) -> list[tuple[bool, str]]:
        """What has to hold for the tower to work, each with its words."""
        fits = all(index < self.depth for index in self.fullatt_block_indexes)
        return [
            *super().claims(),
            (self.window_tokens > 0, "a window holds a token"),
            (fits, "fullatt_block_indexes are blocks of the tower"),
        ]


@dataclass(frozen=True)
class WindowedConfig(Config):
    """A whole Qwen2.5-VL."""

    vision_type = WindowedVisionConfig
    vision: WindowedVisionConfig
