"""What a picture costs at several pixel budgets, for the shapes of Qwen2-VL-2B.

    python -m benchmarks.pixel_budget [--source 4032x3024] [--blocks 1]

Tokens are counted; the vision tower's time is measured on a few of its 32 blocks with random
weights and given as a ratio to the default budget, since seconds are this machine's alone. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import mlx_qwenvl  # noqa: F401 - loads OpenBLAS before MLX, where there is one

# isort: split
import mlx.core as mx
import numpy as np

from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget, n_tokens_for, smart_resize
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS, TOKEN_PIXELS
from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.vision import VisionTransformer

GEOMETRY = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)
MIN_PIXELS = 3136  # of the published checkpoints
BUDGETS = (256, 640, 1280, 2560)  # tokens
CHECKPOINT_MAX_PIXELS = 12_845_056


def tower(blocks: int) -> VisionTransformer:
    """A tower of the 2B's width with random weights."""
    model = VisionTransformer(
        VisionConfig(
            depth=blocks,
            embed_dim=1280,
            num_heads=16,
            mlp_dim=5120,
            hidden_size=1536,
            in_channels=3,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        TWINS,
    )
    mx.eval(model.parameters())
    return model


def seconds(model: VisionTransformer, height: int, width: int) -> float:
    """Time of one pass over a picture of that size."""
    grid = (1, height // 14, width // 14)
    patches = mx.array(np.zeros((1, grid[1] * grid[2], 588), dtype=np.uint8))
    begin = time.perf_counter()
    mx.eval(model(patches, grid))
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--source", default="4032x3024", help="size of the picture, in pixels")
    p.add_argument("--blocks", type=int, default=1, help="blocks of the tower to run")
    arguments = p.parse_args()
    width, height = map(int, arguments.source.split("x"))
    model = tower(arguments.blocks)
    rows: list[dict[str, Any]] = []
    for tokens in BUDGETS:
        budget = PixelBudget(MIN_PIXELS, tokens * TOKEN_PIXELS)
        new_height, new_width = smart_resize(height, width, 28, MIN_PIXELS, budget.max_pixels)
        rows.append(
            {
                "max_pixels": budget.max_pixels,
                "size": f"{new_width}x{new_height}",
                "tokens": n_tokens_for(width, height, GEOMETRY, budget),
                "seconds": seconds(model, new_height, new_width),
            }
        )
    default = next(row for row in rows if row["max_pixels"] == DEFAULT_MAX_PIXELS)
    for row in rows:
        row["ratio"] = round(row["seconds"] / default["seconds"], 2)
        print("{max_pixels:>10} {size:>12} {tokens:>6} tokens {ratio:>6}x".format(**row))
    whole = PixelBudget(MIN_PIXELS, CHECKPOINT_MAX_PIXELS)
    tokens = n_tokens_for(width, height, GEOMETRY, whole)
    print(f"{CHECKPOINT_MAX_PIXELS:>10} is not run: {tokens} tokens")
    print(json.dumps({"source": arguments.source, "blocks": arguments.blocks, "rows": rows}))


if __name__ == "__main__":
    main()
