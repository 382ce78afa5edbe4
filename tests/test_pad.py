"""Padding the MLP changes shapes and no number."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_qwenvl import OptionError, load
from mlx_qwenvl.models.config import TextConfig
from mlx_qwenvl.models.text import MLP
from mlx_qwenvl.weights.pad import FAST_COLUMNS, pad_mlp


def quantized_mlp(bits: int, group_size: int, width: int = 320) -> MLP:
    mx.random.seed(bits)
    text = TextConfig(64, 128, 1, width, 2, 1, 1e-6, 1e6, (16, 8, 8), 64, True)
    mlp = MLP(text)
    nn.quantize(mlp, group_size=group_size, bits=bits)
    return mlp


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("merged", [False, True])
def test_a_padded_mlp_computes_the_same(bits: int, group_size: int, merged: bool) -> None:
    plain, padded = (quantized_mlp(bits, group_size) for _ in range(2))
    pad_mlp(padded)
    assert padded.down_proj.scales.shape[1] * group_size % FAST_COLUMNS[bits] == 0
    if merged:
        plain.merge_projections()
        padded.merge_projections()
    x = mx.random.normal((1, 3, 128), key=mx.random.key(1))
    np.testing.assert_allclose(np.array(padded(x)), np.array(plain(x)), rtol=0, atol=1e-6)


def test_the_padding_stands_for_zeros() -> None:
    plain, padded = (quantized_mlp(4, 64) for _ in range(2))
    pad_mlp(padded)
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        before, after = (
            np.array(mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=64, bits=4))
            for layer in (plain[name], padded[name])
        )
        kept, added = np.split(after, [320], axis=axis)
        np.testing.assert_array_equal(kept, before)
        assert added.shape[axis] == 512 - 320
        assert not added.any()


def test_aligned_and_dense_mlps_stay_as_they_are() -> None:
    aligned = quantized_mlp(4, 64, width=512)
    dense = MLP(TextConfig(64, 128, 1, 320, 2, 1, 1e-6, 1e6, (16, 8, 8), 64, True))
    for mlp in (aligned, dense):
        shape = mlp.down_proj.weight.shape
        pad_mlp(mlp)
        assert mlp.down_proj.weight.shape == shape


def test_loading_pads_where_it_is_asked_to(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(switch: str) -> tuple[int, list[int]]:
        monkeypatch.setenv("MLX_QWENVL_PAD_MLP", switch)
        vlm = load(tiny_folder, dtype="float32", quantize="4bit")
        reply = vlm.generate("Say it.", max_tokens=8, temperature=0)
        return vlm.model.layers[0].mlp.down_proj.weight.shape[1], list(reply.token_ids)

    (narrow, plain), (wide, padded) = loaded("off"), loaded("on")
    assert (wide * 8) % FAST_COLUMNS[4] == 0
    assert wide > narrow
    assert padded == plain


def test_another_value_of_the_switch_is_refused(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_QWENVL_PAD_MLP", "yes")
    with pytest.raises(OptionError, match="MLX_QWENVL_PAD_MLP is 'yes'; expected on or off"):
        load(tiny_folder)
