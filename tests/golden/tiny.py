"""A tiny Qwen2-VL, made from a seed: the true architecture, the hub's key names, no stored weights.

    text    3 layers of 128, 4 query and 2 key-value heads of 32, MLP of 192, M-RoPE [4, 6, 6]
    vision  2 blocks of 64, 2 heads of 32, patches of 2x14x14, 2x2 patches merged into one token

A weight is a 24-bit integer from a stable bit stream times a scale: one multiplication and one
rounding, so that the bytes are the same on every platform and a recording made on one machine holds
on all of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.pictures import picture
from tests.golden.tiny_files import (
    BLOCKS,
    CHAT_TEMPLATE,
    EMBED,
    HEAD_DIM,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    LEARNED_TOKENS,
    MERGE,
    MLP_RATIO,
    PATCH,
    TEMPORAL_PATCH,
    TOKEN_ID,
    TOKENIZER_FILE,
    VOCAB_SIZE,
    DType,
    Json,
    Layout,
    config,
    generation_config,
    preprocessor_config,
    processor_config,
    tokenizer_config,
)

__all__ = ["TOKEN_ID", "VOCAB_SIZE", "picture", "weights", "write_checkpoint"]

Tensor = NDArray[np.float32]

SEED = 26  # of those tried, the one whose recorded greedy tokens lead by the most


def write_checkpoint(
    folder: Path,
    *,
    tied: bool = True,
    layout: Layout = "hub",
    shards: int = 1,
    dtype: DType = "float32",
) -> Path:
    """Write the tiny checkpoint as a folder that a loader cannot tell from a downloaded one.

    Args:
        folder: Where to; made when it is not there.
        tied: Whether the head is the embedding. Untied adds `lm_head.weight`.
        layout: "hub" is the flat config.json of Qwen/Qwen2-VL-2B-Instruct and the files beside it,
            "nested" what transformers 5 saves. The weights are the same.
        shards: Number of weight files; more than one adds the index.
        dtype: Type of the stored weights, rounded from float32 to nearest, ties to even.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, weights(tied=tied), shards, dtype)
    write_json(folder / "config.json", config(layout, tied=tied, dtype=dtype))
    write_small_files(folder, layout, {})
    return folder


