"""The decoder: token vectors and a cache to hidden states.

Axes: B sequences, L tokens of one call, D the decoder's width, H query heads, G key-value heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.models.activations import swiglu
from mlx_qwenvl.models.cache import KVCache, LayerCache
from mlx_qwenvl.models.config import TextConfig
from mlx_qwenvl.models.linear import merge_rows
from mlx_qwenvl.models.rope import MRope, Rotate


class Attention(nn.Module):
    """Grouped-query attention whose query, key and value projections may be one matmul."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = self.head_dim**-0.5
        width, kv_width = config.hidden_size, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=True)
        self.k_proj = nn.Linear(width, kv_width, bias=True)
        self.v_proj = nn.Linear(width, kv_width, bias=True)
        self.o_proj = nn.Linear(width, width, bias=False)

    def merge_projections(self) -> None:
        """Make one layer `qkv_proj` of the three, where their formats agree."""
        merged = merge_rows([self.q_proj, self.k_proj, self.v_proj])
        if merged is not None:
            self["qkv_proj"] = merged
            del self.q_proj, self.k_proj, self.v_proj

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        if "qkv_proj" not in self:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        ends = [
            self.num_heads * self.head_dim,
            (self.num_heads + self.num_kv_heads) * self.head_dim,
        ]
        q, k, v = mx.split(self["qkv_proj"](x), ends, axis=-1)
        return q, k, v

    def __call__(
        self, x: mx.array, rotate: Rotate, mask: mx.array | str | None, cache: LayerCache
    ) -> mx.array:
        """Attend from x [B, L, D] to the cache and to itself."""
        batch, length, width = x.shape
        q, k, v = (
            projected.reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)
            for projected in self._project(x)
        )
        k, v = cache.update_and_fetch(rotate(k), v)
        out = mx.fast.scaled_dot_product_attention(rotate(q), k, v, scale=self.scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(batch, length, width))


class MLP(nn.Module):
    """Gated MLP whose gate and up projections may be one matmul."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def merge_projections(self) -> None:
        """Make one layer `gate_up_proj` of the two, where their formats agree."""
        merged = merge_rows([self.gate_proj, self.up_proj])
        if merged is not None:
            self["gate_up_proj"] = merged
            del self.gate_proj, self.up_proj

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [B, L, D]."""
        if "gate_up_proj" in self:
            gate, up = mx.split(self["gate_up_proj"](x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(swiglu(gate, up))


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, x: mx.array, rotate: Rotate, mask: mx.array | str | None, cache: LayerCache
    ) -> mx.array:
        """Transform x [B, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), rotate, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Embedding, decoder layers and the last norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = MRope(config.head_dim, config.rope_theta, config.mrope_section)

    def __call__(self, embeddings: mx.array, cache: Sequence[LayerCache] | None) -> mx.array:
        """Hidden states [B, L, D] after the last norm.

        Args:
            embeddings: [B, L, D].
            cache: One entry a layer; it holds the tokens' positions and receives keys and values.
        """
        layer_caches = [KVCache() for _ in self.layers] if cache is None else cache
        length = embeddings.shape[1]
        rotate = self._rotation(layer_caches[0], length)
        mask = layer_caches[0].make_mask(length)
        x = embeddings
        for layer, layer_cache in zip(self.layers, layer_caches, strict=True):
            x = layer(x, rotate, mask, layer_cache)
        return self.norm(x)

    def _rotation(self, cache: LayerCache, length: int) -> Rotate:
        positions = cache.positions.at(cache.offset, length)
        if positions is None:
            return self._rope.at_offset(cache.offset + cache.positions.rope_delta)
        if (positions == positions[0, 0] + range(length)).all():
            return self._rope.at_offset(int(positions[0, 0]))
        return self._rope.at_positions(mx.array(positions))
