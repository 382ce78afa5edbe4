"""Qwen3-VL: the tower speaks to several of the decoder's layers, and videos are frames in text."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from mlx_qwenvl.inputs.frames_shared import SharedBudget
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.deepstack_config import DeepstackConfig
from mlx_qwenvl.models.deepstack_vision import DeepstackTransformer
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.normed_text import NormedTextModel
from mlx_qwenvl.models.text import TextModel


class Qwen3VL(Model):
    """Qwen3-VL, dense."""

    config_type: ClassVar[type[Config]] = DeepstackConfig
    tower_type = DeepstackTransformer
    decoder_type: ClassVar[type[TextModel]] = NormedTextModel
    video_budget = SharedBudget
    tells_times = True
    config: DeepstackConfig

    def shares(self, feature: mx.array) -> list[mx.array]:
        """What features [n, (1 + K) D] give to the embedding, and to K layers from the first on."""
        parts = 1 + len(self.config.vision.deepstack_visual_indexes)
        return list(mx.split(feature, parts, axis=-1))
