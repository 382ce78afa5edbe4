"""A published model's true shapes with random weights: does the whole path hold at full size?

    python -m benchmarks.full_shape FOLDER [--size 2b] [--quantize 4bit] [--image 448x448]

Writes a checkpoint of that size into FOLDER (once; 4.4 GB for the 2B), quantizes it with the
converter into FOLDER-RECIPE, loads that and answers. The tokens mean nothing; times are this
machine's alone. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from mlx_qwenvl import load

# isort: split
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from convert import convert
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.resolve import DEMO_FOLDER

SHARD_TENSORS = 120  # tensors of one file
# Width, layers, MLP, heads, key-value heads, vocabulary, tied head.
SIZES = {
    "2b": (1536, 28, 8960, 12, 2, 151936, True),
    "7b": (3584, 28, 18944, 28, 4, 152064, False),
    "72b": (8192, 80, 29568, 64, 8, 152064, False),
}


def write(folder: Path, size: str, shards: int | None = None) -> None:
    """Write a checkpoint of a published shape with the demo's tokenizer and template.

    Args:
        folder: A folder that does not exist yet.
        size: One of `SIZES`.
        shards: Number of files; by default one for every `SHARD_TENSORS` tensors.
    """
    folder.mkdir(parents=True)
    shapes = shapes_of(write_small_files(folder, size))
    names = list(shapes)
    count = SHARD_TENSORS if shards is None else math.ceil(len(names) / shards)
    for number, begin in enumerate(range(0, len(names), count)):
        part = {n: _random(n, shapes[n]) for n in names[begin : begin + count]}
        mx.save_safetensors(str(folder / f"model-{number:03}.safetensors"), part)
        mx.clear_cache()


def write_small_files(folder: Path, size: str, layers: int | None = None) -> dict[str, Any]:
    """Write everything but the weights, and give the configuration.

    Args:
        folder: An empty folder.
        size: One of `SIZES`.
        layers: Decoder layers, where they are to be fewer than published.
    """
    hidden, published_layers, mlp, heads, kv_heads, vocabulary, tied = SIZES[size]
    raw: dict[str, Any] = json.loads((DEMO_FOLDER / "config.json").read_text())
    raw |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers or published_layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    raw["vision_config"] |= {
        "depth": 32,
        "embed_dim": 1280,
        "num_heads": 16,
        "mlp_ratio": 4,
        "hidden_size": hidden,
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO_FOLDER / name, folder / name)
    processor = json.loads((DEMO_FOLDER / "preprocessor_config.json").read_text())
    processor |= {"min_pixels": 3136, "max_pixels": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def shapes_of(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a checkpoint with a configuration, by their names."""
    parameters = tree_flatten(build(Config.from_dict(raw)).parameters())
    shapes = {name: tuple(array.shape) for name, array in parameters}
    del shapes[f"{PATCH_EMBED}.bias"], shapes[f"{PATCH_EMBED}.motion"]
    shapes[f"{PATCH_EMBED}.weight"] = (raw["vision_config"]["embed_dim"], 3, 2, 14, 14)
    return shapes


def _random(name: str, shape: tuple[int, ...]) -> mx.array:
    if len(shape) == 1:
        return mx.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=mx.bfloat16)
    fan_in = int(np.prod(shape[1:]))
    array = mx.random.normal(shape, scale=fan_in**-0.5).astype(mx.bfloat16)
    mx.eval(array)
    return array


def main() -> None:
    """Write, convert, load, answer, and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--size", choices=SIZES, default="2b")
    p.add_argument("--quantize", default="4bit")
    p.add_argument("--image", default="448x448")
    p.add_argument("--tokens", type=int, default=8)
    arguments = p.parse_args()
    if not arguments.folder.exists():
        write(arguments.folder, arguments.size)
    packed = arguments.folder.with_name(f"{arguments.folder.name}-{arguments.quantize}")
    figures: dict[str, Any] = {"size": arguments.size, "quantize": arguments.quantize}
    if not packed.exists():
        begin = time.perf_counter()
        convert(arguments.folder, packed, arguments.quantize)
        figures["convert_s"] = round(time.perf_counter() - begin, 1)
    vlm = load(packed)
    width, height = map(int, arguments.image.split("x"))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    reply = vlm.generate(
        "Describe this image.", images=[noise], temperature=0, max_tokens=arguments.tokens
    )
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    per_unit = 1 if sys.platform == "darwin" else 1024
    figures |= {"resident_bytes": kilobytes * per_unit, **reply.to_dict()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
