"""The launch budgets of a decode step and of a draw."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_qwenvl.engine.options import GREEDY, Options, Sampling
from mlx_qwenvl.engine.sampling import Sampler, draw
from mlx_qwenvl.kernels.ops import METAL, TWINS, Ops
from mlx_qwenvl.models.batch_cache import BatchCache
from mlx_qwenvl.models.config import Config, TextConfig, VisionConfig
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from tests.launches import count_launches

BUDGET = 10  # launches of one layer of the 2B at 4 bits
WITHOUT_KERNELS = 13  # the same where the twins run
VISION = VisionConfig(1, 32, 2, 64, 1536, 3, 14, 2, 2)


def decoder(layers: int, ops: Ops) -> Qwen2VL:
    """The 2B's decoder at 4 bits, with some layers and a small vocabulary."""
    text = TextConfig(512, 1536, layers, 8960, 12, 2, 1e-6, 1e6, (16, 24, 24), 4096, True)
    model = Qwen2VL(Config(VISION, text, 0, 1, 2, 3), ops)
    model.update(tree_map(lambda array: mx.zeros(array.shape, mx.bfloat16), model.parameters()))
    nn.quantize(model.model, group_size=64, bits=4)
    model.merge_projections()
    mx.eval(model.parameters())
    return model


def step(layers: int, ops: Ops, batch: int = 1) -> Counter[str]:
    """Launches of one decode step of rows of one length."""
    model = decoder(layers, ops)
    cache = model.make_cache()
    for layer in cache:
        keys = mx.zeros((batch, 2, 3, 128), mx.bfloat16)
        layer.update_and_fetch(keys, keys)
    return count_launches(lambda tokens: model(tokens, cache), mx.zeros((batch, 1), mx.int32))


def shared_step(layers: int, lengths: tuple[int, ...]) -> Counter[str]:
    """Launches of one decode step of rows of many lengths."""
    model = decoder(layers, METAL)
    rows = BatchCache(layers)
    for length in lengths:
        cache = model.make_cache()
        for layer in cache:
            keys = mx.zeros((1, 2, length, 128), mx.bfloat16)
            layer.update_and_fetch(keys, keys)
        rows.join(cache)
    rows.begin_step()
    inputs = mx.zeros((len(lengths), 1), mx.int32)
    return count_launches(lambda tokens: model(tokens, rows.layers), inputs)


@pytest.mark.parametrize(
    ("lengths", "classes"), [((3, 70, 255, 140), 1), ((3, 300, 5, 400), 2), ((3, 300, 700, 9), 3)]
)
def test_rows_of_many_lengths_keep_to_a_launch_budget(
    lengths: tuple[int, ...], classes: int
) -> None:
    one, three = shared_step(1, lengths), shared_step(3, lengths)
    per_layer = {name: (three[name] - one[name]) / 2 for name in three}
    # A write and an attention for each class, and one launch to join what they give.
    assert sum(per_layer.values()) <= BUDGET + 2 * (classes - 1) + (classes > 1), per_layer
    assert per_layer["QuantizedMatmul"] == 4
    assert per_layer["Scatter"] == classes


def of_a_layer(ops: Ops, batch: int) -> dict[str, float]:
    """Launches that one layer adds."""
    one, three = step(1, ops, batch), step(3, ops, batch)
    return {name: (three[name] - one[name]) / 2 for name in three}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_decode_step_keeps_to_its_launch_budget(batch: int) -> None:
    per_layer = of_a_layer(METAL, batch)
    assert sum(per_layer.values()) <= BUDGET, per_layer
    assert per_layer["CustomKernel"] == 3  # two norms and a rotation
    assert per_layer["QuantizedMatmul"] == 4


@pytest.mark.parametrize("batch", [1, 4])
def test_the_twins_take_as_many_launches_as_the_documents_say(batch: int) -> None:
    assert sum(of_a_layer(TWINS, batch).values()) == WITHOUT_KERNELS


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("sampling", "most"),
    [
        (GREEDY, 2),
        (Sampling(temperature=0.7), 4),
        (Sampling(temperature=0.7, top_p=0.9, top_k=40), 4),
        (Sampling(min_p=0.1), 6),  # which wants the largest probability
    ],
)
def test_a_draw_keeps_to_its_launch_budget(sampling: Sampling, most: int, batch: int) -> None:
    samplers = [Sampler(Options(sampling=sampling), 512, np.arange(3)) for _ in range(batch)]

    def tokens(logits: mx.array) -> mx.array:
        return mx.stack([drawn.token for drawn in draw(logits, samplers, METAL)])

    launches = count_launches(tokens, mx.zeros((batch, 512), mx.bfloat16))
    launches.pop("Concatenate", None)  # the stack that only this test needs
    assert sum(launches.values()) <= most, launches
