"""The members of the family, by what `config.json` calls them.

A member is a class derived from `Model`; its `config_type` reads its `config.json`. Whoever loads,
converts or answers asks here for a model and never for a member by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlx_qwenvl.kernels.ops import TWINS, Ops
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.qwen2_5_vl import Qwen25VL
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from mlx_qwenvl.models.qwen3_vl import Qwen3VL
from mlx_qwenvl.models.qwen3_vl_moe import Qwen3VLMoe

MEMBERS: Mapping[str, type[Model]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VLMoe,
}


def build(config: Config, ops: Ops = TWINS) -> Model:
    """An empty model of the shape that a configuration describes.

    Args:
        config: The shape, read by the member that it belongs to.
        ops: The fused steps: Metal kernels or their twins.
    """
    return member_of(config)(config, ops)


def member_of(config: Config) -> type[Model]:
    """The class of the model that a configuration describes."""
    return next(member for member in MEMBERS.values() if member.config_type is type(config))
