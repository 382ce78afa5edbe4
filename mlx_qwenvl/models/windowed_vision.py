"""Qwen2.5-VL's vision tower: most blocks see windows, a few the whole picture.

It differs from Qwen2-VL's in its blocks (RMSNorm, a gated MLP with biases) and in the order of
patches between the embedding and the merger, in which those of a window lie together. A block that
sees the whole picture does not mind the order.

Axes: B pictures, N patches of one picture, D the tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.models.activations import swiglu
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.linear import WideningLinear
from mlx_qwenvl.models.rope import Grid
from mlx_qwenvl.models.rows import by_rows
from mlx_qwenvl.models.vision import Look, PatchMerger, VisionBlock, VisionTransformer
from mlx_qwenvl.models.windowed_config import WindowedVisionConfig
from mlx_qwenvl.models.windows import Windows, attend_windows, windows_of


class GatedVisionMLP(nn.Module):
    """Gated MLP with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = WideningLinear(config.embed_dim, config.mlp_dim)
        self.up_proj = WideningLinear(config.embed_dim, config.mlp_dim)
        self.down_proj = WideningLinear(config.mlp_dim, config.embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [B, N, D]."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class GatedVisionBlock(VisionBlock):
    """A block with RMSNorm and a gated MLP, which sees the whole picture or windows."""

    norm_type = nn.RMSNorm
    mlp_type = GatedVisionMLP

    def within(self, x: mx.array, cos: mx.array, sin: mx.array, windows: Windows) -> mx.array:
        """Transform x [B, N, D] in windows' order, each patch seeing its own window."""
        q, k, v = by_rows(lambda rows, at: self.project(rows, cos[at], sin[at]), x, axis=2)
        return self.finish_within(x, q, k, v, windows, 0)

    def finish_within(
        self, x: mx.array, q: mx.array, k: mx.array, v: mx.array, windows: Windows, begin: int
    ) -> mx.array:
        """The second half of that, for rows from place `begin` on and their queries."""
        out = attend_windows(q, k, v, self.attn.scale, windows.runs, begin)
        return self.transform(x + self.attn.join(out))


class RMSPatchMerger(PatchMerger):
    """The merger with RMSNorm."""

    norm_type = nn.RMSNorm


@dataclass(frozen=True)
class WindowedLook(Look):
    """Pictures on their way, their patches in windows' order.

    Attributes:
        windows: Of one frame.
    """

    windows: Windows


class WindowedTransformer(VisionTransformer):
    """The whole tower."""

    block_type = GatedVisionBlock
    merger_type = RMSPatchMerger
    blocks: list[GatedVisionBlock]

    def __init__(self, config: WindowedVisionConfig, ops: Ops) -> None:
        super().__init__(config, ops)
        self._window = config.window_tokens
        self._sees_all = frozenset(config.fullatt_block_indexes)

    def begin(self, patches: mx.array, grid: Grid) -> WindowedLook:
        """Pictures before the first block; the arguments are those of a call."""
        frames, height, width = grid
        windows = windows_of(height, width, self.merge_size, self._window)
        order = mx.array(windows.order)
        by_frame = patches.reshape(patches.shape[0] * frames, height * width, -1)
        look = super().begin(by_frame[:, order].reshape(patches.shape), grid)
        return WindowedLook(
            **vars(replace(look, cos=look.cos[order], sin=look.sin[order])), windows=windows
        )

    def go_on(self, look: Look, blocks: int) -> Look:
        """The same pictures some blocks on."""
        assert isinstance(look, WindowedLook), "this tower has begun it"
        windows = look.windows
        for index in range(look.blocks, look.blocks + blocks):
            block, x = self.blocks[index], look.x
            if index in self._sees_all:
                x = block(x, look.cos, look.sin)
            else:
                x = block.within(x, look.cos, look.sin, windows)
            look = self.passed(look, x)
        return look

    def pass_block(
        self, look: Look, rows: slice, q: mx.array, k: mx.array, v: mx.array
    ) -> mx.array:
        """Some patches behind the next block; queries, keys and values are those of all."""
        if look.blocks in self._sees_all:
            return super().pass_block(look, rows, q, k, v)
        assert isinstance(look, WindowedLook), "this tower has begun it"
        block, x = self.blocks[look.blocks], look.x[:, rows]
        return block.finish_within(x, q[:, :, rows], k, v, look.windows, rows.start)

    def finish(self, look: Look) -> mx.array:
        """Features [B, N / 4, hidden_size] of pictures that have passed all blocks, reordered."""
        assert isinstance(look, WindowedLook), "this tower has begun it"
        tokens = self.merger(look.x)[:, mx.array(look.windows.back)]
        return tokens.reshape(look.batch, -1, self.merger.hidden_size)
