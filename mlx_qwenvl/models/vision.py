"""The vision tower: pictures of one size, patch by patch, to features in the decoder's width.

The tower takes a batch of pictures with the same grid, so attention needs no mask and the
rotation is made once. Pictures of other sizes are another call. Of a large picture, everything but
attention goes by blocks of rows. A video's temporal patches are pictures of T frames each.

Axes: B pictures, N patches of one picture, K values of one patch, D the tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.models.activations import gelu, quick_gelu
from mlx_qwenvl.models.attention import attend
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.linear import WideningLinear
from mlx_qwenvl.models.rope import Grid, vision_angles
from mlx_qwenvl.models.rows import by_rows

PIXEL_CENTRE = 128  # level from 0 to 255 that the patch embedding counts pixels from
NORM_EPS = 1e-6  # of every norm in the tower; checkpoints do not state it

Projected: TypeAlias = tuple[mx.array, mx.array, mx.array]
"""Turned queries and keys, and values, each [B, H, N, head_dim]."""


class PixelLinear(nn.Linear):
    """A linear layer over pixels of one frame, and over what changed in the frames after it.

    Attributes:
        motion: [D, (T - 1) * K], for each later frame's pixels less the first one's.
    """

    def __init__(self, pixels: int, dim: int, frames: int) -> None:
        super().__init__(pixels, dim)
        self.motion = mx.zeros((dim, (frames - 1) * pixels))

    def moved(self, later: mx.array, first: mx.array) -> mx.array:
        """What later frames [..., (T - 1) * K] add to the vector of their first one [..., K]."""
        pixels = first.shape[-1]
        change = later.reshape(*first.shape[:-1], -1, pixels) - first[..., None, :]
        return change.reshape(later.shape) @ self.motion.T


class PatchEmbed(nn.Module):
    """Patches of raw pixels to vectors, as one matmul, or two for a video.

    The checkpoint holds a 3-D convolution whose kernel is its stride, over normalized pixels of
    two frames. The loader folds the normalization into the weights and, as both frames of a still
    are the same, sums their taps, so that patches stay uint8 until here (see `weights/fold.py`).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.pixels = config.in_channels * config.patch_size**2
        self.proj = PixelLinear(self.pixels, config.embed_dim, config.temporal_patch_size)

    def __call__(self, patches: mx.array) -> mx.array:
        """Embed patches [B, N, K] uint8 of stills, or [B, N, T * K] of videos: [B, N, D] float32.

        The columns of a video's patches are those of its first frame, its second, and so on.
        """
        # In float32: pixel values are large beside their spread, which 8 bits of mantissa lose.
        levels = patches.astype(mx.float32)
        if levels.shape[-1] == self.pixels:
            return self.proj(levels - PIXEL_CENTRE)
        first, later = levels[..., : self.pixels], levels[..., self.pixels :]
        return self.proj(first - PIXEL_CENTRE) + self.proj.moved(later, first)


