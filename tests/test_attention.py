"""Attention and row-wise work by blocks: the same numbers as at once, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.models import attention, rows
from mlx_qwenvl.models.attention import attend, blocks_for
from mlx_qwenvl.models.config import VisionConfig
from mlx_qwenvl.models.rows import by_rows
from mlx_qwenvl.models.vision import VisionTransformer

TOLERANCE = 2e-6  # float32 sums in another order

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="blocks are for the CPU")


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(part.astype(np.float64), repeats, axis=1) for part in (k, v))
    scores = np.where(allowed, q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out: np.ndarray = weights @ v / weights.sum(axis=-1, keepdims=True)
    return out


def peak_of(compute: Callable[[], mx.array]) -> int:
    """Bytes that MLX held at most beyond what it held before."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(compute())
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("kind", ["none", "causal", "rows", "heads", "keys"])
@pytest.mark.parametrize(("score_bytes", "least_rows"), [(1, 1), (1, 9), (6000, 4), (2**30, 64)])
@pytest.mark.parametrize("shape", [(1, 4, 4, 19, 19), (2, 6, 2, 7, 23), (1, 6, 2, 150, 171)])
def test_blocks_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int, int, int],
    score_bytes: int,
    least_rows: int,
    kind: str,
) -> None:
    monkeypatch.setattr(attention, "SCORE_BYTES", score_bytes)
    monkeypatch.setattr(attention, "LEAST_ROWS", least_rows)
    batch, heads, groups, length, total = shape
    q = random(1, batch, heads, length, 24)
    k, v = random(2, batch, groups, total, 24), random(3, batch, groups, total, 24)
    causal = np.tril(np.ones((length, total), bool), total - length)
    rng = np.random.default_rng(4)
    allowed = {
        "none": np.ones((length, total), bool),
        "causal": causal,
        "rows": causal,
        "heads": rng.random((1, heads, length, total)) < 0.5,
        "keys": rng.random((batch, 1, 1, total)) < 0.5,
    }[kind]
    allowed[..., 0] = True
    mask = None if kind == "none" else "causal" if kind == "causal" else mx.array(allowed)
    out = attend(mx.array(q), mx.array(k), mx.array(v), 24**-0.5, mask)
    expected = reference(q, k, v, np.broadcast_to(allowed, (batch, heads, length, total)))
    np.testing.assert_allclose(np.array(out), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 6, 2, 200, 32), (3, 7, 7, 1, 24), (2, 8, 1, 65, 128)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(mx.float32, TOLERANCE), (mx.float16, 2e-3), (mx.bfloat16, 2e-2)]
)
def test_attention_of_one_token_equals_the_definition(
    shape: tuple[int, int, int, int, int], dtype: mx.Dtype, tolerance: float
) -> None:
    batch, heads, groups, total, width = shape
    # As a decode step has them: heads behind tokens, and keys with spare room behind them.
    q = mx.array(random(1, batch, 1, heads, width)).astype(dtype).swapaxes(1, 2)
    k, v = (
        mx.array(random(seed, batch, groups, total + 9, width)).astype(dtype)[:, :, :total]
        for seed in (2, 3)
    )
    wide = [np.array(array.astype(mx.float32)) for array in (q, k, v)]
    q_wide, k_wide, v_wide = wide
    want = reference(q_wide, k_wide, v_wide, np.ones((1, total), dtype=bool))
    got = attend(q, k, v, width**-0.5)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, atol=tolerance)


def test_memory_of_attention_does_not_grow_with_the_square_of_the_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "SCORE_BYTES", 2**20)
    monkeypatch.setattr(attention, "LEAST_ROWS", 16)

    def peak(length: int) -> int:
        q, k, v = (mx.array(random(seed, 1, 8, length, 16)) for seed in range(3))
        mx.eval(q, k, v)
        return peak_of(lambda: attend(q, k, v, 0.25))

    small, large = peak(1000), peak(2000)
    assert large < 2000**2 * 8 * 4 // 2  # half of the scores
    assert large < 2 * small


def test_scores_of_a_block_are_bounded_for_a_photo_at_the_checkpoints_own_limit() -> None:
    vision = blocks_for(1, 16, 1, 62208, 62208)
    decoder = blocks_for(1, 2, 6, 1024, 32768)
    assert vision.nbytes <= 64e6 and vision.rows >= 256
    assert decoder.nbytes <= 64e6 and decoder.rows * 6 >= 256


def tower(depth: int = 2) -> VisionTransformer:
    mx.random.seed(0)
    model = VisionTransformer(VisionConfig(depth, 64, 2, 256, 48, 3, 14, 2, 2), TWINS)
    mx.eval(model.parameters())
    return model


def test_a_tower_by_blocks_of_rows_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower()
    patches = mx.array(np.random.default_rng(0).integers(0, 256, (1, 96, 588), dtype=np.uint8))
    whole = np.array(model(patches, (1, 8, 12)))
    for block in (1, 7, 24, 95):
        monkeypatch.setattr(rows, "WHOLE_ROWS", block)
        monkeypatch.setattr(rows, "BLOCK_ROWS", block)
        cut = np.array(model(patches, (1, 8, 12)))
        np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_by_rows_tells_which_rows_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WHOLE_ROWS", 3)
    monkeypatch.setattr(rows, "BLOCK_ROWS", 3)
    x = mx.array(random(5, 2, 8, 4))
    seen: list[tuple[int, int]] = []

    def note(part: mx.array, at: slice) -> tuple[mx.array, ...]:
        seen.append((at.start, at.stop))
        return part, part.transpose(0, 2, 1)

    turned = by_rows(lambda part, at: note(part, at)[1:], x, axis=2)[0]
    assert seen == [(0, 3), (3, 6), (6, 8)]
    np.testing.assert_array_equal(np.array(by_rows(note, x[:, :3])[0]), np.array(x[:, :3]))
    np.testing.assert_array_equal(np.array(turned), np.array(x).transpose(0, 2, 1))


def test_the_towers_peak_does_not_grow_with_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WHOLE_ROWS", 128)
    monkeypatch.setattr(rows, "BLOCK_ROWS", 128)
    patches = mx.zeros((1, 1024, 588), mx.uint8)
    mx.eval(patches)

    def peak(model: VisionTransformer) -> int:
        return peak_of(lambda: model(patches, (1, 32, 32)))

    peaks = [peak(tower(depth)) for depth in (2, 8)]
    assert peaks[1] < 1.1 * peaks[0]