def write_small_files(folder: Path, layout: Layout, images: dict[str, Any]) -> None:
    """Write what stands beside the weights and `config.json`.

    Args:
        folder: Where to.
        layout: Of the JSON files.
        images: What the image processor has otherwise than Qwen2-VL's.
    """
    shutil.copyfile(TOKENIZER_FILE, folder / "tokenizer.json")
    write_json(folder / "generation_config.json", generation_config(layout))
    write_json(folder / "tokenizer_config.json", tokenizer_config(layout))
    if layout == "hub":
        write_json(folder / "preprocessor_config.json", preprocessor_config() | images)
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        processor: dict[str, Any] = dict(processor_config())
        processor["image_processor"] |= images
        write_json(folder / "processor_config.json", processor)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def weights(*, tied: bool = True) -> dict[str, Tensor]:
    """Make the weights.

    Linear weights are [out, in]; the patch embedding is [out, 3, 2, 14, 14] as a Conv3d has it. The
    scales are a balance: attention so peaked that positions and pictures decide the answer, but not
    so that rounding does too (float32 differs from float64 by 1e-5); layers that outweigh the
    embedding they are added to, so that the answer is not one token again and again; logits between
    -9 and 9.

    Args:
        tied: Whether to leave out `lm_head.weight`.

    Returns:
        float32 arrays by the hub's key names, in the order of the layers.
    """
    tensors: dict[str, Tensor] = {}

    def drawn(key: str, *shape: int, deviation: float, around: float = 0.0) -> None:
        tensors[key] = uniform(key, shape, deviation, around)

    def linear(name: str, out: int, width: int, gain: float, bias: float = 0.0) -> None:
        drawn(f"{name}.weight", out, width, deviation=gain / width**0.5)
        if bias:
            drawn(f"{name}.bias", out, deviation=bias)

    def norm(name: str, bias: bool = False) -> None:
        width = EMBED if name.startswith("visual.") else HIDDEN
        drawn(f"{name}.weight", width, deviation=0.2, around=1.0)
        if bias:
            drawn(f"{name}.bias", width, deviation=0.2)

    pixels = 3 * TEMPORAL_PATCH * PATCH * PATCH
    drawn(
        "visual.patch_embed.proj.weight",
        *(EMBED, 3, TEMPORAL_PATCH, PATCH, PATCH),
        deviation=1.0 / pixels**0.5,
    )
    for block in range(BLOCKS):
        name = f"visual.blocks.{block}"
        norm(f"{name}.norm1", bias=True)
        linear(f"{name}.attn.qkv", 3 * EMBED, EMBED, 1.2, bias=0.3)
        linear(f"{name}.attn.proj", EMBED, EMBED, 1.2, bias=0.1)
        norm(f"{name}.norm2", bias=True)
        linear(f"{name}.mlp.fc1", MLP_RATIO * EMBED, EMBED, 1.2, bias=0.1)
        linear(f"{name}.mlp.fc2", EMBED, MLP_RATIO * EMBED, 1.2, bias=0.1)
    merged = MERGE * MERGE * EMBED
    norm("visual.merger.ln_q", bias=True)
    linear("visual.merger.mlp.0", merged, merged, 1.2, bias=0.1)
    linear("visual.merger.mlp.2", HIDDEN, merged, 0.7, bias=0.1)

    _embedding(tensors, "model.embed_tokens.weight")
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        norm(f"{name}.input_layernorm")
        linear(f"{name}.self_attn.q_proj", HIDDEN, HIDDEN, 1.2, bias=0.5)
        linear(f"{name}.self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN, 1.2, bias=0.5)
        linear(f"{name}.self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN, 1.0, bias=0.2)
        linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, 1.5)
        norm(f"{name}.post_attention_layernorm")
        linear(f"{name}.mlp.gate_proj", INTERMEDIATE, HIDDEN, 1.5)
        linear(f"{name}.mlp.up_proj", INTERMEDIATE, HIDDEN, 1.5)
        linear(f"{name}.mlp.down_proj", HIDDEN, INTERMEDIATE, 1.0)
    norm("model.norm")
    if not tied:
        _embedding(tensors, "lm_head.weight")
    return tensors


def _embedding(tensors: dict[str, Tensor], key: str) -> None:
    rows = uniform(key, (VOCAB_SIZE, HIDDEN), 0.15, 0.0)
    # Greedy answers shall be text: special tokens get small logits, unused rows zero.
    rows[LEARNED_TOKENS:] *= np.float32(0.25)
    rows[LEARNED_TOKENS + len(TOKEN_ID) :] = 0
    tensors[key] = rows


def uniform(
    key: str, shape: tuple[int, ...], deviation: float, around: float, seed: int = SEED
) -> Tensor:
    """Draw a tensor; each has its own stream, so that one more leaves the others as they are.

    Args:
        key: Its name.
        shape: Its shape.
        deviation: Its standard deviation.
        around: Its mean.
        seed: Which of many such tensors.
    """
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    source = np.random.PCG64(int.from_bytes(digest[:8], "little"))
    count = int(np.prod(shape))
    steps = (source.random_raw(count) >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0
    values: Tensor = (around + steps * (deviation * 3**0.5)).astype(np.float32)
    return values.reshape(shape)


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int, dtype: DType) -> None:
    """Write one weight file, or several with their index."""
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    place = {key: names[index * shards // len(tensors)] for index, key in enumerate(tensors)}
    for name in names:
        part = {key: value for key, value in tensors.items() if place[key] == name}
        _write_safetensors(folder / name, part, dtype)
    size = sum(value.size for value in tensors.values()) * (4 if dtype == "float32" else 2)
    index = {"metadata": {"total_size": size}, "weight_map": place}
    write_json(folder / "model.safetensors.index.json", index)


def _write_safetensors(path: Path, tensors: dict[str, Tensor], dtype: DType) -> None:
    # By hand, because NumPy has no bfloat16: a length in 8 bytes, a JSON header, the tensors.
    code = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    header: Json = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    end = 0
    for key, value in tensors.items():
        blobs.append(_stored(value, dtype))
        start, end = end, end + len(blobs[-1])
        header[key] = {"dtype": code, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def _stored(values: Tensor, dtype: DType) -> bytes:
    if dtype == "float32":
        return values.astype("<f4").tobytes()
    if dtype == "float16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded.tobytes()


def write_json(path: Path, content: Json) -> None:
    """Write a JSON file as Transformers does."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
