"""Dense layers give one product, in whichever form it is computed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.models import linear
from mlx_qwenvl.models.linear import Dense, DenseEmbedding, is_column


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
