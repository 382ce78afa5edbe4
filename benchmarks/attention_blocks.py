"""What attention by blocks costs in time, beside one call, for the shapes of Qwen2-VL-2B.

    python -m benchmarks.attention_blocks [--pairs 15]

Both in one process, in turns; medians and the quartiles of the ratios. On a GPU with a fused kernel
they are the same call.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median, quantiles

import mlx_qwenvl  # noqa: F401 - loads OpenBLAS before MLX, where there is one

# isort: split
import mlx.core as mx

from mlx_qwenvl.models.attention import attend

LEAST_S = 0.01  # seconds that one measurement takes at least
CASES = {  # Q, G, L, T, D, mask
    "decode, 300 tokens": (12, 2, 1, 300, 128, None),
    "decode, 4096 tokens": (12, 2, 1, 4096, 128, None),
    "prefill, 32 tokens": (12, 2, 32, 32, 128, "causal"),
    "prefill, 128 tokens": (12, 2, 128, 128, 128, "causal"),
    "prefill, 256 tokens": (12, 2, 256, 256, 128, "causal"),
    "prefill, 1024 tokens": (12, 2, 1024, 1024, 128, "causal"),
    "16 tokens behind 1024": (12, 2, 16, 1040, 128, "causal"),
    "200 tokens behind 1024": (12, 2, 200, 1224, 128, "causal"),
    "vision, 256 patches": (16, 16, 256, 256, 80, None),
    "vision, 1024 patches": (16, 16, 1024, 1024, 80, None),
    "vision, 2048 patches": (16, 16, 2048, 2048, 80, None),
}


def seconds(compute: partial[mx.array], times: int) -> float:
    """Of one run, when it is run so often."""
    begin = time.perf_counter()
    for _ in range(times):
        mx.eval(compute())
    return (time.perf_counter() - begin) / times


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--pairs", type=int, default=15)
    pairs = p.parse_args().pairs
    for name, (heads, groups, length, total, width, mask) in CASES.items():
        q = mx.random.normal((1, heads, length, width))
        k, v = (mx.random.normal((1, groups, total, width)) for _ in range(2))
        mx.eval(q, k, v)
        whole = partial(mx.fast.scaled_dot_product_attention, q, k, v, scale=width**-0.5, mask=mask)
        blocks = partial(attend, q, k, v, width**-0.5, mask)
        warm = max(seconds(whole, 1), seconds(blocks, 1))
        times = max(1, int(LEAST_S / warm))
        measured = [(seconds(whole, times), seconds(blocks, times)) for _ in range(pairs)]
        low, _, high = quantiles(cut / one for one, cut in measured)
        at_once, by_blocks = (median(column) * 1e3 for column in zip(*measured, strict=True))
        print(
            f"{name:24} one call {at_once:9.3f} ms, blocks {by_blocks:9.3f} ms, "
            f"ratio {median(cut / one for one, cut in measured):.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
