"""Qwen3-VL: the tower speaks to several of the decoder's layers, and videos are frames in text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.deepstack_config import DeepstackConfig
from mlx_qwenvl.models.deepstack_vision import DeepstackTransformer
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.normed_text import NormedTextModel
from mlx_qwenvl.models.rope import Slot
from mlx_qwenvl.models.text import TextModel


class Qwen3VL(Model):
    """Qwen3-VL, dense."""

    config_type: ClassVar[type[Config]] = DeepstackConfig
    tower_type = DeepstackTransformer
    decoder_type: ClassVar[type[TextModel]] = NormedTextModel
    config: DeepstackConfig

    def prompt_positions(self, length: int, slots: Sequence[Slot]) -> tuple[np.ndarray, int]:
        """M-RoPE positions [3, L] int32 of a prompt, and its `rope_delta`.

        Args:
            length: Tokens in the prompt, L.
            slots: Its pictures, and its videos' temporal patches one by one, in order.

        Raises:
            PromptError: A video has no text between its temporal patches.
        """
        most = max((slot.grid[0] for slot in slots), default=1)
        if most > 1:
            raise PromptError(
                f"a video of {most} temporal patches came in one piece; expected each behind the "
                "time at which it is seen, as Qwen3-VL reads them"
            )
        return super().prompt_positions(length, slots)

    def shares(self, feature: mx.array) -> list[mx.array]:
        """What features [n, (1 + K) D] give to the embedding, and to K layers from the first on."""
        parts = 1 + len(self.config.vision.deepstack_visual_indexes)
        return list(mx.split(feature, parts, axis=-1))
