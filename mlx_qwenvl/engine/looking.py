"""The vision tower's part of a prompt, slice by slice."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.slices import Slices
from mlx_qwenvl.inputs.video import View
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.vision import Look, VisionTransformer

VISION_BATCH = 4096  # patches of small pictures encoded at once: fewer than one of a megapixel has

Features = dict[bytes, mx.array]


def look(model: Model, views: Sequence[View], slices: Slices) -> Generator[None, None, Features]:
    """Features [n, D] of pictures by their digests; each picture is encoded once.

    Temporal patches of videos are pictures here. Small ones of one size go through the tower
    together, as many as `VISION_BATCH` allows, and others one by one, so that memory does not grow
    with their number.

    Args:
        model: The model.
        views: The pictures.
        slices: Say how much of the tower is computed at once.

    Yields:
        Nothing, whenever a slice is under way; it is waited for when the caller goes on.
    """
    features: Features = {}
    tower = model.visual
    depth = len(tower.blocks)
    for batch in _batches(views):
        patches = mx.array(np.stack([view.patches for view in batch]))
        count = len(batch) * batch[0].patches.shape[0]
        seen = tower.begin(patches, batch[0].grid_thw)
        while seen.blocks < depth:
            blocks = slices.blocks(count, depth - seen.blocks)
            if blocks == 0:
                seen = yield from _one_block(tower, seen, slices)
                continue
            seen = tower.go_on(seen, blocks)
            slices.note_blocks(count, blocks, (yield from _slice([seen.x], slices)))
        encoded = tower.finish(seen)
        # Copied out of the batch, so that one that is kept does not keep the others.
        rows = [mx.contiguous(encoded[row]) for row in range(len(batch))]
        yield from _slice(rows, slices)
        features |= {view.digest: row for view, row in zip(batch, rows, strict=True)}
    return features


def _one_block(tower: VisionTransformer, seen: Look, slices: Slices) -> Generator[None, None, Look]:
    """Pictures one block on, some patches at a time: first all keys, then what sees them."""
    batch, count, _ = seen.x.shape
    spent, begin = 0.0, 0
    parts: list[tuple[mx.array, mx.array, mx.array]] = []
    while begin < count:
        at = slice(begin, min(begin + slices.keys(batch), count))
        parts.append(tower.project(seen, at))
        seconds = yield from _slice(parts[-1], slices)
        slices.note_keys(batch * (at.stop - begin), seconds)
        spent, begin = spent + seconds, at.stop
    q, k, v = (mx.concatenate(list(part), axis=2) for part in zip(*parts, strict=True))
    parts.clear()
    begin, rows = 0, []
    while begin < count:
        at = slice(begin, min(begin + slices.rows(batch, count), count))
        rows.append(tower.pass_block(seen, at, q, k, v))
        seconds = yield from _slice(rows[-1:], slices)
        slices.note_rows(batch * count * (at.stop - begin), seconds)
        spent, begin = spent + seconds, at.stop
    slices.note_blocks(batch * count, 1, spent)
    return tower.passed(seen, mx.concatenate(rows, axis=1))


def _slice(under_way: Sequence[mx.array], slices: Slices) -> Generator[None, None, float]:
    """Hand a slice to the device; give the seconds that it took once the caller goes on."""
    handed = slices.hand_over(under_way)
    yield
    return slices.wait(handed)


def _batches(views: Sequence[View]) -> list[list[View]]:
    """Distinct pictures that go through the tower together."""
    distinct = {view.digest: view for view in views}
    by_shape = sorted(distinct.values(), key=_shape)
    batches = []
    for _, group in groupby(by_shape, key=_shape):
        same = list(group)
        at_once = max(1, VISION_BATCH // same[0].patches.shape[0])
        batches += [same[i : i + at_once] for i in range(0, len(same), at_once)]
    return batches


def _shape(view: View) -> tuple[int, ...]:
    return (*view.grid_thw, view.patches.shape[1])
