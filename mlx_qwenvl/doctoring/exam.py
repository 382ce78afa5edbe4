"""A process of its own that takes the self-test and prints one object for each stage.

The embedded model is asked what only seeing tells, and numbers are compared with NumPy's. No
network is asked.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

from mlx_qwenvl.vlm import QwenVL, load  # before MLX, which is to find OpenBLAS loaded

# isort: split
import mlx.core as mx
import numpy as np
from PIL import Image, ImageDraw

from mlx_qwenvl.weights.resolve import DEMO

QUESTION = "What color is the circle?"
COLORS = ("red", "blue")  # each a picture; nobody who does not look is right twice
SIZE = 168  # pixels of a side

# Shares of the largest number. A GPU may round factors to 10 bits (TF32) and keeps activations in
# 16 bits; what is broken is off by far more.
PRODUCT_TOLERANCE = 5e-3
LOGIT_TOLERANCE = 5e-2


def main() -> None:
    """Go through the stages and print each."""
    begin = time.perf_counter()
    vlm = load(DEMO, disk_cache=False)
    _say("loads", begin, {})

    begin = time.perf_counter()
    answers = {
        color: vlm.generate(QUESTION, images=[circle(color)], temperature=0, max_tokens=12).text
        for color in COLORS
    }
    _say("sees", begin, {"question": QUESTION, "answers": answers, "right": is_right(answers)})

    begin = time.perf_counter()
    _say("products", begin, _compared(worst_product(), PRODUCT_TOLERANCE))

    if mx.default_device() != mx.cpu:
        begin = time.perf_counter()
        here = logits(vlm)
        mx.set_default_device(mx.cpu)
        there = logits(load(DEMO, dtype="float32", disk_cache=False))
        _say("logits", begin, _compared(apart(here, there), LOGIT_TOLERANCE))


def circle(color: str) -> Image.Image:
    """A picture of a plain circle."""
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    low, high = SIZE * 0.2, SIZE * 0.7
    ImageDraw.Draw(picture).ellipse((low, low, high, high), fill=color)
    return picture


def is_right(answers: dict[str, str]) -> bool:
    """Whether each answer names its color and no other."""
    return all(
        [other for other in answers if other in text.lower()] == [color]
        for color, text in answers.items()
    )


def logits(vlm: QwenVL) -> np.ndarray:
    """Logits [L, V] of a question about a circle, in float64."""
    return vlm.logits(QUESTION, images=[circle(COLORS[0])]).astype(np.float64)


def apart(here: np.ndarray, there: np.ndarray) -> float:
    """The largest difference of two arrays as a share of the largest number in the second."""
    return float(np.abs(here - there).max() / np.abs(there).max())


def worst_product() -> float:
    """How far MLX's products and attention in float32 are from NumPy's in float64, at worst."""
    draw = np.random.default_rng(0)

    def drawn(*shape: int) -> mx.array:
        return mx.array(draw.standard_normal(shape).astype(np.float32))

    worst = []
    for rows in (1, 48):  # a matrix with a vector, and with another matrix
        x, w = drawn(rows, 320), drawn(192, 320)
        worst.append(apart(_exact(x @ w.T), _exact(x) @ _exact(w).T))
        packed = mx.quantize(w, group_size=64, bits=4)
        dense = mx.dequantize(*packed, group_size=64, bits=4)
        product = mx.quantized_matmul(x, *packed, group_size=64, bits=4)
        worst.append(apart(_exact(product), _exact(x) @ _exact(dense).T))
    q, k, v = (drawn(1, 4, 40, 64) for _ in range(3))
    attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125)
    weights = np.exp(0.125 * _exact(q) @ _exact(k).swapaxes(2, 3))
    weights /= weights.sum(axis=3, keepdims=True)
    worst.append(apart(_exact(attended), weights @ _exact(v)))
    return float(np.max(worst))  # NaN where one is


def _exact(array: mx.array) -> np.ndarray:
    return np.array(array, dtype=np.float64)


def _compared(worst: float, tolerance: float) -> dict[str, float | None]:
    """Numbers as JSON has them, which knows no NaN."""
    return {"worst": worst if math.isfinite(worst) else None, "tolerance": tolerance}


def _say(stage: str, begin: float, what: dict[str, Any]) -> None:
    seconds = round(time.perf_counter() - begin, 3)
    print(json.dumps({"stage": stage, "seconds": seconds, **what}), flush=True)


if __name__ == "__main__":
    main()
