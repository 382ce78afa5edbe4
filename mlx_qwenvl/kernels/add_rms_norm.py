"""Residual add and RMSNorm in one pass over the row.

Axes: D the row's width; every other axis counts rows.
"""

from __future__ import annotations

import mlx.core as mx


def add_rms_norm_twin(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """The sum x + delta [..., D], and its RMSNorm under `weight` [D]."""
    total = x + delta
    return total, mx.fast.rms_norm(total, weight, eps)
