"""Scaled dot-product attention, whatever the device offers for it."""

from __future__ import annotations

import mlx.core as mx


def attend(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """Attention of queries [B, Q, L, D] to keys and values [B, G, T, D], giving [B, Q, L, D].

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the scores.
        mask: "causal", booleans or addends that broadcast to [B, Q, L, T], or None.
    """
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
