"""Rows of many lengths: each attends to its own tokens, whoever joins, grows or leaves."""

from __future__ import annotations

import weakref

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.models.batch_cache import BatchCache, Row
from mlx_qwenvl.models.cache import GROWTH, KVCache, LayerCache, Positions
from mlx_qwenvl.models.quantized_cache import KVFormat, QuantizedKVCache

LAYERS, HEADS, GROUPS, WIDTH = 2, 4, 2, 8
SCALE = WIDTH**-0.5
TOLERANCE = 1e-5  # float32 against float64


class Sequence:
    """A sequence as float64 NumPy has it."""

    def __init__(self, length: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.kv = [self.random.normal(size=(2, GROUPS, length, WIDTH)) for _ in range(LAYERS)]
        self.positions = Positions()
        self.positions.rope_delta = -seed

    def caches(self, form: KVFormat | None = None) -> list[LayerCache]:
        """The same in caches of its own."""
        made: list[LayerCache] = []
        for kv in self.kv:
            layer = KVCache(self.positions)
            if form is not None:
                layer = QuantizedKVCache(self.positions, form.for_heads(32))
            layer.update_and_fetch(*mx.array(kv[:, None].astype(np.float32)))
            made.append(layer)
        return made

    def append(self, layer: int) -> np.ndarray:
        """A token's keys and values [2, G, 1, D]."""
        new = self.random.normal(size=(2, GROUPS, 1, WIDTH))
        self.kv[layer] = np.concatenate([self.kv[layer], new], axis=2)
        return new

    def attend(self, layer: int, q: np.ndarray) -> np.ndarray:
        """Attention of q [Q, D] to all tokens."""
        keys, values = np.repeat(self.kv[layer], HEADS // GROUPS, axis=1)
        scores = np.einsum("qd,qtd->qt", q, keys) * SCALE
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out = np.einsum("qt,qtd->qd", weights / weights.sum(axis=1, keepdims=True), values)
        return np.asarray(out)


def step(batch: BatchCache, of: dict[Row, Sequence]) -> None:
    """One step of all rows, held against NumPy; places are checked too."""
    lengths = {row: row.length for row in of}
    batch.begin_step()
    rows = [of[row] for row in batch.rows]
    assert len(rows) == len(of)
    stand = batch.layers[0].positions.at(0, 1)
    want = [lengths[row] + of[row].positions.rope_delta for row in batch.rows]
    assert stand.shape == (3, len(rows), 1) and stand[0, :, 0].tolist() == want
    for index, layer in enumerate(batch.layers):
        q = np.random.default_rng(index).normal(size=(len(rows), HEADS, WIDTH))
        kv = np.stack([sequence.append(index) for sequence in rows], axis=1)
        out = layer.attend(
            mx.array(q[:, :, None].astype(np.float32)), mx.array(kv.astype(np.float32)), SCALE, None
        )
        right = np.stack(
            [sequence.attend(index, one) for sequence, one in zip(rows, q, strict=True)]
        )
        np.testing.assert_allclose(np.array(out)[:, :, 0], right, rtol=0, atol=TOLERANCE)


def test_each_row_attends_to_its_own_tokens() -> None:
    batch, of = BatchCache(LAYERS), {}
    for seed, length in enumerate((3, 300, 1, 255, 256, 600)):
        sequence = Sequence(length, seed)
        of[batch.join(sequence.caches())] = sequence
        step(batch, of)
    for row in list(of)[:4]:
        batch.leave(row)
        del of[row]
        step(batch, of)


def test_a_row_that_outgrows_its_class_moves_on_and_others_stay() -> None:
    batch = BatchCache(LAYERS)
    sequences = [Sequence(length, seed) for seed, length in enumerate((GROWTH - 2, 5, GROWTH - 1))]
    of = {batch.join(sequence.caches()): sequence for sequence in sequences}
    small = batch.nbytes
    moves = []
    for _ in range(4):
        moves.append(batch.moves())
        step(batch, of)
    assert moves == [False, True, True, False]
    assert batch.nbytes == small + 2 * (small // 4) * 2  # a class of two slots, twice as long
    for row in list(of):
        batch.leave(row)
    assert batch.nbytes == 0


def test_a_row_is_copied_out_as_it_stands() -> None:
    batch = BatchCache(LAYERS)
    sequences = [Sequence(length, seed) for seed, length in enumerate((40, 7, 41))]
    of = {batch.join(sequence.caches()): sequence for sequence in sequences}
    step(batch, of)
    batch.leave(next(iter(of)))
    for row, sequence in list(of.items())[1:]:
        copied = batch.copied(row)
        assert copied[0].positions is copied[1].positions
        assert copied[0].positions.rope_delta == sequence.positions.rope_delta
        for layer, kv in zip(copied, sequence.kv, strict=True):
            assert layer.offset == kv.shape[2]
            np.testing.assert_array_equal(np.array(layer.state[0][0]), kv[0].astype(np.float32))
            np.testing.assert_array_equal(np.array(layer.state[1][0]), kv[1].astype(np.float32))


def test_nothing_is_left_of_a_row_that_held_nan() -> None:
    batch = BatchCache(LAYERS)
    ill = Sequence(200, 1)
    for kv in ill.kv:
        kv[:] = np.nan
    first, row = Sequence(10, 2), batch.join(ill.caches())
    of = {batch.join(first.caches()): first}
    batch.leave(row)
    second = Sequence(12, 3)
    of[batch.join(second.caches())] = second
    step(batch, of)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_with_packed_keys_attends_as_its_own_cache(bits: int) -> None:
    form = KVFormat(bits, 32)
    width, random = 32, np.random.default_rng(bits)
    kv = mx.array(random.normal(size=(2, 1, GROUPS, 50, width)).astype(np.float32))
    alone, shared = (QuantizedKVCache(Positions(), form.for_heads(width)) for _ in range(2))
    plain = KVCache()
    for cache in (alone, shared, plain):
        cache.update_and_fetch(kv[0], kv[1])
    batch = BatchCache(1)
    batch.join([shared])
    batch.join([plain.copy(Positions(), 50)])
    batch.begin_step()
    q = mx.array(random.normal(size=(2, HEADS, 1, width)).astype(np.float32))
    new = mx.array(random.normal(size=(2, 2, GROUPS, 1, width)).astype(np.float32))
    out = batch.layers[0].attend(q, new, SCALE, None)
    for index, cache in ((0, plain), (1, alone)):  # those without a slot come last
        one = slice(index, index + 1)
        want = cache.attend(q[one], new[:, one], SCALE, None)
        np.testing.assert_allclose(np.array(out[one]), np.array(want), rtol=0, atol=TOLERANCE)
    packed = next(row for row in batch.rows if row.own is not None)
    assert batch.copied(packed) == [shared] and shared.offset == packed.length == 51


def test_nothing_is_held_once_the_last_row_has_left() -> None:
    batch = BatchCache(LAYERS)
    sequence = Sequence(5, 1)
    of = {batch.join(sequence.caches()): sequence}
    batch.begin_step()
    (held,) = [weakref.ref(part.owner) for part in batch._parts]
    (row,) = of
    batch.leave(row)
    of.clear()
    del row
    assert held() is None
