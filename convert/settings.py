"""The `config.json` of the output: the source's, in the Hub's layout, with what has changed.

Transformers 5 saves the decoder's keys in `text_config`. mlx-vlm does not open that, and mlx-lm
opens it with defaults in their place, so what is written has them at the top, as the Hub's
checkpoints do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_qwenvl.models.families import MEMBERS

DTYPE_KEYS = ("torch_dtype", "dtype")  # older and newer
_NOT_TAKEN = ("model_type", "dtype", "rope_parameters", "layer_types")  # of Transformers 5's parts


def output_settings(
    raw: Mapping[str, Any], quantization: Mapping[str, Any] | None, dtype: str | None
) -> dict[str, Any]:
    """Settings of a converted model.

    Args:
        raw: The source's `config.json`.
        quantization: The statement of the default variant's formats, or None where it is dense.
        dtype: Of what stays dense, where it was changed.
    """
    settings = hub_settings(raw)
    for key in ("quantization", "quantization_config"):
        settings.pop(key, None)
        if quantization is not None:
            settings[key] = quantization
    if dtype is not None:
        for section in (settings, settings.get("text_config"), settings.get("vision_config")):
            if isinstance(section, dict):
                section.update({key: dtype for key in DTYPE_KEYS if key in section})
    return settings


def hub_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings in the Hub's layout, which most are in already."""
    text, vision = raw.get("text_config"), raw.get("vision_config")
    is_nested = MEMBERS[raw["model_type"]].config_type.is_nested
    if is_nested or not isinstance(text, dict) or not isinstance(vision, dict):
        return dict(raw)
    rope = text.get("rope_parameters", {})
    settings = {key: value for key, value in text.items() if key not in _NOT_TAKEN}
    settings |= {k: v for k, v in raw.items() if k not in ("text_config", "vision_config", "dtype")}
    settings["tie_word_embeddings"] = bool(
        raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    )
    if "mrope_section" in rope:
        settings["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
        settings["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    if raw.get("dtype", text.get("dtype")) is not None:
        settings["torch_dtype"] = raw.get("dtype", text.get("dtype"))
    tower = {key: value for key, value in vision.items() if key not in _NOT_TAKEN}
    if "in_channels" in tower:
        tower["in_chans"] = tower.pop("in_channels")
    tower |= {"model_type": raw.get("model_type"), "spatial_patch_size": tower.get("patch_size")}
    return settings | {"vision_config": tower}
