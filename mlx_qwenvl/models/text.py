"""The decoder: token vectors and a cache to hidden states.

Axes: B sequences, L tokens of one call, N = B L rows, D the decoder's width, Q query heads, G
key-value heads. Between the layers tokens are rows [N, D]: only attention asks whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwenvl.kernels.ops import Ops
from mlx_qwenvl.kernels.rotate_qkv import Rotation
from mlx_qwenvl.models.activations import swiglu
from mlx_qwenvl.models.cache import KVCache, LayerCache
from mlx_qwenvl.models.config import TextConfig
from mlx_qwenvl.models.linear import Dense, DenseEmbedding, LinearLike, merge_rows
from mlx_qwenvl.models.rope import MRope
from mlx_qwenvl.models.share import Share, keep_columns, keep_rows


class Attention(nn.Module):
    """Grouped-query attention; its query, key and value projections may be one matmul."""

    def __init__(self, config: TextConfig, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self._share: Share | None = None
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = self.head_dim**-0.5
        width, bias = config.hidden_size, config.attention_bias
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Dense(width, q_width, bias=bias)
        self.k_proj = Dense(width, kv_width, bias=bias)
        self.v_proj = Dense(width, kv_width, bias=bias)
        self.o_proj = Dense(q_width, width, bias=False)

    def merge_projections(self) -> None:
        """Make one layer of the three, where their formats agree, and leave their bias to it."""
        apart: list[LinearLike] = [self.q_proj, self.k_proj, self.v_proj]
        if all("bias" in layer for layer in apart):
            self["qkv_bias"] = mx.concatenate([layer.pop("bias") for layer in apart])
        self["qkv_proj"] = merge_rows(apart)
        del self.q_proj, self.k_proj, self.v_proj

    def shard(self, share: Share) -> None:
        """Leave one rank's heads; call it before the projections are merged."""
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            keep_rows(layer, share)
        keep_columns(self.o_proj, share)
        self.num_heads //= share.size
        self.num_kv_heads //= share.size
        self._share = share

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """Queries, keys and values [N, (Q + 2 G) D], and the bias that they still lack."""
        layers = self.get("qkv_proj")
        if layers is None:
            layers = [self.q_proj, self.k_proj, self.v_proj]
        parts = [layer(x) for layer in layers]
        qkv = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
        return qkv, self.get("qkv_bias")

    def __call__(
        self, x: mx.array, rotation: Rotation, mask: mx.array | str | None, cache: LayerCache
    ) -> mx.array:
        """Attend from x [N, D] to the cache and to itself."""
        qkv, bias = self._project(x)
        q, kv = self._ops.rotate_qkv(qkv, bias, rotation, self.num_heads, self.num_kv_heads)
        out = cache.attend(q, kv, self.scale, mask)
        out = self.o_proj(out.transpose(0, 2, 1, 3).reshape(*x.shape[:-1], -1))
        return out if self._share is None else self._share.total(out)


