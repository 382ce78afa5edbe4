"""Tiny checkpoints that several ranks can share."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from tests.golden.tiny import write_checkpoint
from tests.golden.tiny_files import HEAD_DIM, KV_HEADS


def with_more_heads(folder: Path, times: int) -> Path:
    """The tiny model with each key-value head repeated, which computes the same."""
    write_checkpoint(folder)
    file = folder / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = mx.unflatten(weight, 0, (KV_HEADS, HEAD_DIM))
            weights[name] = mx.repeat(heads, times, axis=0).reshape(-1, *weight.shape[1:])
    mx.eval(weights)
    mx.save_safetensors(str(file), weights)
    config = json.loads((folder / "config.json").read_text())
    config["num_key_value_heads"] *= times
    (folder / "config.json").write_text(json.dumps(config))
    return folder
