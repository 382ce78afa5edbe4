"""Tiny checkpoints of Qwen2-VL's younger siblings, made from a seed as `tiny.py` makes its own.

The decoder has the sizes of the tiny Qwen2-VL, and the vocabulary is the same. What a member has
otherwise stands here: its keys in `config.json` and its weights by their names on the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.tiny import Tensor, uniform, write_json, write_small_files, write_weights
from tests.golden.tiny_files import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    LEARNED_TOKENS,
    MERGE,
    PATCH,
    ROPE_THETA,
    TEMPORAL_PATCH,
    TOKEN_ID,
    VOCAB_SIZE,
    DType,
    Layout,
    config,
)

SEEDS = {"qwen2_5_vl": 1, "qwen3_vl": 1, "qwen3_vl_moe": 2}
MEMBERS = tuple(SEEDS)

TOWER, VISION_HEADS, VISION_MLP = 64, 2, 96
BLOCKS = 3
SIDE = 5  # of Qwen3-VL's square of learned positions
DEEPSTACK = [0, 2]
PATCH_3 = 16  # pixels of Qwen3-VL's patches
WIDE_HEAD = 64  # a head of Qwen3-VL's decoder, which is no quarter of its width
MROPE_INTERLEAVED = [12, 10, 10]
EXPERTS, CHOSEN, EXPERT_MLP = 6, 2, 96  # twice the last is not HIDDEN, or axes would be in doubt
DENSE_LAYERS = [1]  # among those with experts

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
    "mlp.linear_fc1": 1.2,
    "mlp.linear_fc2": 1.2,
    "linear_fc1": 1.2,
    "linear_fc2": 0.7,
    "patch_embed.proj": 1.0,
    "mlp.gate": 3.0,  # so that routers are sure
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
    write_json(folder / "config.json", younger_config(member, layout, tied=tied, dtype=dtype))
    write_small_files(folder, layout, image_sizes(member))
    if member != "qwen2_5_vl":
        _write_video_processor(folder, layout)
    return folder


def _write_video_processor(folder: Path, layout: Layout) -> None:
    """Write what the checkpoints say of videos, in a file of its own or beside the pictures'."""
    half = [0.5, 0.5, 0.5]
    settings = {
        "fps": 2,
        "image_mean": half,
        "image_std": half,
        "max_frames": 768,
        "merge_size": MERGE,
        "min_frames": 4,
        "patch_size": PATCH_3,
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "temporal_patch_size": TEMPORAL_PATCH,
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    if layout == "hub":
        write_json(folder / "video_preprocessor_config.json", settings)
        return
    combined = folder / "processor_config.json"
    processor = json.loads(combined.read_text("utf-8"))
    write_json(combined, processor | {"video_processor": settings})


def image_sizes(member: str) -> dict[str, Any]:
    """What a member's image processor has otherwise than Qwen2-VL's."""
    if member == "qwen2_5_vl":
        return {}
    half = [0.5, 0.5, 0.5]
    return {"patch_size": PATCH_3, "image_mean": half, "image_std": half}


def younger_config(member: str, layout: Layout, *, tied: bool, dtype: DType) -> dict[str, Any]:
    """The content of a member's config.json."""
    if member == "qwen2_5_vl":
        return _windowed_config(layout, tied=tied, dtype=dtype)
    return _deepstack_config(member, layout, tied=tied, dtype=dtype)


def younger_weights(member: str, *, tied: bool = True) -> dict[str, Tensor]:
    """A member's weights: float32 arrays by the hub's key names."""
    shapes = _windowed_shapes(tied)
    if member != "qwen2_5_vl":
        shapes = _deepstack_shapes(tied, has_experts=member == "qwen3_vl_moe")
    return {key: _drawn(key, shape, SEEDS[member]) for key, shape in shapes}


def _windowed_config(layout: Layout, *, tied: bool, dtype: DType) -> dict[str, Any]:
    raw: dict[str, Any] = dict(config(layout, tied=tied, dtype=dtype))
    raw |= {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": BLOCKS,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "hidden_size": TOWER,
            "in_chans" if layout == "hub" else "in_channels": 3,
            "intermediate_size": VISION_MLP,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL_PATCH,
            "tokens_per_second": 2,
            "window_size": 56,
        },
    }
    if layout == "nested":
        raw["text_config"]["model_type"] = "qwen2_5_vl_text"
    return raw


