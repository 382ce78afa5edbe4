"""Hugging Face weights to MLX group-quantized weights, a block of rows at a time."""

from .convert import Outcome, Wishes, convert

__all__ = ["Outcome", "Wishes", "convert"]
