"""Windows: what is where, and that attention within them is attention under a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.models import rows, windows
from mlx_qwenvl.models.windowed_config import WindowedVisionConfig
from mlx_qwenvl.models.windowed_vision import WindowedTransformer
from mlx_qwenvl.models.windows import Run, attend_windows, windows_of

SCALE = 8**-0.5


def test_a_picture_of_5_by_3_tokens_has_the_windows_worked_by_hand() -> None:
    # Tokens 0 to 14 in three columns, windows of two by two from the upper left:
    #     0  1 |  2        full ones: 0 1 3 4 and 6 7 9 10; at the right edge 2 5 and 8 11;
    #     3  4 |  5        below 12 13; in the corner 14.
    #     -----+---
    #     6  7 |  8
    #     9 10 | 11
    #     -----+---
    #    12 13 | 14
    found = windows_of(5, 3, merge_size=1, side=2)
    assert found.order.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11, 12, 13, 14]
    assert found.runs == (Run(0, 2, 4), Run(8, 2, 2), Run(12, 1, 2), Run(14, 1, 1))
    assert found.order[found.back].tolist() == list(range(15))


def test_the_patches_of_a_token_stay_together() -> None:
    found = windows_of(4, 6, merge_size=2, side=1)
    assert found.order.tolist() == list(range(24))
    found = windows_of(8, 12, merge_size=2, side=2)
    assert found.order.reshape(-1, 4)[:, 0].tolist() == [
        4 * t for t in (0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19)
    ] + [4 * t for t in (14, 15, 20, 21, 16, 17, 22, 23)]
    assert found.runs == (Run(0, 6, 16),)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 16), (18, 10), (6, 22), (10, 2)])
@pytest.mark.parametrize("few", [True, False], ids=["few scores", "many scores"])
def test_attention_in_windows_is_attention_under_a_mask(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, few: bool
) -> None:
    found, count = windows_of(height, width, merge_size=2, side=2), height * width
    if few:
        monkeypatch.setattr(windows, "SCORE_BYTES", 20_000)  # some windows at once
    q, k, v = (mx.random.normal((2, 3, count, 8), key=mx.random.key(i)) for i in range(3))
    window = np.concatenate(
        [np.arange(r.count).repeat(r.size) + 100 * i for i, r in enumerate(found.runs)]
    )
    mask = mx.array(window[:, None] == window)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask)
    whole = attend_windows(q, k, v, SCALE, found.runs)
    np.testing.assert_allclose(np.array(whole), np.array(expected), rtol=0, atol=1e-5)
    for step in (1, 7, 24):  # slices that cut windows anywhere
        parts = [
            attend_windows(q[:, :, i : i + step], k, v, SCALE, found.runs, i)
            for i in range(0, count, step)
        ]
        joined = np.concatenate([np.array(part) for part in parts], axis=2)
        np.testing.assert_allclose(joined, np.array(expected), rtol=0, atol=1e-5)


def tower() -> WindowedTransformer:
    config = WindowedVisionConfig(3, 32, 2, 48, 16, 3, 14, 2, 2, 56, (1,), 2.0)
    mx.random.seed(7)
    made = WindowedTransformer(config, TWINS)
    mx.eval(made.parameters())
    return made


def pixels(grid: tuple[int, int, int]) -> mx.array:
    shape = (2, grid[0] * grid[1] * grid[2], 3 * 14 * 14)
    return mx.random.randint(0, 256, shape, key=mx.random.key(3)).astype(mx.uint8)


@pytest.mark.parametrize("grid", [(1, 10, 6), (3, 6, 10)], ids=["stills", "frames"])
def test_block_by_block_and_in_slices_the_tower_gives_the_same(grid: tuple[int, int, int]) -> None:
    made, patches = tower(), pixels(grid)
    whole = np.array(made(patches, grid))
    look = made.begin(patches, grid)
    for _ in range(3):
        count = look.x.shape[1]
        parts = [made.project(look, slice(i, i + 13)) for i in range(0, count, 13)]
        q, k, v = (mx.concatenate(list(part), axis=2) for part in zip(*parts, strict=True))
        done = [
            made.pass_block(look, slice(i, min(i + 11, count)), q, k, v)
            for i in range(0, count, 11)
        ]
        look = advanced(look, mx.concatenate(done, axis=1))
    np.testing.assert_allclose(np.array(made.finish(look)), whole, rtol=0, atol=1e-5)


def advanced(look: Any, x: mx.array) -> Any:
    return replace(look, x=x, blocks=look.blocks + 1)


def test_a_large_picture_goes_by_rows_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, grid = tower(), (1, 10, 6)
    whole = np.array(made(pixels(grid), grid))
    monkeypatch.setattr(rows, "WHOLE_ROWS", 16)
    monkeypatch.setattr(rows, "BLOCK_ROWS", 8)
    np.testing.assert_allclose(np.array(made(pixels(grid), grid)), whole, rtol=0, atol=1e-5)


def test_each_frame_and_each_picture_is_seen_alone() -> None:
    made, patches = tower(), pixels((1, 10, 6))
    both = np.array(made(patches, (1, 10, 6)))
    for row in range(2):
        alone = np.array(made(patches[row : row + 1], (1, 10, 6)))
        np.testing.assert_allclose(alone[0], both[row], rtol=0, atol=1e-5)
    as_frames = np.array(made(patches.reshape(1, 120, -1), (2, 10, 6)))
    np.testing.assert_allclose(as_frames.reshape(both.shape), both, rtol=0, atol=1e-5)
