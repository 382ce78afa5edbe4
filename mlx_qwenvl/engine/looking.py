"""The vision tower's part of a prompt, slice by slice."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.slices import Slices
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.models.qwen2_vl import Qwen2VL

VISION_BATCH = 4096  # patches of small pictures encoded at once: fewer than one of a megapixel has

Features = dict[bytes, mx.array]


def look(
    model: Qwen2VL, images: Sequence[ImagePatches], slices: Slices
) -> Generator[None, None, Features]:
    """Features [n, D] of pictures by their digests; each picture is encoded once.

    Small pictures of one size go through the tower together, as many as `VISION_BATCH` allows, and
    others one by one, so that memory does not grow with their number.

    Args:
        model: The model.
        images: The pictures.
        slices: Say how many blocks of the tower are computed at once.

    Yields:
        Nothing, whenever a slice is under way; it is waited for when the caller goes on.
    """
    features: Features = {}
    depth = len(model.visual.blocks)
    for batch in _batches(images):
        patches = mx.array(np.stack([image.patches for image in batch]))
        count = len(batch) * batch[0].patches.shape[0]
        seen = model.visual.begin(patches, batch[0].grid_thw)
        rows: list[mx.array] = []
        while not rows:
            blocks = slices.blocks(count, depth - seen.blocks)
            seen = model.visual.go_on(seen, blocks)
            if seen.blocks == depth:
                encoded = model.visual.finish(seen)
                # Copied out of the batch, so that one that is kept does not keep the others.
                rows = [mx.contiguous(encoded[row]) for row in range(len(batch))]
            waiting = rows or [seen.x]
            began = slices.clock()
            mx.async_eval(waiting)
            yield
            slices.note_blocks(count, blocks, slices.wait(waiting, began))
        features |= {image.digest: row for image, row in zip(batch, rows, strict=True)}
    return features


def _batches(images: Sequence[ImagePatches]) -> list[list[ImagePatches]]:
    """Distinct pictures that go through the tower together."""
    distinct = {image.digest: image for image in images}
    by_grid = sorted(distinct.values(), key=lambda image: image.grid_thw)
    batches = []
    for _, group in groupby(by_grid, key=lambda image: image.grid_thw):
        same = list(group)
        at_once = max(1, VISION_BATCH // same[0].patches.shape[0])
        batches += [same[i : i + at_once] for i in range(0, len(same), at_once)]
    return batches