class MLP(nn.Module):
    """Gated MLP whose gate and up projections may be one matmul."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self._share: Share | None = None
        self.gate_proj = Dense(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Dense(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Dense(config.intermediate_size, config.hidden_size, bias=False)

    def merge_projections(self) -> None:
        """Make one layer `gate_up_proj` of the two, where their formats agree."""
        merged = merge_rows([self.gate_proj, self.up_proj])
        if len(merged) == 1:
            self["gate_up_proj"] = merged[0]
            del self.gate_proj, self.up_proj

    def shard(self, share: Share) -> None:
        """Leave one rank's columns of the middle; call it before the projections are merged."""
        keep_rows(self.gate_proj, share)
        keep_rows(self.up_proj, share)
        keep_columns(self.down_proj, share)
        self._share = share

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [N, D]."""
        if "gate_up_proj" in self:
            gate, up = mx.split(self["gate_up_proj"](x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        out = self.down_proj(swiglu(gate, up))
        return out if self._share is None else self._share.total(out)


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer, cut so that each residual add meets the norm behind it.

    Attributes:
        attention_type: Its attention.
        mlp_type: Its MLP.
    """

    attention_type: ClassVar[type[Attention]] = Attention
    mlp_type: ClassVar[type[nn.Module]] = MLP

    def __init__(self, config: TextConfig, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.self_attn = self.attention_type(config, ops)
        self.mlp = self.mlp_type(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def shard(self, share: Share) -> None:
        """Leave one rank's part; call it before the projections are merged."""
        self.self_attn.shard(share)
        self.mlp.shard(share)

    def merge_projections(self) -> None:
        """Merge the projections that read the same input; call it once, after loading."""
        self.self_attn.merge_projections()
        self.mlp.merge_projections()

    def __call__(
        self,
        x: mx.array,
        delta: mx.array | None,
        rotation: Rotation,
        mask: mx.array | str | None,
        cache: LayerCache,
    ) -> tuple[mx.array, mx.array]:
        """Run the layer.

        Args:
            x: The residual stream [N, D].
            delta: What the layer before adds to it; None for the first layer.
            rotation: The tokens' positions.
            mask: What each token may see.
            cache: The layer's.

        Returns:
            The stream with `delta` and this attention added, and what the MLP adds to it.
        """
        x, normed = _add_norm(self._ops, x, delta, self.input_layernorm)
        delta = self.self_attn(normed, rotation, mask, cache)
        x, normed = _add_norm(self._ops, x, delta, self.post_attention_layernorm)
        return x, self.mlp(normed)


class TextModel(nn.Module):
    """Embedding, decoder layers and the last norm.

    Attributes:
        layer_type: Its layers.
    """

    layer_type: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, config: TextConfig, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.embed_tokens = DenseEmbedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = [self.type_of(config, layer)(config, ops) for layer in layers]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = MRope(
            config.head_dim, config.rope_theta, config.mrope_section, config.mrope_interleaved
        )

    def type_of(self, config: TextConfig, layer: int) -> type[DecoderLayer]:
        """The class of one of the layers."""
        return self.layer_type

    def rotation(self, positions: np.ndarray) -> Rotation:
        """Rotation of tokens at positions (time, height, width): [3, L], or [3, B, L] by row."""
        return self._rope(positions)

    def __call__(
        self,
        embeddings: mx.array,
        cache: Sequence[LayerCache] | None,
        additions: Sequence[tuple[int, Sequence[mx.array]]] = (),
    ) -> mx.array:
        """Hidden states [B, L, D] after the last norm.

        Args:
            embeddings: [B, L, D].
            cache: One entry a layer; it holds the tokens' positions and receives keys and values.
            additions: For runs of rows, the first of them, and what is added to them behind each
                of the first layers, [n, D].
        """
        layer_caches = [KVCache() for _ in self.layers] if cache is None else cache
        first, length = layer_caches[0], embeddings.shape[1]
        rotation = self.rotation(first.positions.at(first.offset, length))
        mask = first.make_mask(length)
        x, delta = embeddings.reshape(-1, embeddings.shape[-1]), None
        for index, (layer, layer_cache) in enumerate(zip(self.layers, layer_caches, strict=True)):
            x, delta = layer(x, delta, rotation, mask, layer_cache)
            for begin, shares in additions:
                if index < len(shares):
                    end = begin + shares[index].shape[0]
                    delta[begin:end] = delta[begin:end] + shares[index].astype(delta.dtype)
        return _add_norm(self._ops, x, delta, self.norm)[1].reshape(embeddings.shape)


def _add_norm(
    ops: Ops, x: mx.array, delta: mx.array | None, norm: nn.RMSNorm
) -> tuple[mx.array, mx.array]:
    """The stream with `delta` added, and its norm."""
    if delta is None:
        return x, norm(x)
    return ops.add_rms_norm(x, delta, norm.weight, norm.eps)
