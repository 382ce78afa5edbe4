"""Qwen3's decoder: queries and keys are normed head by head, and no projection has a bias."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.models.config import TextConfig
from mlx_qwenvl.models.text import Attention, DecoderLayer, TextModel


class NormedAttention(Attention):
    """Grouped-query attention with an RMSNorm of each query and key before they are turned."""

    def __init__(self, config: TextConfig, ops: Ops) -> None:
        super().__init__(config, ops)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        qkv, bias = super()._project(x)
        turning = self.num_heads + self.num_kv_heads
        heads = qkv.reshape(*x.shape[:-1], -1, self.head_dim)
        q, k, v = mx.split(heads, [self.num_heads, turning], axis=-2)
        normed = mx.concatenate([self.q_norm(q), self.k_norm(k), v], axis=-2)
        return normed.reshape(qkv.shape), bias


class NormedDecoderLayer(DecoderLayer):
    """A layer with that attention."""

    attention_type = NormedAttention


class NormedTextModel(TextModel):
    """The whole decoder."""

    layer_type = NormedDecoderLayer
