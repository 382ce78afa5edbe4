"""Hugging Face weights to MLX group-quantized weights, a block of rows at a time."""

import mlx_qwenvl  # noqa: F401 - first, as it loads OpenBLAS, which has to come before MLX

# isort: split
from .convert import Outcome, Wishes, convert

__all__ = ["Outcome", "Wishes", "convert"]