class VisionAttention(nn.Module):
    """Attention of every patch to every patch of its own frame."""

    def __init__(self, config: VisionConfig, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.qkv = WideningLinear(config.embed_dim, 3 * config.embed_dim)
        self.proj = WideningLinear(config.embed_dim, config.embed_dim)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Attend within x [B, N, D], turned by cos and sin [N, head_dim / 2]."""
        q, k, v = by_rows(lambda rows, at: self.project(rows, cos[at], sin[at]), x, axis=2)
        return self.attend(q, k, v)

    def attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """What n queries get of N keys and values, all [B, H, ..., head_dim]: [B, n, D]."""
        return self.join(attend(q, k, v, self.scale))

    def join(self, out: mx.array) -> mx.array:
        """What heads [B, H, n, head_dim] found, as one [B, n, D]."""
        out = out.transpose(0, 2, 1, 3)
        return self.proj(out.reshape(*out.shape[:2], -1))

    def project(self, x: mx.array, cos: mx.array, sin: mx.array) -> Projected:
        """Turned queries and keys, and values, of x [B, N, D]."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k = self._ops.rotate_vision(qkv, cos, sin)
        return q, k, qkv[:, :, 2].transpose(0, 2, 1, 3)


class VisionMLP(nn.Module):
    """Two layers with the sigmoid approximation of GELU between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = WideningLinear(config.embed_dim, config.mlp_dim)
        self.fc2 = WideningLinear(config.mlp_dim, config.embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [B, N, D]."""
        return self.fc2(quick_gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """Pre-norm transformer block.

    Attributes:
        norm_type: Its norms.
        mlp_type: Its MLP.
    """

    norm_type: ClassVar[type[nn.LayerNorm] | type[nn.RMSNorm]] = nn.LayerNorm
    mlp_type: ClassVar[type[nn.Module]] = VisionMLP

    def __init__(self, config: VisionConfig, ops: Ops) -> None:
        super().__init__()
        self.norm1 = self.norm_type(config.embed_dim, eps=NORM_EPS)
        self.norm2 = self.norm_type(config.embed_dim, eps=NORM_EPS)
        self.attn = VisionAttention(config, ops)
        self.mlp = self.mlp_type(config)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Transform x [B, N, D]; cos and sin are those of the attention."""
        return self.transform(x + self.attn(self.norm1(x), cos, sin))

    def project(self, x: mx.array, cos: mx.array, sin: mx.array) -> Projected:
        """The first half of a call, for some rows: what the attention takes of them."""
        return self.attn.project(self.norm1(x), cos, sin)

    def finish(self, x: mx.array, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """The second half, for some rows and their queries; keys and values are those of all."""
        return self.transform(x + self.attn.attend(q, k, v))

    def transform(self, x: mx.array) -> mx.array:
        """The MLP's part, which treats every row alike."""
        (x,) = by_rows(lambda rows, _: (rows + self.mlp(self.norm2(rows)),), x)
        return x


class PatchMerger(nn.Module):
    """Four neighbouring patches become one token in the decoder's width.

    Attributes:
        norm_type: Its norm.
    """

    norm_type: ClassVar[type[nn.LayerNorm] | type[nn.RMSNorm]] = nn.LayerNorm

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_dim = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = self.norm_type(config.embed_dim, eps=NORM_EPS)
        self.hidden_size = config.hidden_size
        # A list with a hole, because the checkpoint counts the activation: mlp.0 and mlp.2.
        self.mlp: list[Any] = [
            WideningLinear(self.merged_dim, self.merged_dim),
            {},
            WideningLinear(self.merged_dim, config.hidden_size),
        ]

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of the activations."""
        return self.ln_q.weight.dtype

    @property
    def is_narrow(self) -> bool:
        """Whether its matrices are held in fewer bits than they are multiplied in."""
        return bool(self.mlp[0].weight.dtype.size < self.dtype.size)

    def __call__(self, x: mx.array) -> mx.array:
        """Merge x [B, N, D] in merge order, giving [B, N / 4, hidden_size]."""
        widen, _, project = self.mlp
        x = self.ln_q(x).reshape(x.shape[0], -1, self.merged_dim)
        (merged,) = by_rows(lambda rows, _: (project(gelu(widen(rows))),), x)
        return merged


@dataclass(frozen=True)
class Look:
    """Pictures on their way through the tower.

    Attributes:
        x: [B * frames, patches of a frame, D].
        cos: Of the attention's rotation.
        sin: The same.
        batch: B.
        blocks: Blocks that they have passed.
    """

    x: mx.array
    cos: mx.array
    sin: mx.array
    batch: int
    blocks: int


class VisionTransformer(nn.Module):
    """The whole tower.

    Attributes:
        block_type: Its blocks.
        merger_type: What makes tokens of patches.
    """

    block_type: ClassVar[type[VisionBlock]] = VisionBlock
    merger_type: ClassVar[type[nn.Module]] = PatchMerger

    def __init__(self, config: VisionConfig, ops: Ops) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.merge_size = config.spatial_merge_size
        self.patch_embed = PatchEmbed(config)
        self.blocks = [self.block_type(config, ops) for _ in range(config.depth)]
        self.merger = self.merger_type(config)

    @property
    def dtype(self) -> mx.Dtype:
        """Dtype of the activations."""
        return self.merger.dtype

    @property
    def is_narrow(self) -> bool:
        """Whether matrices are held in fewer bits than they are multiplied in."""
        return self.merger.is_narrow

    def __call__(self, patches: mx.array, grid: Grid) -> mx.array:
        """Encode pictures of one size.

        Args:
            patches: [B, N, K] uint8 in merge order, N the product of the grid; [B, N, T * K] of
                videos.
            grid: `grid_thw` of each of them.

        Returns:
            [B, N / 4, hidden_size] in the tower's dtype.
        """
        return self.finish(self.go_on(self.begin(patches, grid), len(self.blocks)))

    def begin(self, patches: mx.array, grid: Grid) -> Look:
        """Pictures before the first block; the arguments are those of a call."""
        batch = patches.shape[0]
        frames, height, width = grid
        (x,) = by_rows(lambda rows, _: (self.patch_embed(rows).astype(self.dtype),), patches)
        x = x.reshape(batch * frames, height * width, -1)  # a frame attends to itself alone
        angles = mx.array(vision_angles(grid, self.head_dim, self.merge_size))
        return Look(x, mx.cos(angles), mx.sin(angles), batch, 0)

    def go_on(self, look: Look, blocks: int) -> Look:
        """The same pictures some blocks on."""
        for block in self.blocks[look.blocks : look.blocks + blocks]:
            look = self.passed(look, block(look.x, look.cos, look.sin))
        return look

    def passed(self, look: Look, x: mx.array) -> Look:
        """The same pictures behind their next block, which has made x of them."""
        return replace(look, x=x, blocks=look.blocks + 1)

    def project(self, look: Look, rows: slice) -> Projected:
        """What the next block's attention takes of some patches."""
        block = self.blocks[look.blocks]
        return block.project(look.x[:, rows], look.cos[rows], look.sin[rows])

    def pass_block(
        self, look: Look, rows: slice, q: mx.array, k: mx.array, v: mx.array
    ) -> mx.array:
        """Some patches behind the next block; queries, keys and values are those of all."""
        return self.blocks[look.blocks].finish(look.x[:, rows], q[:, :, rows], k, v)

    def finish(self, look: Look) -> mx.array:
        """Features [B, N / 4, hidden_size] of pictures that have passed all blocks."""
        return self.merger(look.x).reshape(look.batch, -1, self.merger.hidden_size)
