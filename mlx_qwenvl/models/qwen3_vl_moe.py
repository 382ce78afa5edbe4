"""Qwen3-VL with experts: the dense one, but for the MLPs of its decoder."""

from __future__ import annotations

from mlx_qwenvl.models.config import TextConfig
from mlx_qwenvl.models.experts import SparseMLP
from mlx_qwenvl.models.experts_config import ExpertsConfig, ExpertsTextConfig
from mlx_qwenvl.models.normed_text import NormedDecoderLayer, NormedTextModel
from mlx_qwenvl.models.qwen3_vl import Qwen3VL
from mlx_qwenvl.models.text import DecoderLayer


class SparseDecoderLayer(NormedDecoderLayer):
    """A layer with experts."""

    mlp_type = SparseMLP


class SparseTextModel(NormedTextModel):
    """The whole decoder, some of whose layers may be dense."""

    def type_of(self, config: TextConfig, layer: int) -> type[DecoderLayer]:
        """The class of one of the layers."""
        assert isinstance(config, ExpertsTextConfig), "the member's own"
        return SparseDecoderLayer if config.has_experts(layer) else NormedDecoderLayer


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with experts."""

    config_type = ExpertsConfig
    decoder_type = SparseTextModel
