"""The published checkpoints by their configuration, from `published/checkpoints.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import MEMBERS, build
from mlx_qwenvl.weights.plan import PATCH_EMBED

PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("published").joinpath("checkpoints.json").read_text()
)
CHECKPOINTS = [(member, name) for member, m in PUBLISHED.items() for name in m["checkpoints"]]
SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
TOKENS = {"vision_start": 151652, "vision_end": 151653, "image": 151655, "video": 151656}


def checkpoint(member: str, name: str) -> dict[str, Any]:
    """What is known of a checkpoint; what is made from another has its shape."""
    stated: dict[str, Any] = PUBLISHED[member]["checkpoints"][name]
    return checkpoint(member, stated["like"]) if "like" in stated else stated


def config_of(member: str, name: str) -> dict[str, Any]:
    """Its `config.json`, as far as it is read."""
    stated, common = checkpoint(member, name), PUBLISHED[member]
    text = {**common["text"], **dict(zip(SHAPE, stated["shape"], strict=True))}
    text |= stated.get("decoder", {})
    width = "hidden_size" if member == "qwen2_vl" else "out_hidden_size"
    vision = {**common["vision"], **stated.get("tower", {}), width: stated["shape"][0]}
    ids = {f"{mark}_token_id": number for mark, number in TOKENS.items()}
    raw = {"model_type": member, **ids, "tie_word_embeddings": stated["tied"]}
    is_nested = MEMBERS[member].config_type.is_nested
    return {**raw, "vision_config": vision, **({"text_config": text} if is_nested else text)}


def stored_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of its tensors by name, of the patch embedding as it is stored."""
    found = {name: tuple(array.shape) for name, array in tree_flatten(build(config).parameters())}
    vision = config.vision
    del found[f"{PATCH_EMBED}.motion"]
    pixels = (vision.in_channels, vision.temporal_patch_size, *2 * (vision.patch_size,))
    found[f"{PATCH_EMBED}.weight"] = (vision.embed_dim, *pixels)
    if not vision.has_patch_bias:
        del found[f"{PATCH_EMBED}.bias"]
    return found
