"""Tiny checkpoints of Qwen2-VL's younger siblings, made from a seed as `tiny.py` makes its own.

The decoder has the sizes of the tiny Qwen2-VL, and the vocabulary is the same. What a member has
otherwise stands here: its keys in `config.json` and its weights by their names on the hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.tiny import Tensor, uniform, write_json, write_weights
from tests.golden.tiny_files import (
    CHAT_TEMPLATE,
    HEAD_DIM,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    LEARNED_TOKENS,
    MERGE,
    PATCH,
    TEMPORAL_PATCH,
    TOKEN_ID,
    TOKENIZER_FILE,
    VOCAB_SIZE,
    DType,
    Layout,
    config,
    generation_config,
    preprocessor_config,
    processor_config,
    tokenizer_config,
)

SEEDS = {"qwen2_5_vl": 1}
MEMBERS = tuple(SEEDS)

TOWER, VISION_HEADS, VISION_MLP = 64, 2, 96

# What a tensor is drawn with, by the end of its name; the first that fits. See `tiny.weights`.
_GAINS = {
    "attn.qkv": 1.2,
    "attn.proj": 1.2,
    "q_proj": 1.2,
    "k_proj": 1.2,
    "v_proj": 1.0,
    "o_proj": 1.5,
    "gate_proj": 1.5,
    "up_proj": 1.5,
    "down_proj": 1.0,
    "mlp.0": 1.2,
    "mlp.2": 0.7,
    "patch_embed.proj": 1.0,
}
_BIASES = {"attn.qkv": 0.3, "q_proj": 0.5, "k_proj": 0.5, "v_proj": 0.2}
_BIAS = 0.1


def write_younger(
    folder: Path,
    member: str,
    *,
    tied: bool = True,
    layout: Layout = "hub",
    shards: int = 1,
    dtype: DType = "float32",
) -> Path:
    """Write a member's tiny checkpoint; the arguments are those of `tiny.write_checkpoint`.

    Args:
        folder: Where to; made when it is not there.
        member: Its `model_type`.
        tied: Whether the head is the embedding.
        layout: Of the JSON files.
        shards: Number of weight files.
        dtype: Type of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, younger_weights(member, tied=tied), shards, dtype)
    shutil.copyfile(TOKENIZER_FILE, folder / "tokenizer.json")
    write_json(folder / "config.json", younger_config(member, layout, tied=tied, dtype=dtype))
    write_json(folder / "generation_config.json", generation_config(layout))
    write_json(folder / "tokenizer_config.json", tokenizer_config(layout))
    if layout == "hub":
        write_json(folder / "preprocessor_config.json", preprocessor_config())
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        write_json(folder / "processor_config.json", processor_config())
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def younger_config(member: str, layout: Layout, *, tied: bool, dtype: DType) -> dict[str, Any]:
    """The content of a member's config.json."""
    raw: dict[str, Any] = dict(config(layout, tied=tied, dtype=dtype))
    vision = {
        "depth": 3,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": TOWER,
        "intermediate_size": VISION_MLP,
        "num_heads": VISION_HEADS,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "tokens_per_second": 2,
        "window_size": 56,
    }
    raw |= {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": member,
        "vision_config": vision | {"in_chans" if layout == "hub" else "in_channels": 3},
    }
    if layout == "nested":
        raw["text_config"]["model_type"] = f"{member}_text"
    return raw


def younger_weights(member: str, *, tied: bool = True) -> dict[str, Tensor]:
    """A member's weights: float32 arrays by the hub's key names."""
    seed = SEEDS[member]
    return {key: _drawn(key, shape, seed) for key, shape in _shapes(tied)}


def _shapes(tied: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(name: str, out: int, width: int, bias: bool = True) -> Iterator[Any]:
        yield f"{name}.weight", (out, width)
        if bias:
            yield f"{name}.bias", (out,)

    yield "visual.patch_embed.proj.weight", (TOWER, 3, TEMPORAL_PATCH, PATCH, PATCH)
    for block in range(3):
        name = f"visual.blocks.{block}"
        yield f"{name}.norm1.weight", (TOWER,)
        yield f"{name}.norm2.weight", (TOWER,)
        yield from linear(f"{name}.attn.qkv", 3 * TOWER, TOWER)
        yield from linear(f"{name}.attn.proj", TOWER, TOWER)
        yield from linear(f"{name}.mlp.gate_proj", VISION_MLP, TOWER)
        yield from linear(f"{name}.mlp.up_proj", VISION_MLP, TOWER)
        yield from linear(f"{name}.mlp.down_proj", TOWER, VISION_MLP)
    merged = MERGE**2 * TOWER
    yield "visual.merger.ln_q.weight", (TOWER,)
    yield from linear("visual.merger.mlp.0", merged, merged)
    yield from linear("visual.merger.mlp.2", HIDDEN, merged)
    yield "model.embed_tokens.weight", (VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield from linear(f"{name}.self_attn.q_proj", HIDDEN, HIDDEN)
        yield from linear(f"{name}.self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        yield from linear(f"{name}.self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        yield from linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, bias=False)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
        yield from linear(f"{name}.mlp.gate_proj", INTERMEDIATE, HIDDEN, bias=False)
        yield from linear(f"{name}.mlp.up_proj", INTERMEDIATE, HIDDEN, bias=False)
        yield from linear(f"{name}.mlp.down_proj", HIDDEN, INTERMEDIATE, bias=False)
    yield "model.norm.weight", (HIDDEN,)
    if not tied:
        yield "lm_head.weight", (VOCAB_SIZE, HIDDEN)


def _drawn(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    module, _, kind = key.rpartition(".")
    if kind == "bias":
        deviation = next((b for name, b in _BIASES.items() if module.endswith(name)), _BIAS)
        return uniform(key, shape, deviation, 0.0, seed)
    gain = next((g for name, g in _GAINS.items() if module.endswith(name)), None)
    if gain is not None:
        return uniform(key, shape, gain / np.prod(shape[1:]) ** 0.5, 0.0, seed)
    if len(shape) == 1:
        return uniform(key, shape, 0.2, 1.0, seed)
    rows = uniform(key, shape, 0.15, 0.0, seed)
    # As in `tiny.py`: special tokens get small logits, unused rows zero.
    rows[LEARNED_TOKENS:] *= np.float32(0.25)
    rows[LEARNED_TOKENS + len(TOKEN_ID) :] = 0
    return rows
