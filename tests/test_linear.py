"""Layers give one product, in whichever form it is computed and its weight is held."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_qwenvl import QwenVL
from mlx_qwenvl.models import linear
from mlx_qwenvl.models.linear import Dense, DenseEmbedding, WideningLinear, is_column
from mlx_qwenvl.models.vision import VisionTransformer


@pytest.mark.parametrize("shape", [(40,), (1, 40), (1, 1, 40), (1, 3, 40), (2, 1, 40)])
@pytest.mark.parametrize("column_numbers", [1, 10**9])
def test_one_row_and_many_give_the_product(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], column_numbers: int
) -> None:
    monkeypatch.setattr(linear, "COLUMN_NUMBERS", column_numbers)
    rng = np.random.default_rng(7)
    x = rng.standard_normal(shape).astype(np.float32)
    for bias in (True, False):
        layer = Dense(40, 24, bias=bias)
        weight = np.array(layer.weight, dtype=np.float64)
        want = x @ weight.T + (np.array(layer.bias) if bias else 0)
        got = layer(mx.array(x))
        assert got.shape == (*shape[:-1], 24)
        np.testing.assert_allclose(np.array(got), want, atol=1e-6)
    head = DenseEmbedding(24, 40)
    want = x @ np.array(head.weight, dtype=np.float64).T
    np.testing.assert_allclose(np.array(head.as_linear(mx.array(x))), want, atol=1e-6)


def test_only_one_row_of_a_large_weight_is_a_column() -> None:
    large, small = mx.zeros((1024, 1024)), mx.zeros((1024, 64))
    assert is_column(mx.zeros((1, 1, 1024)), large)
    assert not is_column(mx.zeros((1, 2, 1024)), large)
    assert not is_column(mx.zeros((1, 1, 64)), small)


@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_narrow_weight_gives_exactly_what_the_widened_one_gives(
    stored: mx.Dtype, bias: bool
) -> None:
    x = mx.random.normal((2, 5, 40), key=mx.random.key(1))
    layer = WideningLinear(40, 24, bias=bias)
    layer.weight = layer.weight.astype(stored)
    narrow = layer(x)
    layer.weight = layer.weight.astype(mx.float32)
    assert narrow.dtype == mx.float32
    assert mx.array_equal(narrow, layer(x))


def test_a_tower_of_16_bits_is_held_so_and_looks_as_the_widened_one(demo: QwenVL) -> None:
    tower = demo.model.visual
    held = dict(tree_flatten(tower.parameters()))
    matrices = {n: a for n, a in held.items() if a.ndim == 2 and "patch_embed" not in n}
    assert {array.dtype for array in matrices.values()} == {mx.bfloat16}
    assert tower.is_narrow
    wide = VisionTransformer(demo.config.vision, demo.model.ops)
    wide.update(tree_map(lambda array: array.astype(mx.float32), tower.parameters()))
    assert not wide.is_narrow
    noise = np.random.default_rng(3).integers(0, 256, (1, 24, 588), dtype=np.uint8)
    patches = mx.array(noise)
    assert mx.array_equal(tower(patches, (1, 4, 6)), wide(patches, (1, 4, 6)))
