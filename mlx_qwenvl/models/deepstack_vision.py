"""Qwen3-VL's vision tower: learned positions, and features from half-way for the decoder.

What some blocks give is merged like the last one's, each by a merger of its own, and laid behind
it: features are [n, (1 + K) D_text], where K blocks are looked into. So they are cached, cut and
placed like any member's, and only the decoder takes them apart.

Axes: B pictures, N patches of one picture, D the tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.models.activations import gelu, tanh_gelu
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.deepstack_config import DeepstackVisionConfig
from mlx_qwenvl.models.linear import WideningLinear
from mlx_qwenvl.models.rope import Grid
from mlx_qwenvl.models.rows import by_rows
from mlx_qwenvl.models.vision import NORM_EPS, Look, VisionBlock, VisionTransformer


class LearnedPositions(nn.Module):
    """A square of learned positions, stretched over a picture's patches corner to corner."""

    def __init__(self, config: DeepstackVisionConfig) -> None:
        super().__init__()
        self.side = config.position_side
        self.weight = mx.zeros((config.num_position_embeddings, config.embed_dim))

    def __call__(self, height: int, width: int, merge_size: int) -> mx.array:
        """Vectors [height * width, D] float32 of a frame's patches, in merge order."""
        table = self.weight.astype(mx.float32).reshape(self.side, self.side, -1)
        by_row = _stretched(table, height)
        whole = _stretched(by_row.swapaxes(0, 1), width).swapaxes(0, 1)  # [height, width, D]
        squares = whole.reshape(
            height // merge_size, merge_size, width // merge_size, merge_size, -1
        )
        return squares.swapaxes(1, 2).reshape(height * width, -1)


def _stretched(table: mx.array, length: int) -> mx.array:
    """Rows [length, ...] between the first and the last of a table [side, ...]."""
    side = table.shape[0]
    # In float32, as Transformers computes where a row lies.
    place = (
        np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    )
    low = np.floor(place).astype(np.int32)
    share = mx.array((place - low).reshape(-1, *[1] * (table.ndim - 1)))
    high = np.minimum(low + 1, side - 1)
    return table[mx.array(low)] * (1 - share) + table[mx.array(high)] * share


class PlainVisionMLP(nn.Module):
    """Two layers with the tanh approximation of GELU between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = WideningLinear(config.embed_dim, config.mlp_dim)
        self.linear_fc2 = WideningLinear(config.mlp_dim, config.embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [B, N, D]."""
        return self.linear_fc2(tanh_gelu(self.linear_fc1(x)))


class PlainVisionBlock(VisionBlock):
    """A block with that MLP."""

    mlp_type = PlainVisionMLP


class LastMerger(nn.Module):
    """Four neighbouring patches become one token in the decoder's width.

    Args:
        config: Shape of the tower.
        norm_dim: What is normed: a patch, or the four as one.
    """

    def __init__(self, config: VisionConfig, norm_dim: int | None = None) -> None:
        super().__init__()
        self.merged_dim = config.embed_dim * config.spatial_merge_size**2
        self.hidden_size = config.hidden_size
        self._norm_dim = config.embed_dim if norm_dim is None else norm_dim
        self.norm = nn.LayerNorm(self._norm_dim, eps=NORM_EPS)
        self.linear_fc1 = WideningLinear(self.merged_dim, self.merged_dim)
        self.linear_fc2 = WideningLinear(self.merged_dim, config.hidden_size)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of the activations."""
        return self.norm.weight.dtype

    @property
    def is_narrow(self) -> bool:
        """Whether its matrices are held in fewer bits than they are multiplied in."""
        return bool(self.linear_fc1.weight.dtype.size < self.dtype.size)

    def __call__(self, x: mx.array) -> mx.array:
        """Merge x [B, N, D] in merge order, giving [B, N / 4, hidden_size]."""
        batch = x.shape[0]
        normed = self.norm(x.reshape(batch, -1, self._norm_dim))
        tokens = normed.reshape(batch, -1, self.merged_dim)
        (merged,) = by_rows(lambda rows, _: (self.linear_fc2(gelu(self.linear_fc1(rows))),), tokens)
        return merged


@dataclass(frozen=True)
class DeepstackLook(Look):
    """Pictures on their way, with what was taken half-way.

    Attributes:
        taken: For each block that was looked into, [B * frames, patches / 4, hidden_size].
    """

    taken: tuple[mx.array, ...] = ()


class DeepstackTransformer(VisionTransformer):
    """The whole tower."""

    block_type = PlainVisionBlock
    merger_type = LastMerger

    def __init__(self, config: DeepstackVisionConfig, ops: Ops) -> None:
        super().__init__(config, ops)
        self._indexes = config.deepstack_visual_indexes
        self.pos_embed = LearnedPositions(config)
        merged = config.embed_dim * config.spatial_merge_size**2
        self.deepstack_merger_list = [LastMerger(config, merged) for _ in self._indexes]

    def begin(self, patches: mx.array, grid: Grid) -> DeepstackLook:
        """Pictures before the first block; the arguments are those of a call."""
        look = super().begin(patches, grid)
        _, height, width = grid
        places = self.pos_embed(height, width, self.merge_size).astype(look.x.dtype)
        return DeepstackLook(look.x + places, look.cos, look.sin, look.batch, look.blocks)

    def passed(self, look: Look, x: mx.array) -> Look:
        """The same pictures behind their next block, which has made x of them."""
        assert isinstance(look, DeepstackLook), "this tower has begun it"
        taken = look.taken
        if look.blocks in self._indexes:
            taken = (*taken, self.deepstack_merger_list[len(taken)](x))
        return replace(look, x=x, blocks=look.blocks + 1, taken=taken)

    def finish(self, look: Look) -> mx.array:
        """Features [B, N / 4, (1 + K) hidden_size] of pictures that have passed all blocks."""
        assert isinstance(look, DeepstackLook), "this tower has begun it"
        parts = mx.concatenate([self.merger(look.x), *look.taken], axis=-1)
        return parts.reshape(look.batch, -1, parts.shape[-1])
