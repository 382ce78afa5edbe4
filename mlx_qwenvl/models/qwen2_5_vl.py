"""Qwen2.5-VL (arXiv:2502.13923): another tower, and a time axis that counts seconds."""

from __future__ import annotations

from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.rope import Slot
from mlx_qwenvl.models.windowed_config import WindowedConfig
from mlx_qwenvl.models.windowed_vision import WindowedTransformer


class Qwen25VL(Model):
    """Qwen2.5-VL."""

    config_type = WindowedConfig
    tower_type = WindowedTransformer
    points_in = "pixels"
    counts_seconds = True
    config: WindowedConfig

    def time_step(self, slot: Slot) -> float:
        """Positions between two temporal patches: as many as the seconds between them are worth."""
        if slot.seconds_per_grid is None:
            return 1.0
        return self.config.vision.tokens_per_second * slot.seconds_per_grid
