"""Hugging Face weights to MLX group-quantized weights, tensor by tensor."""

from .convert import convert

__all__ = ["convert"]