def _deepstack_config(member: str, layout: Layout, *, tied: bool, dtype: DType) -> dict[str, Any]:
    """The hub's files are nested too, and differ from newer ones in how they say the rotation."""
    raw: dict[str, Any] = dict(config("nested", tied=tied, dtype=dtype))
    text: dict[str, Any] = dict(raw["text_config"])
    for key in ("rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers"):
        del text[key]
    text |= {"attention_bias": False, "head_dim": WIDE_HEAD, "model_type": f"{member}_text"}
    if member == "qwen3_vl_moe":
        text |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": DENSE_LAYERS,
            "moe_intermediate_size": EXPERT_MLP,
            "norm_topk_prob": True,
            "num_experts": EXPERTS,
            "num_experts_per_tok": CHOSEN,
        }
    rope = {"mrope_interleaved": True, "mrope_section": MROPE_INTERLEAVED, "rope_type": "default"}
    if layout == "hub":
        text |= {"rope_scaling": rope, "rope_theta": ROPE_THETA}
    else:
        text["rope_parameters"] = rope | {"rope_theta": ROPE_THETA}
    return raw | {
        "architectures": [
            f"Qwen3VL{'Moe' if member == 'qwen3_vl_moe' else ''}ForConditionalGeneration"
        ],
        "model_type": member,
        "text_config": text,
        "vision_config": {
            "deepstack_visual_indexes": DEEPSTACK,
            "depth": BLOCKS,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": TOWER,
            "in_channels": 3,
            "intermediate_size": VISION_MLP,
            "model_type": member,
            "num_heads": VISION_HEADS,
            "num_position_embeddings": SIDE**2,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH_3,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL_PATCH,
        },
    }


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _linear(name: str, out: int, width: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, width)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _windowed_shapes(tied: bool) -> Shapes:
    yield "visual.patch_embed.proj.weight", (TOWER, 3, TEMPORAL_PATCH, PATCH, PATCH)
    for block in range(BLOCKS):
        name = f"visual.blocks.{block}"
        yield f"{name}.norm1.weight", (TOWER,)
        yield f"{name}.norm2.weight", (TOWER,)
        yield from _linear(f"{name}.attn.qkv", 3 * TOWER, TOWER)
        yield from _linear(f"{name}.attn.proj", TOWER, TOWER)
        yield from _linear(f"{name}.mlp.gate_proj", VISION_MLP, TOWER)
        yield from _linear(f"{name}.mlp.up_proj", VISION_MLP, TOWER)
        yield from _linear(f"{name}.mlp.down_proj", TOWER, VISION_MLP)
    merged = MERGE**2 * TOWER
    yield "visual.merger.ln_q.weight", (TOWER,)
    yield from _linear("visual.merger.mlp.0", merged, merged)
    yield from _linear("visual.merger.mlp.2", HIDDEN, merged)
    yield "model.embed_tokens.weight", (VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield from _linear(f"{name}.self_attn.q_proj", HIDDEN, HIDDEN)
        yield from _linear(f"{name}.self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        yield from _linear(f"{name}.self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        yield from _linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, bias=False)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
        yield from _mlp(f"{name}.mlp")
    yield "model.norm.weight", (HIDDEN,)
    if not tied:
        yield "lm_head.weight", (VOCAB_SIZE, HIDDEN)


def _deepstack_shapes(tied: bool, has_experts: bool) -> Shapes:
    visual, text = "model.visual", "model.language_model"
    yield f"{visual}.patch_embed.proj.weight", (TOWER, 3, TEMPORAL_PATCH, PATCH_3, PATCH_3)
    yield f"{visual}.patch_embed.proj.bias", (TOWER,)
    yield f"{visual}.pos_embed.weight", (SIDE**2, TOWER)
    for block in range(BLOCKS):
        name = f"{visual}.blocks.{block}"
        yield from _norm(f"{name}.norm1", TOWER)
        yield from _norm(f"{name}.norm2", TOWER)
        yield from _linear(f"{name}.attn.qkv", 3 * TOWER, TOWER)
        yield from _linear(f"{name}.attn.proj", TOWER, TOWER)
        yield from _linear(f"{name}.mlp.linear_fc1", VISION_MLP, TOWER)
        yield from _linear(f"{name}.mlp.linear_fc2", TOWER, VISION_MLP)
    merged = MERGE**2 * TOWER
    mergers = {f"{visual}.merger": TOWER}
    mergers |= {f"{visual}.deepstack_merger_list.{i}": merged for i in range(len(DEEPSTACK))}
    for name, normed in mergers.items():
        yield from _norm(f"{name}.norm", normed)
        yield from _linear(f"{name}.linear_fc1", merged, merged)
        yield from _linear(f"{name}.linear_fc2", HIDDEN, merged)
    yield f"{text}.embed_tokens.weight", (VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        name = f"{text}.layers.{layer}"
        q_width, kv_width = HEADS * WIDE_HEAD, KV_HEADS * WIDE_HEAD
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield from _linear(f"{name}.self_attn.q_proj", q_width, HIDDEN, bias=False)
        yield from _linear(f"{name}.self_attn.k_proj", kv_width, HIDDEN, bias=False)
        yield from _linear(f"{name}.self_attn.v_proj", kv_width, HIDDEN, bias=False)
        yield from _linear(f"{name}.self_attn.o_proj", HIDDEN, q_width, bias=False)
        yield f"{name}.self_attn.q_norm.weight", (WIDE_HEAD,)
        yield f"{name}.self_attn.k_norm.weight", (WIDE_HEAD,)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
        if not has_experts or layer in DENSE_LAYERS:
            yield from _mlp(f"{name}.mlp")
            continue
        yield f"{name}.mlp.gate.weight", (EXPERTS, HIDDEN)
        yield f"{name}.mlp.experts.gate_up_proj", (EXPERTS, HIDDEN, 2 * EXPERT_MLP)
        yield f"{name}.mlp.experts.down_proj", (EXPERTS, EXPERT_MLP, HIDDEN)
    yield f"{text}.norm.weight", (HIDDEN,)
    if not tied:
        yield "lm_head.weight", (VOCAB_SIZE, HIDDEN)


def _mlp(name: str) -> Shapes:
    yield from _linear(f"{name}.gate_proj", INTERMEDIATE, HIDDEN, bias=False)
    yield from _linear(f"{name}.up_proj", INTERMEDIATE, HIDDEN, bias=False)
    yield from _linear(f"{name}.down_proj", HIDDEN, INTERMEDIATE, bias=False)


def _drawn(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    module, _, kind = key.rpartition(".")
    if kind == "bias":
        deviation = next((b for name, b in _BIASES.items() if module.endswith(name)), _BIAS)
        return uniform(key, shape, deviation, 0.0, seed)
    if len(shape) == 3:  # experts, whose rows lie across
        return uniform(key, shape, 1.5 / shape[1] ** 0.5, 0.0, seed)
    gain = next((g for name, g in _GAINS.items() if module.endswith(name)), None)
    if gain is not None:
        return uniform(key, shape, gain / np.prod(shape[1:]) ** 0.5, 0.0, seed)
    if len(shape) == 1:
        return uniform(key, shape, 0.2, 1.0, seed)
    if "pos_embed" in key:
        return uniform(key, shape, 0.5, 0.0, seed)
    rows = uniform(key, shape, 0.15, 0.0, seed)
    # As in `tiny.py`: special tokens get small logits, unused rows zero.
    rows[LEARNED_TOKENS:] *= np.float32(0.25)
    rows[LEARNED_TOKENS + len(TOKEN_ID) :] = 0
    return rows
