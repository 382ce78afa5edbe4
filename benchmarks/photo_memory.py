"""Peak memory of one large photo, for the shapes of Qwen2-VL-2B, measured beside computed.

    python -m benchmarks.photo_memory [--source 4032x3024] [--max-pixels 1003520] [--blocks 2]

Random weights, float32 on a CPU but for the tower's matrices, which keep 16 bits as those of a
checkpoint do; a few blocks of the tower and layers of the decoder, since what is passed from one to
the next does not pile up (`tests/test_attention.py` shows that). One picture a process, because the
process's own peak is told too. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import mlx_qwenvl  # noqa: F401 - loads OpenBLAS before MLX, where there is one

# isort: split
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.facts import backend_here
from mlx_qwenvl.inputs.image import ImageGeometry, ImagePatches, smart_resize
from mlx_qwenvl.inputs.prompt import ImageSlot, Prompt
from mlx_qwenvl.models.config import Config, TextConfig, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.describe import Description
from mlx_qwenvl.weights.load import stays_narrow
from mlx_qwenvl.weights.memory import memory_needed

GEOMETRY = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)


def shape(blocks: int) -> Config:
    """The 2B with few blocks and layers, its vocabulary cut: that is weights and nothing else."""
    vision = VisionConfig(blocks, 1280, 16, 5120, 1536, 3, 14, 2, 2)
    text = TextConfig(2048, 1536, blocks, 8960, 12, 2, 1e-6, 1e6, (16, 24, 24), 32768, True)
    return Config(vision, text, 2000, 2001, 2002, 2003)


def photo(source: tuple[int, int], max_pixels: int) -> ImagePatches:
    """Patches of noise for a photo of that width and height, as it is resized."""
    height, width = smart_resize(source[1], source[0], 28, 3136, max_pixels)
    grid = (1, height // 14, width // 14)
    noise = np.random.default_rng(0).integers(0, 256, (grid[1] * grid[2], 588), dtype=np.uint8)
    return ImagePatches(noise, grid, source, (width, height), GEOMETRY)


def _as_loaded(name: str, array: mx.array) -> mx.array:
    return array.astype(mx.bfloat16) if stays_narrow(name, array.shape) else array


def held_at_most(compute: Any) -> tuple[int, float]:
    """Bytes that MLX held at most beyond what it held before, and seconds."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    begin = time.perf_counter()
    compute()
    return mx.get_peak_memory() - before, round(time.perf_counter() - begin, 1)


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--source", default="4032x3024", help="size of the photo, in pixels")
    p.add_argument("--max-pixels", type=int, default=1_003_520)
    p.add_argument("--blocks", type=int, default=2, help="of the tower, and layers")
    arguments = p.parse_args()
    config = shape(arguments.blocks)
    width, height = map(int, arguments.source.split("x"))
    image = photo((width, height), arguments.max_pixels)
    model = build(config)
    tower = tree_map_with_path(_as_loaded, model.visual.parameters(), path="visual")
    model.visual.update(tower)
    mx.eval(model.parameters())
    ids = np.full(image.n_tokens + 32, config.image_token_id, dtype=np.int32)
    ids[:16], ids[-16:] = 7, 8
    prompt = Prompt(ids, (ImageSlot(16, image),))
    needed = memory_needed(
        Description(config, (), has_narrow_tower=model.visual.is_narrow),
        backend_here(),
        context=ids.size,
        patches=image.patches.shape[0],
        prefill_step=PREFILL_STEP,
    )
    conversation = Conversation(model)
    resident = _resident()
    features: dict[bytes, mx.array] = {}
    tower, tower_s = held_at_most(lambda: features.update(encode_images(model, [image])))
    store = FeatureStore(2**40)
    store.put(image.digest, features.pop(image.digest))
    read, read_s = held_at_most(
        lambda: mx.eval(prefill(model, conversation, prompt, step=PREFILL_STEP, store=store).logits)
    )
    figures = {
        "photo": arguments.source,
        "resized": image.size,
        "patches": image.patches.shape[0],
        "prompt_tokens": ids.size,
        "tower_bytes": tower,
        "tower_computed": needed.vision,
        "tower_s": tower_s,
        "prompt_bytes": read,
        "prompt_computed": needed.kv_cache + needed.prefill,
        "prompt_s": read_s,
        "resident_before": resident,
        "resident_at_most": _resident(),
    }
    print(json.dumps(figures))


def _resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
