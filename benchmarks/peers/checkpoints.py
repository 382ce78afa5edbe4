"""The models that the runtimes are compared on, each dense and in mlx-community's 4-bit layout.

    demo    the embedded model as it is, 3.4 million parameters in bfloat16
    0.1b    a random one of 0.13 billion
    2b      Qwen2-VL-2B's published shape with random weights

Random ones get the demo's tokenizer and template. A larger vocabulary's other rows are zero, so
that every answer is made of tokens that all tokenizers know.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx_qwenvl  # noqa: F401 - first, as it brings OpenBLAS

# isort: split
import mlx.core as mx

from benchmarks.full_shape import shapes_of
from convert import convert
from mlx_qwenvl.weights.resolve import DEMO_FOLDER

SHARD_BYTES = 2**30
KNOWN_TOKENS = 914  # of the demo's tokenizer
QUANTIZE = "4bit"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Shape:
    """A random model's sizes; the decoder's heads are 128 wide, the tower's 80."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_depth: int
    vision_width: int


SHAPES = {
    "0.1b": Shape(768, 12, 2048, 6, 2, 16384, 8, 640),
    "2b": Shape(1536, 28, 8960, 12, 2, 151936, 32, 1280),
}
MODELS = ("demo", *SHAPES)


@dataclass(frozen=True)
class Folders:
    """Where a model is.

    Attributes:
        dense: As Transformers reads it.
        packed: The decoder in 4 bits, as mlx-vlm reads it; the demo is taken as it is.
    """

    dense: Path
    packed: Path


def make(model: str, place: Path) -> Folders:
    """Write a model into `place`, unless it is there already."""
    if model == "demo":
        return Folders(_published(DEMO_FOLDER, place / "demo-dense"), DEMO_FOLDER)
    dense, packed = place / model, place / f"{model}-{QUANTIZE}"
    if not dense.exists():
        dense.mkdir(parents=True)
        write(dense, SHAPES[model])
    if not packed.exists():
        convert(dense, packed, QUANTIZE)
    return Folders(dense, packed)


def _published(source: Path, folder: Path) -> Path:
    """A copy whose configuration leaves out what published ones do."""
    if not folder.exists():
        shutil.copytree(source, folder)
        raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
        del raw["vision_config"]["hidden_act"]
        (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def write(folder: Path, shape: Shape) -> None:
    """Write a random checkpoint in bfloat16 into an empty folder."""
    raw = _small_files(folder, shape)
    mx.random.seed(0)
    part: dict[str, mx.array] = {}
    names: dict[str, str] = {}
    number = total = 0

    def close() -> None:
        nonlocal number
        file = f"model-{number:05}.safetensors"
        mx.save_safetensors(str(folder / file), part, metadata={"format": "pt"})
        names.update(dict.fromkeys(part, file))
        part.clear()
        mx.clear_cache()
        number += 1

    for name, tensor_shape in shapes_of(raw).items():
        part[name] = _random(name, tensor_shape)
        total += part[name].nbytes
        if sum(array.nbytes for array in part.values()) > SHARD_BYTES:
            close()
    close()
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _small_files(folder: Path, shape: Shape) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((DEMO_FOLDER / "config.json").read_text(encoding="utf-8"))
    raw |= {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "max_window_layers": shape.layers,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    raw["vision_config"] |= {
        "depth": shape.vision_depth,
        "embed_dim": shape.vision_width,
        "num_heads": shape.vision_width // 80,
        "hidden_size": shape.hidden,
    }
    # The published files do not say it, and mistral.rs refuses the name.
    del raw["vision_config"]["hidden_act"]
    for name in FILES:
        shutil.copy(DEMO_FOLDER / name, folder / name)
    processor = json.loads((DEMO_FOLDER / "preprocessor_config.json").read_text(encoding="utf-8"))
    processor |= {"min_pixels": 3136, "max_pixels": 12845056}
    processor["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return raw


def _random(name: str, shape: tuple[int, ...]) -> mx.array:
    if len(shape) == 1:
        return mx.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=mx.bfloat16)
    array = mx.random.normal(shape, scale=math.prod(shape[1:]) ** -0.5)
    if name == "model.embed_tokens.weight":
        array = mx.where(mx.arange(shape[0])[:, None] < KNOWN_TOKENS, array, 0)
    array = array.astype(mx.bfloat16)
    mx.eval(array)
    return array
