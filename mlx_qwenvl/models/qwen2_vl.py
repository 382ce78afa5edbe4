"""Qwen2-VL (arXiv:2409.12191), the eldest member: all that the family does, and nothing else."""

from __future__ import annotations

from mlx_qwenvl.models.model import Model


class Qwen2VL(Model):
    """Qwen2-VL."""
